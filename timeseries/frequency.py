"""The step of a time axis and the seasonal periods that come with it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .errors import DataError

# Calendar steps that are no fixed number of seconds, from fine to coarse; the first that fits every date is taken.
CALENDAR = ("B", "MS", "ME", "QS", "QE", "YS", "YE")
CALENDAR_PERIODS = {"B": (5, 21), "MS": (12,), "ME": (12,), "QS": (4,), "QE": (4,), "YS": (1,), "YE": (1,)}


@dataclass(frozen=True, kw_only=True)
class Frequency:
    """Step of a regular time axis."""

    offset: str
    """pandas offset alias, e.g. `h`, `15min`, `MS`."""
    seconds: float | None
    """Length of a step where it is fixed; None for business days, months, quarters and years."""
    periods: tuple[int, ...]
    """Seasonal periods in steps, shortest first, e.g. (24, 168) for hours; (1,) when there is none."""

    @property
    def season(self) -> int:
        """Period of the seasonal-naive forecast, in steps."""
        return self.periods[0]

    def steps_in(self, span: pd.Timedelta) -> int | None:
        """Whole steps in a span, or None when it is no whole number of steps."""
        if self.seconds is None:
            return None
        steps = span.total_seconds() / self.seconds
        return round(steps) if steps >= 1 and abs(steps - round(steps)) < 1e-9 else None


def infer_frequency(dates: pd.DatetimeIndex, source: str, line: Callable[[int], int] = lambda row: row) -> Frequency:
    """The step that every pair of neighbours keeps.

    Args:
        dates: Time stamps, shape (t,).
        source: Name of the data for messages.
        line: Line of the file that holds a row, for messages.
    Raises:
        DataError: Fewer than three rows, a duplicated or unsorted date, or a gap.
    """
    if len(dates) < 3:
        raise DataError(f"{source}: {len(dates)} rows are too few to see the step between dates; give at least 3")
    steps = np.diff(dates.to_numpy()).astype("timedelta64[ns]").astype(np.int64)
    bad = np.flatnonzero(steps <= 0)
    if len(bad):
        row = int(bad[0]) + 1
        if steps[row - 1] == 0:
            raise DataError(
                f"{source}, line {line(row)}: the date {dates[row]} is there twice; keep one row for each date"
            )
        where = f"{source}, line {line(row)}"
        raise DataError(f"{where}: {dates[row]} comes after {dates[row - 1]}; sort the rows by date, oldest first")
    sizes, counts = np.unique(steps, return_counts=True)
    if len(sizes) == 1:
        return _fixed(int(sizes[0]))
    calendar = _calendar(dates)
    if calendar is not None:
        return calendar
    _raise_gap(dates, int(sizes[counts.argmax()]), source, line)


def periods_of(freq: str) -> tuple[int, ...]:
    """Seasonal periods of a pandas frequency, in steps, shortest first; (1,) when there is none.

    Args:
        freq: Of pandas periods or offsets, e.g. `h`, `15min`, `W-SUN`, `M`.
    Raises:
        ValueError: pandas does not know it.
    """
    # Periods say M, Q and Y where offsets say ME, QE and YE.
    offset = pd.tseries.frequencies.to_offset(re.sub(r"^(\d*)([MQY])(?=-|$)", r"\1\2E", freq))
    name = offset.name.split("-")[0]
    if name == "W":
        return _fixed(offset.n * 7 * 86_400 * 10**9).periods
    if name in CALENDAR_PERIODS:
        return tuple(max(1, period // offset.n) for period in CALENDAR_PERIODS[name])
    try:
        return _fixed(offset.nanos).periods
    except ValueError:
        return (1,)


def harmonics_of(periods: Sequence[int], counts: Sequence[int], rows: int) -> tuple[tuple[int, int], ...]:
    """Period and number of harmonics of each cycle that `rows` steps can show twice.

    Args:
        periods: Seasonal periods in steps, shortest first.
        counts: Harmonics wanted of each; at most half a period's steps are taken.
        rows: Steps to learn from.
    """
    seasons = [period for period in periods if period > 1]
    wanted = [(period, min(count, period // 2)) for period, count in zip(seasons, counts, strict=False)]
    return tuple((period, count) for period, count in wanted if count and 2 * period <= rows)


def waves(steps: np.ndarray, harmonics: Sequence[tuple[int, int]]) -> np.ndarray:
    """Cosines, then sines, of every cycle.

    Args:
        steps: On one time axis, shape (t,).
        harmonics: From `harmonics_of`.
    Returns:
        Shape (t, q).
    """
    table = [np.zeros((len(steps), 0))]
    for period, count in harmonics:
        angles = 2 * np.pi / period * steps[:, None] * np.arange(1, count + 1)
        # The sine at half a cycle's steps is zero everywhere.
        table += [np.cos(angles), np.sin(angles)[:, : (period - 1) // 2]]
    return np.concatenate(table, 1)


def _fixed(nanoseconds: int) -> Frequency:
    seconds = nanoseconds / 1e9
    offset = pd.tseries.frequencies.to_offset(pd.Timedelta(nanoseconds, "ns")).freqstr
    # A season is worth a pole when it has at least 4 steps; a week of days and a year of weeks count as well.
    spans = (86_400, 7 * 86_400) if seconds < 86_400 else (7 * 86_400, 365.25 * 86_400)
    periods = tuple(round(span / seconds) for span in spans if span / seconds >= 4)
    return Frequency(offset=offset, seconds=seconds, periods=periods or (1,))


def _calendar(dates: pd.DatetimeIndex) -> Frequency | None:
    for offset in CALENDAR:
        if len(grid := pd.date_range(dates[0], dates[-1], freq=offset)) == len(dates) and (grid == dates).all():
            return Frequency(offset=offset, seconds=None, periods=CALENDAR_PERIODS[offset])
    return None


def _raise_gap(dates: pd.DatetimeIndex, step: int, source: str, line: Callable[[int], int]) -> None:
    """Name the first irregular row, on the calendar grid that fits best where one does."""
    for offset in CALENDAR:
        grid = pd.date_range(dates[0], dates[-1], freq=offset)
        if len(grid) and grid[0] == dates[0] and dates.isin(grid).all() and len(grid) < 1.5 * len(dates):
            row = int(np.argmax(dates != grid[: len(dates)]))
            break
    else:
        row = int(np.argmax(np.diff(dates.to_numpy()).astype("timedelta64[ns]").astype(np.int64) != step)) + 1
    usual = pd.Timedelta(step, "ns")
    raise DataError(
        f"{source}, line {line(row)}: {dates[row]} follows {dates[row - 1]}, but the step elsewhere is {usual}; "
        "insert the missing dates (their values may stay empty) or correct this one"
    )
