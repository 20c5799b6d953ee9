"""A trained forecaster in GluonTS's dress: it predicts, it is saved and loaded, and it takes in new values one by one.

    predictor.predict(dataset)          forecasts, in GluonTS's classes
    predictor.start(dataset)            read the history once ...
    predictor.update(values)            ... take in the next value of every series, at a cost that does not grow
    predictor.forecast()                ... and forecast from there

On disk: gluonts-config.json, predictor.json (plain data) and network.safetensors. Reading them runs no code.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gluonts.model.forecast import Forecast, QuantileForecast, SampleForecast
from gluonts.model.predictor import Predictor
from torch import Tensor

from ssmcore.engine import load_weights, save_weights

from .conformal import LEVELS, Calibration, recent_errors
from .fitting import whole_window
from .models.blueprint import Blueprint
from .models.network import Network
from .models.window import Prediction, Window
from .series import Schema, Series, read_series
from .update import Stream

WEIGHTS, PLAN = "network.safetensors", "predictor.json"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a fit leaves behind, besides the network."""

    blueprint: Blueprint
    schema: Schema
    calibration: Calibration | None
    """Of the conformal intervals; None where the head has a distribution."""
    num_samples: int = 100
    """Samples of a forecast, where the head draws them."""


class SSMPredictor(Predictor):
    """Forecast series that look like those it was trained on.

    Args:
        network: The fitted network.
        trained: What belongs to it.
    """

    def __init__(self, network: Network, trained: Trained):
        super().__init__(prediction_length=network.horizon)
        self.network, self.trained = network.eval(), trained
        self.stream: Stream | None = None

    def predict(self, dataset: Iterable[Mapping[str, Any]], num_samples: int | None = None) -> Iterator[Forecast]:
        """Forecast what follows each series, in order.

        Args:
            dataset: GluonTS data entries; only the fields that were there in training are read.
            num_samples: Samples a forecast, where the head draws them; None for the predictor's own number.
        Raises:
            ValueError: An entry cannot be used; one sentence that names it.
        """
        for number, entry in enumerate(dataset):
            series = read_series(entry, self.trained.schema, self.prediction_length, number)
            prediction, mean = self.look_ahead(series, num_samples)
            yield make_forecast(series, prediction, mean)

    @torch.no_grad()
    def look_ahead(self, series: Series, num_samples: int | None = None) -> tuple[Prediction, Tensor | None]:
        """The forecast after the last step: values (n, 1, c, 1, h), less the first value; and the point forecast."""
        calibration = self.trained.calibration
        count = 1 if calibration is None else calibration.looks_back(series.length)
        window = self.on_device(whole_window(self.network, series, count))
        hidden = self.network(window)
        if calibration is None:
            return self.network.head.predict(window, hidden, num_samples or self.trained.num_samples), None
        point = self.network.head.point(window, hidden).cpu()
        scale, width = window.scale.cpu(), None
        errors = recent_errors(series.target[None], point, count if calibration.gain else calibration.memory)
        if calibration.gain:
            width = calibration.widths(errors, scale)[:, :, -1]
        return self.interval(point[:, :, -1], errors, scale[..., -1], width)

    def interval(self, point: Tensor, errors: Tensor, scale: Tensor, width: Tensor | None) -> tuple[Prediction, Tensor]:
        """A point forecast (b, c, h) with its conformal quantiles, from errors (b, c, j, h) and scale (b, c), or width
        (b, c, h) where that follows what was covered."""
        calibration = self.trained.calibration
        assert calibration is not None
        missed = calibration.quantiles(errors, scale) if width is None else calibration.adapted(width, scale)
        quantiles = point + missed
        return Prediction(values=quantiles[..., None, :], levels=LEVELS), point

    # -- one value at a time ----------------------------------------------------------------------------------------

    def start(self, dataset: Iterable[Mapping[str, Any]]) -> "Stream":
        """Read the histories once; `update` and `forecast` go on from there.

        Args:
            dataset: GluonTS data entries.
        Returns:
            The stream, which is also kept as `predictor.stream`.
        Raises:
            ValueError: An entry cannot be used, or there is none.
        """
        items = [read_series(entry, self.trained.schema, 0, i) for i, entry in enumerate(dataset)]
        self.stream = Stream.begin(self, items)
        return self.stream

    def update(self, values: Any, *, known: Any = None, past: Any = None, dt: Any = None) -> np.ndarray:
        """Take in the next value of every series; see Stream.update.

        Raises:
            ValueError: `start` has not been called, or as Stream.update.
        """
        if self.stream is None:
            raise ValueError("update: there is no history yet; call start(dataset) first")
        return self.stream.update(values, known=known, past=past, dt=dt)

    def forecast(self, known: Any = None) -> list[Forecast]:
        """Forecast from where the stream is; see Stream.forecast.

        Raises:
            ValueError: `start` has not been called, or as Stream.forecast.
        """
        if self.stream is None:
            raise ValueError("forecast: there is no history yet; call start(dataset) first")
        return self.stream.forecast(known)

    # -- devices, files, equality -----------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> "SSMPredictor":
        """Move the part that was trained by gradient; the linear base stays on the CPU, in float64."""
        for part in (self.network.encoder, self.network.steps, self.network.head):
            if part is not None:
                part.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the part that was trained by gradient is."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def on_device(self, window: Window) -> Window:
        """Shapes as before."""
        return window if self.device.type == "cpu" else window.to(self.device)

    def serialize(self, path: Path) -> None:
        """Write a folder that exists; see the head of this file."""
        super().serialize(path)
        trained = self.trained
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if trained.calibration is not None:
            tensors["sketch"], tensors["inflation"] = trained.calibration.sketch, trained.calibration.inflation
        save_weights(path / WEIGHTS, tensors, {})
        (path / PLAN).write_text(json.dumps(self._plan(), indent=1))

    @classmethod
    def deserialize(cls, path: Path, device: torch.device | str | None = None) -> "SSMPredictor":
        """Read what `serialize` wrote, now or before some fields were there: those have their defaults.

        Args:
            path: The folder.
            device: Where to; None for the CPU.
        Raises:
            ValueError: A file is absent or not one of ours.
        """
        if not (Path(path) / PLAN).is_file():
            raise ValueError(f"SSMPredictor.deserialize: there is no {PLAN} in {path}")
        plan = json.loads((Path(path) / PLAN).read_text())
        tensors, _ = load_weights(Path(path) / WEIGHTS)
        calibration = None
        if plan["memory"] is not None:
            options = {name: plan[name] for name in ("memory", "gain") if name in plan}
            calibration = Calibration(sketch=tensors.pop("sketch"), inflation=tensors.pop("inflation"), **options)
        blueprint = Blueprint.from_dict(plan["blueprint"])
        network = blueprint.build()
        state = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
        # Once all channels shared one effect of the covariates, which was a vector.
        state["base.effect"] = state["base.effect"].view_as(network.base.effect)
        network.load_state_dict(state)
        schema = Schema.from_dict(plan["schema"])
        trained = Trained(blueprint=blueprint, schema=schema, calibration=calibration, num_samples=plan["num_samples"])
        predictor = cls(network, trained)
        return predictor if device is None else predictor.to(device)

    def __eq__(self, other: object) -> bool:
        """Same kind, same plan, same numbers; a stream is no part of it."""
        if not isinstance(other, SSMPredictor) or self._plan() != other._plan():
            return False
        mine, theirs = self.network.state_dict(), other.network.state_dict()
        if mine.keys() != theirs.keys() or any(not torch.equal(mine[k].cpu(), theirs[k].cpu()) for k in mine):
            return False
        one, two = self.trained.calibration, other.trained.calibration
        return one is two or (torch.equal(one.sketch, two.sketch) and torch.equal(one.inflation, two.inflation))

    __hash__ = None

    def _plan(self) -> dict[str, Any]:
        trained = self.trained
        plan = {
            "blueprint": trained.blueprint.to_dict(),
            "schema": asdict(trained.schema),
            "memory": None if trained.calibration is None else trained.calibration.memory,
            "gain": None if trained.calibration is None else trained.calibration.gain,
            "num_samples": trained.num_samples,
        }
        return json.loads(json.dumps(plan))


def make_forecast(series: Series, prediction: Prediction, mean: Tensor | None) -> Forecast:
    """GluonTS's forecast of one item.

    Args:
        series: The item.
        prediction: Values less the first one, shape (n, 1, c, 1, h).
        mean: Point forecast less the first value, shape (1, c, h); None for none.
    """
    names = {"start_date": series.forecast_start, "item_id": series.item_id, "info": series.info}
    values = _in_units(prediction.values[:, 0, :, 0], series)
    if prediction.levels is None:
        return SampleForecast(samples=values, **names)
    keys = [str(level) for level in prediction.levels]
    if mean is not None:
        values, keys = np.concatenate([_in_units(mean, series), values]), ["mean", *keys]
    return QuantileForecast(forecast_arrays=values, forecast_keys=keys, **names)


def _in_units(values: Tensor, series: Series) -> np.ndarray:
    """(n, c, h) less the first value to (n, h) or, multivariate, (n, h, c)."""
    array = (values + series.first[:, None]).double().cpu().numpy()
    return np.swapaxes(array, 1, 2) if series.multivariate else array[:, 0]
