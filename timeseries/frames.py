"""From pandas to GluonTS data entries, with gaps closed: a date that is not there is a value that is missing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .series import period_freq

Frame = pd.DataFrame | pd.Series | Mapping[Any, pd.DataFrame | pd.Series]


def from_pandas(
    data: Frame,
    *,
    target: str | Sequence[str] | None = None,
    freq: str | None = None,
    item_id: str | None = None,
    timestamp: str | None = None,
    known: str | Sequence[str] = (),
    past: str | Sequence[str] = (),
    future_length: int = 0,
) -> list[dict[str, Any]]:
    """Entries for `train` and `predict`.

    Args:
        data: One series, a frame, or a dict of them by item. Of a frame each value column is an item of its own, unless
            `target` or `item_id` says otherwise.
        target: Column of the values; several make one multivariate item.
        freq: Frequency, in any pandas name (`ME` as well as `M`); None infers it from the dates.
        item_id: Column that tells the items of a long frame apart.
        timestamp: Column of the dates; None takes the index.
        known: Columns that are known for the future, `feat_dynamic_real`.
        past: Columns of the past, `past_feat_dynamic_real`.
        future_length: Rows at the end for which only `known` counts: the target stops before them.
    Returns:
        GluonTS data entries on a regular axis, float64; rows that were absent hold NaN, and their covariates the value
        before.
    Raises:
        ValueError: A column is not there or holds no numbers; dates cannot be read, lie between the steps of the
            frequency or are there twice, or no frequency can be seen; one sentence that names the item.
    """
    items = _items(data, item_id, timestamp)
    known, past = _names(known), _names(past)
    entries = []
    for name, frame in items.items():
        columns = [c for c in frame.columns if c not in {*known, *past}]
        wide = target is None and len(columns) > 1
        groups = [[c] for c in columns] if wide else [_names(target) if target is not None else columns]
        _check_columns(frame, [*known, *past, *(c for group in groups for c in group)], f"item {name!r}")
        regular = regular_frame(frame, freq, f"item {name!r}")
        if not 0 <= future_length < len(regular):
            raise ValueError(
                f"item {name!r}: future_length={future_length}, expected 0 or more of its {len(regular)} steps, not all"
            )
        for group in groups:
            end = len(regular) - future_length
            values = regular[group].to_numpy(float).T[:, :end]
            entry = {
                "item_id": group[0] if wide and len(items) == 1 else f"{name}/{group[0]}" if wide else name,
                "start": regular.index[0],
                "target": values if len(group) > 1 else values[0],
            }
            for field, names, stop in (
                ("feat_dynamic_real", known, None),
                ("past_feat_dynamic_real", past, end),
            ):
                if names:
                    entry[field] = regular[list(names)].ffill().bfill().to_numpy(float).T[:, :stop]
            entries.append(entry)
    return entries


def regular_frame(frame: pd.DataFrame, freq: str | None, name: str) -> pd.DataFrame:
    """The frame on all steps between its first and its last date; rows that were absent hold NaN.

    Args:
        frame: Indexed by date or period.
        freq: Frequency; None infers it.
        name: Of the item, for messages.
    Returns:
        Indexed by period.
    Raises:
        ValueError: As `from_pandas`.
    """
    index = frame.index
    if not isinstance(index, pd.PeriodIndex):
        try:
            dates = pd.DatetimeIndex([None] if pd.api.types.is_numeric_dtype(index) else index)
        except (TypeError, ValueError):
            dates = pd.DatetimeIndex([None])
        if dates.hasnans:
            raise ValueError(f"{name}: its index holds no dates; give a DatetimeIndex, or timestamp=")
        if dates.has_duplicates:
            raise ValueError(
                f"{name}: the date {dates[dates.duplicated()][0]} is there twice; keep one row for each date"
            )
        step = freq or getattr(dates, "freqstr", None) or _infer(dates.sort_values(), name)
        index = dates.tz_localize(None).to_period(period_freq(step))
    if index.has_duplicates:
        twice = index[index.duplicated()][0]
        raise ValueError(
            f"{name}: two rows fall into {twice} at frequency {index.freqstr!r}; keep one row for each step"
        )
    frame = frame.set_axis(index).sort_index()
    return frame.reindex(pd.period_range(frame.index[0], frame.index[-1], freq=index.freq))


def _names(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _check_columns(frame: pd.DataFrame, names: Sequence[str], place: str) -> None:
    """Raise unless all columns are there and hold numbers."""
    for name in names:
        if name not in frame.columns:
            there = ", ".join(map(repr, frame.columns))
            raise ValueError(f"{place}: there is no column {name!r}; its columns are {there}")
        try:
            frame[name].to_numpy(float)
        except (TypeError, ValueError):
            raise ValueError(f"{place}: column {name!r} holds more than numbers; convert it, or leave it out") from None


def _items(data: Frame, item_id: str | None, timestamp: str | None) -> dict[Any, pd.DataFrame]:
    if not isinstance(data, pd.DataFrame | pd.Series | Mapping):
        raise ValueError(f"from_pandas: data is of type {type(data).__name__}, expected a pandas frame or series")
    for option, column in (("item_id", item_id), ("timestamp", timestamp)):
        if column is not None and isinstance(data, pd.DataFrame) and column not in data.columns:
            there = ", ".join(map(repr, data.columns))
            raise ValueError(f"from_pandas: {option}={column!r} is no column; the columns are {there}")
    if isinstance(data, pd.DataFrame) and item_id is not None:
        data = {name: part.drop(columns=item_id) for name, part in data.groupby(item_id, sort=False)}
    if isinstance(data, pd.Series | pd.DataFrame):
        data = {getattr(data, "name", None) or "series": data}
    frames = {name: part.to_frame() if isinstance(part, pd.Series) else part for name, part in data.items()}
    if timestamp is not None:
        frames = {name: part.set_index(timestamp) for name, part in frames.items()}
    empty = next((name for name, part in frames.items() if not len(part)), None)
    if not frames or empty is not None:
        raise ValueError(f"from_pandas: {'there is no item' if not frames else f'item {empty!r} has no rows'}")
    return frames


def _infer(dates: pd.DatetimeIndex, name: str) -> str:
    """The step that most neighbours keep, gaps aside."""
    if len(dates) >= 3 and (whole := pd.infer_freq(dates)):
        return whole
    months = np.diff(dates.to_period("M").asi8)
    steps, counts = np.unique(np.diff(dates.to_numpy()), return_counts=True)
    # About the same day of a month, one a month or fewer: the lengths in days differ.
    if len(steps) and months.min() > 0 and np.ptp(dates.day) <= 3:
        return next(alias for length, alias in ((12, "YE"), (3, "QE"), (1, "ME")) if (months % length == 0).all())
    if len(steps) and counts.max() > 0.5 * counts.sum():
        return pd.tseries.frequencies.to_offset(pd.Timedelta(steps[counts.argmax()])).freqstr
    raise ValueError(f"{name}: no frequency fits most of its {len(dates)} dates; give freq=, such as 'h' or 'M'")
