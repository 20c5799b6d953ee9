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
    known: Sequence[str] = (),
    past: Sequence[str] = (),
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
        ValueError: Dates cannot be read, lie between the steps of the frequency or are there twice, or no frequency can
            be seen; one sentence that names the item.
    """
    items = _items(data, item_id, timestamp)
    entries = []
    for name, frame in items.items():
        columns = [c for c in frame.columns if c not in {*known, *past}]
        wide = target is None and len(columns) > 1
        groups = [[c] for c in columns] if wide else [[target] if isinstance(target, str) else list(target or columns)]
        regular = regular_frame(frame, freq, f"item {name!r}")
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
            dates = pd.DatetimeIndex(index)
        except (TypeError, ValueError):
            raise ValueError(f"{name}: its index holds no dates; give a DatetimeIndex, or timestamp=") from None
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


def _items(data: Frame, item_id: str | None, timestamp: str | None) -> dict[Any, pd.DataFrame]:
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
    if len(dates) > 1 and (dates.is_month_end.all() or dates.is_month_start.all()):
        months = np.diff(dates.to_period("M").asi8)
        for length, alias in ((12, "YE"), (3, "QE"), (1, "ME")):  # lengths in days would differ
            if (months % length == 0).all():
                return alias
    steps, counts = np.unique(np.diff(dates.to_numpy()), return_counts=True)
    if len(steps) and counts.max() > 0.5 * counts.sum():
        return pd.tseries.frequencies.to_offset(pd.Timedelta(steps[counts.argmax()])).freqstr
    raise ValueError(f"{name}: no frequency fits most of its {len(dates)} dates; give freq=, such as 'h' or 'M'")
