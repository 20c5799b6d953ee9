"""A trained forecaster: the network, the scaler and what the columns were; one safetensors file holds it all."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssmcore.engine import load_weights, save_weights

from .config import PatchConfig
from .conformal import Calibration, recent_errors
from .data import Scaler
from .errors import DataError
from .models.linear_ssm import LinearSSM

MEMORY, FEWEST = 2000, 30
"""Errors a step that intervals are made of, at most and at least."""


@dataclass(frozen=True, kw_only=True)
class Forecaster:
    """Forecasts in the units of the file."""

    model: nn.Module
    """LinearSSM or PatchForecaster, in standard units."""
    name: str
    """linear_ssm, s4d or mamba."""
    scaler: Scaler
    """Standard units of the training part."""
    columns: tuple[str, ...]
    """Series, in the order of the scaler."""
    offset: str
    """pandas offset alias of the step."""

    @property
    def linear(self) -> LinearSSM:
        """The linear model: the whole, or the base of it."""
        return self.model if isinstance(self.model, LinearSSM) else self.model.linear

    @property
    def note(self) -> dict[str, Any]:
        """What has to be known, besides the tensors, to build this again."""
        patch = None if isinstance(self.model, LinearSSM) else asdict(self.model.config)
        return {
            "model": self.name,
            "prediction_length": self.linear.prediction_length,
            "context_length": self.linear.context_length,
            "patch": patch,
            "columns": list(self.columns),
            "offset": self.offset,
            "mean": self.scaler.mean.tolist(),
            "scale": self.scaler.scale.tolist(),
        }

    def from_origins(self, values: Tensor) -> Callable[[Tensor], Tensor]:
        """Forecasts from many points of the same series; a `metrics.Method`.

        Args:
            values: Series from their first value on, in standard units, NaN where missing, float64, shape (c, t).
        Returns:
            A function of origins (last rows seen), int64, shape (o,), that gives forecasts (c, o, h) in standard units.
        """
        if isinstance(self.model, LinearSSM):
            features, last, _ = self.model.features(values)
            return lambda origins: self.model.read_out(features[:, origins], last[:, origins])
        length, weight = self.linear.context_length, self.model.encoder.head.weight
        windows = values.unfold(1, length, 1)

        @torch.no_grad()
        def forecast(origins: Tensor) -> Tensor:
            past = windows[:, origins - length + 1].transpose(0, 1)
            return self.model.eval()(past.to(weight)).transpose(0, 1).double().cpu()

        return forecast

    def predict(self, values: np.ndarray) -> np.ndarray:
        """What follows the last row.

        Args:
            values: In the units of the file, NaN where missing, shape (t, c).
        Returns:
            float64, shape (h, c).
        Raises:
            DataError: Fewer rows than the context needs.
        """
        length = self.linear.context_length
        if len(values) < (length or 1):
            raise DataError(f"{len(values)} rows are too few: the forecaster looks back at {length or 1}")
        past = torch.from_numpy(self.scaler.transform(values).T.copy())
        with torch.no_grad():
            if isinstance(self.model, LinearSSM):
                future = self.model(past)
            else:
                future = self.model.eval()(past[None, :, -length:].to(self.model.encoder.head.weight))[0]
        return self.scaler.inverse(future.double().cpu().numpy().T)

    def quantiles(self, values: np.ndarray, levels: Sequence[float]) -> np.ndarray | None:
        """Conformal quantiles of what follows the last row, from the errors of forecasts made along the past.

        Args:
            values: In the units of the file, NaN where missing, shape (t, c).
            levels: n of them.
        Returns:
            float64, shape (n, h, c), rising in n; None where the past has the outcome of too few forecasts.
        """
        horizon, linear = self.linear.prediction_length, isinstance(self.model, LinearSSM)
        memory = MEMORY if linear else MEMORY // 10  # a network is run once a forecast
        past = torch.from_numpy(self.scaler.transform(values).T.copy())
        first = max(len(values) - memory - horizon, (self.linear.context_length or 1) - 1)
        origins = torch.arange(first, len(values))
        if len(origins) < horizon + FEWEST:
            return None
        with torch.no_grad():
            made = torch.cat([self.from_origins(row)(origins) for row in past.split(1)])[None]
        errors = recent_errors(past[None], made, min(memory, len(origins) - horizon))
        unknown = Calibration(
            sketch=torch.zeros(100, horizon).double(), inflation=torch.ones(horizon).double(), memory=0
        )
        quantiles = made[0, None, :, -1] + unknown.quantiles(errors, torch.ones(1, len(past)).double(), levels)[:, 0]
        return self.scaler.inverse(quantiles.transpose(1, 2).numpy())

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file.

        Args:
            path: Where; replaced if it exists.
        """
        save_weights(path, self.model.state_dict(), self.note)

    @classmethod
    def load(cls, path: str | Path) -> "Forecaster":
        """Read what `save`, or a training run, wrote.

        Args:
            path: A .safetensors file, or a run folder, whose best.safetensors is taken.
        Raises:
            ValueError: No such file, or not one of ours.
        """
        path = Path(path) / "best.safetensors" if Path(path).is_dir() else Path(path)
        tensors, note = load_weights(path)
        if "prediction_length" not in note:
            raise ValueError(f"Forecaster.load: {path} was not written by timeseries.train")
        prefix = "" if note["patch"] is None else "linear."
        poles = (tensors[prefix + "time_constants"], tensors[prefix + "angles"])
        model: nn.Module = LinearSSM(note["prediction_length"], *poles, context_length=note["context_length"])
        if note["patch"] is not None:
            from .models.patch_forecaster import PatchForecaster

            model = PatchForecaster(model, note["model"], PatchConfig(**note["patch"]))
        model.load_state_dict(tensors)
        return cls(
            model=model.eval(),
            name=note["model"],
            scaler=Scaler(mean=np.array(note["mean"]), scale=np.array(note["scale"])),
            columns=tuple(note["columns"]),
            offset=note["offset"],
        )
