"""From a CSV file to standardised arrays: reading with errors a person can act on, the step, the parts, the scaler.

    rows (T) -> Table -> Split (train, validation, test borders) -> Scaler fitted on the train rows

The long-term-forecasting protocol of the literature: validation and test parts begin one row before their first target,
every window whose targets lie in a part counts, and the scaler sees the train rows only.
"""

import itertools
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from .errors import DataError
from .frequency import Frequency, infer_frequency

DATE_NAMES = ("date", "datetime", "timestamp", "time", "ds")
ETT_COLUMNS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Series on one regular time axis."""

    dates: pd.DatetimeIndex
    """Time stamps, shape (t,), strictly increasing, without gaps."""
    values: np.ndarray
    """float64, shape (t, c); NaN where a value is missing."""
    columns: tuple[str, ...]
    """Names of the series, c of them."""
    frequency: Frequency
    """Step between rows and the seasonal periods that go with it."""
    source: str
    """Where it came from, for messages."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Borders of the parts in rows, [start, end); targets of a part lie inside it."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]
    name: str
    """How it was asked for, e.g. `12/4/4`."""

    def origins(self, part: str, context_length: int | None, prediction_length: int) -> range:
        """Rows after which a forecast of this part starts: the row itself is the last one seen.

        Args:
            part: `train`, `validation` or `test`.
            context_length: Rows a window holds; None for all since the first.
            prediction_length: Steps to forecast.
        Returns:
            end - start - prediction_length + 1 origins for validation and test; for train, those whose window is whole.
        Raises:
            AttributeError: No such part.
        """
        start, end = getattr(self, part)
        first = (context_length or 1) - 1 if part == "train" else start - 1
        return range(first, end - prediction_length)


@dataclass(frozen=True, kw_only=True)
class Scaler:
    """Mean and population standard deviation per column."""

    mean: np.ndarray
    """float64, shape (c,)."""
    scale: np.ndarray
    """float64, shape (c,), positive."""

    @classmethod
    def fit(cls, table: Table, rows: tuple[int, int]) -> "Scaler":
        """From the rows [start, end) only; missing values do not count, a constant column keeps its unit.

        Raises:
            DataError: A column has no value at all in these rows.
        """
        part = table.values[slice(*rows)]
        for c, name in enumerate(table.columns):
            if np.isnan(part[:, c]).all():
                raise DataError(
                    f"{table.source}: column {name!r} has no value in the training part (data rows {rows[0] + 1} to "
                    f"{rows[1]}); leave it out with --columns"
                )
        mean, scale = np.nanmean(part, axis=0), np.nanstd(part, axis=0)
        return cls(mean=mean, scale=np.where(scale > 1e-12 * (1 + abs(mean)), scale, 1.0))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Units of the file to standard units; last axis is c."""
        return (values - self.mean) / self.scale

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Standard units to units of the file; last axis is c."""
        return values * self.scale + self.mean


def read_csv(path: str | Path, columns: tuple[str, ...] | None = None) -> Table:
    """Read series with their dates; empty cells and `nan` are missing values.

    Args:
        path: .csv or any compression that pandas knows by its ending (.csv.gz).
        columns: Value columns to keep, in this order; None keeps all.
    Returns:
        The table.
    Raises:
        DataError: The file is absent, empty, not a table, has no dates, text in a value column, or dates that are
            unreadable, unsorted, duplicated or leave a gap; the text names the line or column and what to do.
    """
    source = str(path)
    frame = _read_frame(source)
    dates, date_column = _parse_dates(frame, source)
    rest = [name for name in frame.columns if name != date_column]
    names = tuple(columns) if columns else tuple(rest)
    for name in names:
        if name not in rest:
            raise DataError(f"{source}: there is no value column {name!r}; it has {', '.join(map(repr, rest))}")
    if not names:
        raise DataError(f"{source}: there is no column beside {date_column!r}; add one column for each series")
    values = np.column_stack([_parse_values(frame[name], name, source) for name in names])
    return Table(
        dates=dates, values=values, columns=names, frequency=infer_frequency(dates, source, _line), source=source
    )


def make_split(table: Table, spec: str, context_length: int | None, prediction_length: int) -> Split:
    """Borders of the parts.

    Args:
        table: The data.
        spec: Three numbers `a/b/c`: percent when they add up to 100, else months of 30 days; or `auto`.
        context_length: Rows a window holds; None for all since the first.
        prediction_length: Steps to forecast.
    Raises:
        DataError: `spec` cannot be read or does not fit the step, or a part is too short for one window.
    """
    if prediction_length < 1 or (context_length is not None and context_length < 1):
        raise DataError("--prediction-length and --context-length must be at least 1")
    if spec == "auto":
        spec = "12/4/4" if _is_ett(table) else "70/10/20"
    borders = _borders(table, spec)
    parts = dict(zip(("train", "validation", "test"), itertools.pairwise(borders), strict=True))
    need = {
        "train": (context_length or 1) + prediction_length,
        "validation": prediction_length,
        "test": prediction_length,
    }
    for part, (start, end) in parts.items():
        if end - start < need[part]:
            context = f" and --context-length {context_length}" if part == "train" and context_length else ""
            raise DataError(
                f"{table.source}: {len(table.dates)} rows are too few: with --split {spec} the {part} part has "
                f"{end - start} rows, and --prediction-length {prediction_length}{context} needs {need[part]}; "
                "give more rows, a shorter horizon or another --split"
            )
    return Split(**parts, name=spec)


