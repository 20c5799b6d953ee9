"""What a CSV file says beside its series: the calendar, columns that are known for the future, columns of the past.

    harmonics   sin, cos (2 pi k t / P), k = 1 .. K, t steps since the first row of the training file
    known       named columns, whose future values the file must hold when a forecast is wanted
    past        named columns of the past alone

Named columns are in standard units of the training part.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .config import TrainConfig
from .data import Scaler, Table, read_csv
from .errors import DataError
from .frequency import harmonics_of, waves
from .series import period_freq


@dataclass(frozen=True, kw_only=True)
class Covariates:
    """Of a forecaster; plain data."""

    harmonics: tuple[tuple[int, int], ...] = ()
    """(P, K) of each cycle."""
    first: str = ""
    """Date of the first row of the training file."""
    offset: str = ""
    """pandas offset alias of the step."""
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    """Of the named columns, known ones first."""
    scale: tuple[float, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All named columns."""
        return (*self.known, *self.past)

    @property
    def inputs(self) -> int:
        """Numbers that every past step brings to a network: k."""
        return len(self.columns)

    @classmethod
    def fit(cls, config: TrainConfig, table: Table, named: np.ndarray, rows: tuple[int, int]) -> "Covariates":
        """From the training part.

        Args:
            config: Its known, past and cycle options.
            table: The series.
            named: The named columns, known ones first, shape (t, k).
            rows: [start, end) of the training part.
        """
        scale = None
        if named.shape[1]:
            columns = (*config.known, *config.past)
            scale = Scaler.fit(Table(**{**vars(table), "values": named, "columns": columns}), rows)
        return cls(
            harmonics=harmonics_of(table.frequency.periods, config.cycle, rows[1] - rows[0]),
            first=str(table.dates[0]),
            offset=table.frequency.offset,
            known=tuple(config.known),
            past=tuple(config.past),
            mean=() if scale is None else tuple(scale.mean.tolist()),
            scale=() if scale is None else tuple(scale.scale.tolist()),
        )

    def tables(self, dates: pd.DatetimeIndex, named: np.ndarray) -> tuple[Tensor, Tensor]:
        """Covariates of every row.

        Args:
            dates: Shape (t,).
            named: The named columns, shape (t, k); rows to come may hold NaN in those of the past.
        Returns:
            Known for the future: harmonics, then named columns, float64, shape (t, q); inputs of networks, (t, k).
        """
        cycles = np.zeros((len(dates), 0))
        if self.harmonics:
            freq = period_freq(self.offset)
            first = pd.Period(self.first, freq)
            cycles = waves((dates.to_period(freq).asi8 - first.ordinal) / first.freq.n, self.harmonics)
        if self.inputs:
            named = (named - np.array(self.mean)) / np.array(self.scale)
        known = np.concatenate([cycles, named[:, : len(self.known)]], 1)
        return torch.from_numpy(known), torch.from_numpy(np.nan_to_num(named))

    def clock(self, known: Tensor) -> Tensor:
        """Cosines and sines of the first two harmonics of the shortest cycle.

        Args:
            known: From `tables`, shape (t, q).
        Returns:
            Shape (t, m), m up to 4, or 0 without a cycle.
        """
        if not self.harmonics:
            return known[:, :0]
        period, count = self.harmonics[0]
        sines = min(2, count, (period - 1) // 2)
        return torch.cat([known[:, : min(2, count)], known[:, count : count + sines]], 1)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Covariates":
        """From what `to_dict` gave, lists for tuples."""
        cycles = tuple((int(p), int(k)) for p, k in data["harmonics"])
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**{**lists, "harmonics": cycles})


def read_series_and_covariates(config: TrainConfig) -> tuple[Table, np.ndarray]:
    """The series of a file, and its named covariates, shape (t, k).

    Args:
        config: data, columns, known, past.
    Raises:
        DataError: As `read_csv`; a column is both; nothing is left to forecast; a covariate is missing somewhere.
    """
    named = (*config.known, *config.past)
    twice = sorted({name for name in named if named.count(name) > 1 or name in (config.columns or ())})
    if twice:
        raise DataError(f"--known, --past, --columns: {twice[0]!r} is there twice; a column is one of the three")
    if not named:
        table = read_csv(config.data, config.columns)
        return table, np.zeros((len(table.dates), 0))
    whole = read_csv(config.data)
    rest = config.columns or tuple(name for name in whole.columns if name not in named)
    if not rest:
        raise DataError(f"{config.data}: no column is left to forecast beside {', '.join(map(repr, named))}")
    series, covariates = read_csv(config.data, rest), read_csv(config.data, named).values
    missing = np.isnan(covariates).any(0)
    if missing.any():
        name = named[int(missing.argmax())]
        raise DataError(f"{config.data}: the covariate {name!r} has empty cells; fill them, or leave it out")
    return series, covariates
