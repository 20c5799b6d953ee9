"""GluonTS data entries as arrays: what may be wrong with one is said here, in a sentence that names the item.

A field that is not in FIELDS is left alone, as GluonTS does; a target may have any numeric type and any missing values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .frequency import waves
from .models.window import Sizes

FIELDS = {
    "known": "feat_dynamic_real",
    "past": "past_feat_dynamic_real",
    "static": "feat_static_real",
    "category": "feat_static_cat",
    "dt": "dt",
}
LARGEST = 1e100
"""Largest size of a value: sums of squares must stay finite."""
ALIASES = {"ME": "M", "QE": "Q", "YE": "Y", "A": "Y", "MS": "M", "QS": "Q", "YS": "Y", "H": "h", "T": "min", "S": "s"}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One item, c channels and t steps."""

    target: Tensor
    """Less its first value, float64, NaN where missing, shape (c, t)."""
    first: Tensor
    """The first observed value of each channel, shape (c,); 0 where there is none."""
    known: Tensor
    """Covariates known for the future, those of the calendar last, float32, shape (t or more, q)."""
    past: Tensor
    """Covariates of the past, float32, shape (t, p)."""
    static: Tensor
    """float32, shape (s,)."""
    category: Tensor
    """int64, shape (number of categories,)."""
    dt: Tensor | None
    """Time since the step before, in steps, float64, shape (t,)."""
    start: pd.Period
    item_id: Any
    info: Any
    multivariate: bool
    """Whether the target came with two axes."""

    @property
    def length(self) -> int:
        """t."""
        return self.target.shape[1]

    @property
    def inputs(self) -> Tensor:
        """All covariates at the past steps, shape (t, q + p + s)."""
        static = self.static.expand(self.length, -1)
        return torch.cat([self.known[: self.length], self.past, static], 1)

    @property
    def forecast_start(self) -> pd.Period:
        """The step after the last."""
        return self.start + self.length


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the items of a dataset have in common."""

    freq: str
    """Of pandas periods, e.g. `h`, `15min`, `M`."""
    channels: int
    """c."""
    known: int
    past: int
    static: int
    cardinalities: tuple[int, ...]
    harmonics: tuple[tuple[int, int], ...] = ()
    """Cycles of the calendar, (period, harmonics), whose sines and cosines are covariates known for the future too."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Schema":
        """From plain data, lists for tuples; a field that was not there yet when it was written has its default."""
        cycles = tuple((int(period), int(count)) for period, count in data.get("harmonics", ()))
        return cls(**{**data, "cardinalities": tuple(data["cardinalities"]), "harmonics": cycles})

    def cycles(self, start: pd.Period, steps: range) -> np.ndarray:
        """The sines and cosines of some steps of a series that begins at `start`, float32, shape (t, q)."""
        return waves(start.ordinal / start.freq.n + np.array(steps), self.harmonics).astype(np.float32)

    def sizes(self, prediction_length: int) -> Sizes:
        """For the networks."""
        known = self.known + waves(np.zeros(1), self.harmonics).shape[1]
        return Sizes(
            prediction_length=prediction_length,
            channels=self.channels,
            inputs=known + self.past + self.static,
            known=known,
            static=self.static,
            cardinalities=self.cardinalities,
        )


def read_schema(entries: Iterable[Mapping[str, Any]], freq: str | None, covariates: bool) -> Schema:
    """Look at all entries of a training set.

    Args:
        entries: GluonTS data entries.
        freq: Expected frequency; None takes that of the first entry.
        covariates: Whether features count.
    Raises:
        ValueError: There is no entry, or it has no target, or a frequency is not the others'.
    """
    entries = list(entries)
    if not entries:
        raise ValueError("train: the dataset has no entries; give at least one series")
    first, name = entries[0], _name(entries[0], 0)
    found = first.get("start")
    if "target" not in first or found is None:
        raise ValueError(f"{name}: an entry needs 'target' and 'start', this one has {', '.join(map(repr, first))}")
    target = np.asarray(first["target"])
    counts = {key: _rows(first.get(field)) if covariates else 0 for key, field in FIELDS.items()}
    cardinalities = ()
    if counts["category"]:
        table = np.stack([np.atleast_1d(np.asarray(entry[FIELDS["category"]])).astype(int) for entry in entries])
        cardinalities = tuple(int(count) for count in table.max(0) + 1)
    schema = Schema(
        freq=period_freq(freq) if freq else _period(first, 0).freqstr,
        channels=1 if target.ndim == 1 else target.shape[0],
        known=counts["known"],
        past=counts["past"],
        static=counts["static"],
        cardinalities=cardinalities,
    )
    for i, entry in enumerate(entries):
        check_freq(_period(entry, i), schema.freq, _name(entry, i))
    return schema