def standardize(table: Table, split: Split) -> tuple[Table, Scaler]:
    """The table in standard units, by the train rows only.

    Raises:
        DataError: A column has no value in the train rows.
    """
    scaler = Scaler.fit(table, split.train)
    return replace(table, values=scaler.transform(table.values)), scaler


def _line(row: int) -> int:
    """Line of the file that holds data row `row`: line 1 is the header."""
    return row + 2


def _read_frame(source: str) -> pd.DataFrame:
    if not Path(source).is_file():
        raise DataError(f"{source or '--data'}: there is no such file; give a CSV file with --data")
    options = {"dtype": str, "skip_blank_lines": False, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(source, index_col=False, **options)
    except pd.errors.EmptyDataError:
        raise DataError(f"{source}: the file is empty; it needs a header and one line for each time step") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        detail = str(error).rsplit("C error:", 1)[-1].strip().rstrip(".")
        raise DataError(f"{source}: not a table ({detail}); give every line as many commas as the header") from None
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise DataError(f"{source}: cannot be read as text ({error}); save it as a CSV file in UTF-8") from None
    for mark in (";", "\t"):
        if len(frame.columns) == 1 and mark in str(frame.columns[0]):
            raise DataError(f"{source}, line 1: the cells are separated by {mark!r}; separate them by commas")
    frame.columns = [str(name).strip() for name in frame.columns]
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"{source}: two columns are named {twice[0]!r}; rename one of them")
    frame = frame.apply(lambda column: column.fillna("").str.strip())
    filled = (frame != "").any(axis=1).to_numpy()
    frame = frame.iloc[: np.flatnonzero(filled)[-1] + 1 if filled.any() else 0]
    if not len(frame):
        raise DataError(f"{source}: there is a header but no data; add one line for each time step")
    return frame


def _parse_dates(frame: pd.DataFrame, source: str) -> tuple[pd.DatetimeIndex, str]:
    name = next((c for known in DATE_NAMES for c in frame.columns if c.lower() == known), None)
    if name is None:
        name = frame.columns[0]
        first = frame[name].iloc[0]
        if _is_number(first) or pd.isna(pd.to_datetime(first, errors="coerce")):
            raise DataError(
                f"{source}: there is no date column (the columns are {', '.join(map(repr, frame.columns))}); "
                "add one named 'date', such as 2016-07-01 00:00:00"
            )
    text = frame[name]
    dates = pd.to_datetime(text, errors="coerce", format="ISO8601")
    if dates.isna().any():
        other = pd.to_datetime(text, errors="coerce")
        dates = other if other.notna().sum() > dates.notna().sum() else dates
    bad = np.flatnonzero(dates.isna().to_numpy())
    if len(bad):
        line, what = _line(bad[0]), text.iloc[bad[0]]
        found = f"{what!r} is not a date" if what else "the date is empty"
        raise DataError(f"{source}, line {line}: {found} in column {name!r}; write it as 2016-07-01 00:00:00")
    index = pd.DatetimeIndex(dates)
    return index.tz_convert("UTC").tz_localize(None) if index.tz is not None else index, name


def _parse_values(text: pd.Series, name: str, source: str) -> np.ndarray:
    missing = text.str.lower().isin(("", "nan", "na", "null", "none"))
    values = pd.to_numeric(text.mask(missing), errors="coerce").to_numpy(float)
    bad = np.flatnonzero((np.isnan(values) & ~missing.to_numpy()) | np.isinf(values))
    if len(bad):
        raise DataError(
            f"{source}, line {_line(bad[0])}: {text.iloc[bad[0]]!r} in column {name!r} is not a finite number; "
            "write a number, or leave the cell empty if the value is missing"
        )
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_ett(table: Table) -> bool:
    months = table.frequency.steps_in(pd.Timedelta(days=30))
    return set(table.columns) <= set(ETT_COLUMNS) and months in (720, 2880) and len(table.dates) >= 20 * months


def _borders(table: Table, spec: str) -> tuple[int, int, int, int]:
    rows = len(table.dates)
    try:
        shares = tuple(int(word) for word in spec.split("/"))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares) < 1:
        raise DataError(f"--split {spec}: write three whole numbers, such as 70/10/20 (percent) or 12/4/4 (months)")
    if sum(shares) == 100:
        train, test = int(rows * shares[0] / 100), int(rows * shares[2] / 100)
        return 0, train, rows - test, rows
    month = table.frequency.steps_in(pd.Timedelta(days=30))
    if month is None:
        raise DataError(f"--split {spec}: months need a step that divides a day; use percent, such as 70/10/20")
    ends = np.cumsum([share * month for share in shares])
    if ends[-1] > rows:
        raise DataError(
            f"{table.source}: --split {spec} needs {ends[-1]} rows (months of 30 days), there are {rows}; "
            "use percent, such as 70/10/20"
        )
    return 0, *(int(end) for end in ends)
