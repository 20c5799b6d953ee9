"""A trained forecaster: the network, the scaler and what the columns were; one safetensors file holds it all."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssmcore.engine import load_weights, save_weights

from .conformal import Calibration, recent_errors
from .covariates import Covariates
from .data import Scaler
from .errors import DataError
from .models.known_effect import KnownEffect
from .models.linear_ssm import LinearSSM
from .models.own_read_out import OwnReadOut

MEMORY, FEWEST = 2000, 30
"""Errors a step that intervals are made of, at most and at least."""


@dataclass(frozen=True, kw_only=True)
class Forecaster:
    """Forecasts in the units of the file."""

    model: nn.Module
    """LinearSSM, OwnReadOut or WindowForecaster, in standard units, of series less the effect of what is known."""
    name: str
    """As --model of timeseries.train."""
    scaler: Scaler
    """Standard units of the training part."""
    columns: tuple[str, ...]
    """Series, in the order of the scaler."""
    offset: str
    """pandas offset alias of the step."""
    covariates: Covariates
    """What is known of a row."""
    effect: KnownEffect
    """What that does to the series."""

    @property
    def linear(self) -> LinearSSM:
        """The linear model: the whole, or the base of it."""
        return self.model if isinstance(self.model, LinearSSM) else self.model.linear

    @property
    def note(self) -> dict[str, Any]:
        """What has to be known, besides the tensors, to build this again."""
        network = own = None
        if isinstance(self.model, OwnReadOut):
            own = {"series": len(self.model.own), "clock": len(self.model.moving)}
        elif not isinstance(self.model, LinearSSM):
            network = {"config": asdict(self.model.config), "alone": self.model.alone}
        return {
            "model": self.name,
            "prediction_length": self.linear.prediction_length,
            "context_length": self.linear.context_length,
            "network": network,
            "own": own,
            "columns": list(self.columns),
            "offset": self.offset,
            "mean": self.scaler.mean.tolist(),
            "scale": self.scaler.scale.tolist(),
            "covariates": self.covariates.to_dict(),
            "effect": self.effect.weight.tolist(),
        }

    def bare(
        self, values: Tensor, inputs: Tensor | None = None, clock: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Forecasts of series less the effect of what is known, from many points of them.

        Args:
            values: Series from their first value on, in standard units less the effect, NaN where missing, float64,
                shape (c, t): some of the series, unless `together`.
            inputs: Named covariates, shape (t, k); None without any.
            clock: Of every row, as `Covariates.clock` gives it, shape (t, m); OwnReadOut needs it.
        Returns:
            A function of origins (last rows seen), int64, shape (o,), that gives forecasts (c, o, h) of the same kind.
        """
        if isinstance(self.model, OwnReadOut):
            return self.model.from_origins(values, clock)
        if isinstance(self.model, LinearSSM):
            features, last, _ = self.model.features(values)
            return lambda origins: self.model.read_out(features[:, origins], last[:, origins])
        length, weight = self.linear.context_length, self.model.head.weight
        windows = values.unfold(1, length, 1)
        around = (values.new_zeros(values.shape[1], 0) if inputs is None else inputs).unfold(0, length, 1)

        @torch.no_grad()
        def forecast(origins: Tensor) -> Tensor:
            past = windows[:, origins - length + 1].transpose(0, 1).to(weight)
            made = self.model.eval()(past, around[origins - length + 1].to(weight))
            return made.transpose(0, 1).double().cpu()

        return forecast

    def method(self, known: Tensor, inputs: Tensor | None = None) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
        """Forecasts in standard units; a `metrics.Method` that wants all series at once.

        Args:
            known: Covariates of all rows and of h more, where any are known, shape (t + h, q).
            inputs: Named covariates, shape (t, k).
        """

        def begin(values: Tensor) -> Callable[[Tensor], Tensor]:
            bare = values - self.effect(known)[:, : values.shape[1]]
            forecast = self.bare(bare, inputs, self.covariates.clock(known))
            horizon = self.linear.prediction_length
            return lambda origins: forecast(origins) + self.effect.ahead(known, origins, horizon)

        return begin

    @property
    def together(self) -> bool:
        """Whether the model has to see all series at once."""
        if isinstance(self.model, OwnReadOut) or self.name == "s_mamba":
            return True
        return getattr(getattr(self.model, "config", None), "channels", "") == "together"

    def predict(self, values: np.ndarray, known: Tensor, inputs: Tensor) -> np.ndarray:
        """What follows the last row.

        Args:
            values: In the units of the file, NaN where missing, shape (t, c).
            known: Covariates of its rows and of the h after them, shape (t + h, q).
            inputs: Named covariates of its rows, shape (t, k).
        Returns:
            float64, shape (h, c).
        Raises:
            DataError: Fewer rows than the context needs.
        """
        length = self.linear.context_length or 1
        if len(values) < length:
            raise DataError(f"{len(values)} rows are too few: the forecaster looks back at {length}")
        past = torch.from_numpy(self.scaler.transform(values).T.copy())
        future = self.method(known, inputs)(past)(torch.tensor([len(values) - 1]))[:, 0]
        return self.scaler.inverse(future.numpy().T)

    def quantiles(
        self, values: np.ndarray, known: Tensor, inputs: Tensor, levels: Sequence[float]
    ) -> np.ndarray | None:
        """Conformal quantiles of what follows the last row, from the errors of forecasts made along the past.

        Args:
            values, known, inputs: As in `predict`.
            levels: n of them.
        Returns:
            float64, shape (n, h, c), rising in n; None where the past has the outcome of too few forecasts.
        """
        horizon, linear = self.linear.prediction_length, isinstance(self.model, LinearSSM | OwnReadOut)
        memory = MEMORY if linear else MEMORY // 10  # a network is run once a forecast
        past = torch.from_numpy(self.scaler.transform(values).T.copy())
        first = max(len(values) - memory - horizon, (self.linear.context_length or 1) - 1)
        origins = torch.arange(first, len(values))
        if len(origins) < horizon + FEWEST:
            return None
        effect, clock = self.effect(known), self.covariates.clock(known)
        past = past - effect[:, : len(values)]
        with torch.no_grad():
            parts = past.split(len(past) if self.together else 1)
            made = torch.cat([self.bare(row, inputs, clock)(origins) for row in parts])[None]
        errors = recent_errors(past[None], made, min(memory, len(origins) - horizon))
        unknown = Calibration(
            sketch=torch.zeros(100, horizon).double(), inflation=torch.ones(horizon).double(), memory=0
        )
        point = made[0, None, :, -1] + effect[None, :, len(values) : len(values) + horizon]
        quantiles = point + unknown.quantiles(errors, torch.ones(1, len(past)).double(), levels)[:, 0]
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
        own = note.get("own")
        prefix = "" if note["network"] is None and own is None else "linear."
        poles = (tensors[prefix + "time_constants"], tensors[prefix + "angles"])
        model: nn.Module = LinearSSM(note["prediction_length"], *poles, context_length=note["context_length"])
        covariates = Covariates.from_dict(note["covariates"])
        if note["network"] is not None:
            from .models.window_forecaster import MIXERS, WindowForecaster, read_config

            config = read_config(note["model"], note["network"]["config"])
            alone = note["network"]["alone"]
            model = WindowForecaster(model, MIXERS[note["model"]], config, inputs=covariates.inputs, alone=alone)
        if own is not None:
            model = OwnReadOut(model, own["series"], own["clock"])
        effect = KnownEffect(len(note["effect"]), len(note["columns"]))
        effect.weight.copy_(torch.tensor(note["effect"], dtype=torch.float64).view_as(effect.weight))
        model.load_state_dict(tensors)
        return cls(
            model=model.eval(),
            name=note["model"],
            scaler=Scaler(mean=np.array(note["mean"]), scale=np.array(note["scale"])),
            columns=tuple(note["columns"]),
            offset=note["offset"],
            covariates=covariates,
            effect=effect,
        )