def read_series(entry: Mapping[str, Any], schema: Schema, future: int = 0, number: int = 0) -> Series:
    """Check one entry and take what the schema asks for.

    Args:
        entry: A GluonTS data entry.
        schema: What it must have.
        future: Steps after the target that known-future covariates must cover.
        number: Place in the dataset, for messages.
    Raises:
        ValueError: Infinite or immense values, no value at all, another number of channels, covariates that are absent,
            too short or not finite, steps that are not positive, or another frequency. It names the item.
    """
    name = _name(entry, number)
    check_freq(_period(entry, number), schema.freq, name)
    if entry.get("target") is None:
        raise ValueError(f"{name}: an entry needs 'target' and 'start', this one has {', '.join(map(repr, entry))}")
    raw = _array(entry["target"], name, "target", missing=True)
    target = np.atleast_2d(raw)
    if raw.ndim not in (1, 2) or target.shape[0] != schema.channels:
        raise ValueError(f"{name}: target has shape {raw.shape}, expected {schema.channels} channels as in training")
    observed = ~np.isnan(target)
    if not observed.any():
        raise ValueError(f"{name}: target has no observed value (all {target.size} are NaN); leave the series out")
    if np.nanmax(np.abs(target)) > LARGEST:
        raise ValueError(
            f"{name}: target reaches {np.nanmax(np.abs(target)):.3g}, expected at most {LARGEST:g}; change its unit"
        )
    length = target.shape[1]
    firsts = np.where(observed.any(1), target[np.arange(len(target)), observed.argmax(1)], 0.0)
    known = _dynamic(entry, "known", schema.known, length, name, future)
    start = _period(entry, number)
    known = np.concatenate([known, schema.cycles(start, range(len(known)))], 1)
    past = _dynamic(entry, "past", schema.past, length, name)[:length]
    return Series(
        target=torch.from_numpy(target - firsts[:, None]),
        first=torch.from_numpy(firsts),
        known=torch.from_numpy(known),
        past=torch.from_numpy(past),
        static=torch.from_numpy(_flat(entry, "static", schema.static, name).astype(np.float32)),
        category=torch.from_numpy(_flat(entry, "category", len(schema.cardinalities), name).astype(np.int64)),
        dt=_steps(entry, length, name),
        start=start,
        item_id=entry.get("item_id"),
        info=entry.get("info"),
        multivariate=raw.ndim == 2,
    )


def period_freq(freq: str) -> str:
    """The name that pandas periods use for a frequency: `ME` is `M`, `H` is `h`. No shapes.

    Raises:
        ValueError: pandas does not know it.
    """
    count = freq.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-")
    word, _, anchor = freq[len(count) :].partition("-")
    try:
        return pd.Period("2000-01-03", freq=count + ALIASES.get(word, word) + (f"-{anchor}" if anchor else "")).freqstr
    except (ValueError, AttributeError):
        raise ValueError(f"freq={freq!r} is no frequency that pandas knows, such as 'h', '15min', 'D' or 'M'") from None


def check_freq(period: pd.Period, freq: str, name: str) -> None:
    """Raise unless a period has the frequency; no shapes.

    Raises:
        ValueError: It has another one.
    """
    if period.freqstr != freq:
        raise ValueError(f"{name}: its frequency is {period.freqstr!r}, the others have {freq!r}; use one for each run")


def _name(entry: Mapping[str, Any], number: int) -> str:
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"item {number} of the dataset is of type {type(entry).__name__}, expected an entry, such as "
            "{'start': ..., 'target': ...}; from_pandas makes a list of entries from a frame"
        )
    return f"item {entry.get('item_id', number)!r}"


def _period(entry: Mapping[str, Any], number: int) -> pd.Period:
    start = entry.get("start")
    if not isinstance(start, pd.Period):
        raise ValueError(f"{_name(entry, number)}: start is {start!r}, expected a pandas.Period with a frequency")
    return start


def _rows(value: Any) -> int:
    if value is None:
        return 0
    return len(np.atleast_1d(np.asarray(value)))


def _array(value: Any, name: str, field: str, missing: bool = False) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {field} is not an array of numbers") from None
    bad = np.isinf(array) | (np.isnan(array) & (not missing))
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        hint = "; write NaN where a value is missing" if missing else ""
        raise ValueError(f"{name}: {field} is {array[place]} at {list(place)}, expected finite numbers{hint}")
    return array


def _dynamic(entry: Mapping[str, Any], kind: str, count: int, length: int, name: str, future: int = 0) -> np.ndarray:
    """Covariates by time, float32, shape (length + future or more, count)."""
    field = FIELDS[kind]
    if not count:
        return np.zeros((length + future, 0), np.float32)
    if entry.get(field) is None:
        raise ValueError(f"{name}: {field} is absent, expected {count} rows as in training")
    array = np.atleast_2d(_array(entry[field], name, field))
    if array.shape[0] != count or array.shape[1] < length + future:
        ahead = f" and the {future} to forecast" if future else ""
        raise ValueError(
            f"{name}: {field} has shape {array.shape}, expected shape ({count}, {length + future} or more), "
            f"for the {length} steps of the target{ahead}"
        )
    return np.ascontiguousarray(array.T.astype(np.float32))


def _flat(entry: Mapping[str, Any], kind: str, count: int, name: str) -> np.ndarray:
    if not count:
        return np.zeros(0)
    value = entry.get(FIELDS[kind])
    array = np.zeros(0) if value is None else np.atleast_1d(_array(value, name, FIELDS[kind]))
    if array.shape != (count,):
        raise ValueError(f"{name}: {FIELDS[kind]} has shape {array.shape}, expected ({count},) as in training")
    return array


def _steps(entry: Mapping[str, Any], length: int, name: str) -> Tensor | None:
    if entry.get("dt") is None:
        return None
    dt = _array(entry["dt"], name, "dt")
    if dt.shape != (length,) or (dt <= 0).any():
        raise ValueError(f"{name}: dt must be {length} positive steps, one for each value, got shape {dt.shape}")
    return torch.from_numpy(dt)
