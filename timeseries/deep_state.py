"""DeepState as a GluonTS estimator: one network for all series sets the noise of a structural model, step by step.

    DeepStateEstimator(24).train(dataset)

The network reads the calendar, the covariates and the static numbers of a series, and never its values, which the
Kalman filter alone takes in: intervals are exact, missing values are skipped, nothing is imputed.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from gluonts.core.component import validated
from gluonts.time_feature import time_features_from_frequency_str
from torch import Tensor
from torch.utils.data import Dataset

from ssmcore.engine import load_weights, save_weights

from .config import FitConfig, StructuralConfig
from .frequency import periods_of
from .gaussian import GaussianPredictor, candidates
from .models.deep_state import DeepState
from .predictor import WEIGHTS
from .series import Schema, Series, period_freq, read_schema, read_series
from .trainable import OTHER_OPTIONS, Entries, Trainable, check_counts, check_kinds


class DeepStatePredictor(GaussianPredictor):
    """Forecast by a trained DeepState.

    Args:
        network: The model.
        schema: Of the training data.
        prediction_length: Steps to forecast.
        context_length: Latest values that the filter takes in.
        options: What builds the network again.
    """

    def __init__(
        self, network: DeepState, schema: Schema, prediction_length: int, context_length: int, options: dict[str, Any]
    ):
        super().__init__(schema, prediction_length)
        self.network, self.context_length, self.options = network.eval(), context_length, options

    @torch.no_grad()
    def moments(self, series: Series) -> tuple[Tensor, Tensor]:
        """See GaussianPredictor."""
        end = series.length
        target, covariates, static = cut(series, end, self.context_length, self.prediction_length)
        mean, variance = self.network(target, covariates.expand(len(target), -1, -1), static)
        return mean, variance.clamp_min(0).sqrt()

    def serialize(self, path: Path) -> None:
        """See GaussianPredictor."""
        super().serialize(path)
        save_weights(path / WEIGHTS, self.network.state_dict(), {})

    def plan(self) -> dict[str, Any]:
        """See GaussianPredictor."""
        return {
            **super().plan(),
            "context_length": self.context_length,
            "options": json.loads(json.dumps(self.options)),
        }

    @classmethod
    def deserialize(cls, path: Path, device: Any = None) -> "DeepStatePredictor":
        """Read what `serialize` wrote; it computes on the CPU.

        Raises:
            ValueError: A file is absent or not one of ours.
        """
        schema, plan = cls.read_plan(path)
        network = build(plan["options"])
        network.load_state_dict(load_weights(Path(path) / WEIGHTS)[0])
        return cls(network, schema, plan["prediction_length"], plan["context_length"], plan["options"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeepStatePredictor) or not super().__eq__(other):
            return False
        mine, theirs = self.network.state_dict(), other.network.state_dict()
        return all(torch.equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None


class DeepStateEstimator(Trainable[DeepStatePredictor]):
    """DeepState: a network sets the noise of a structural model.

    Args:
        prediction_length: Steps to forecast.
        freq: Frequency of the series; None takes that of the data.
        context_length: Values of a training window, and those that a forecast's filter takes in; None for four seasons,
            at least 32 and three horizons.
        config: Components; None for a damped trend and the first season of the frequency.
        mixer: Any causal mixer, the network's.
        d_model: Width of the network.
        num_layers: Layers of it.
        fit: How it is trained.
        callbacks: Lightning callbacks, kept for every training.
    Raises:
        ValueError: A value that cannot be used.
    """

    @validated()
    def __init__(
        self,
        prediction_length: int,
        freq: str | None = None,
        context_length: int | None = None,
        config: Any = None,
        mixer: Any = "lstm",
        d_model: int = 32,
        num_layers: int = 2,
        fit: Any = None,
        callbacks: Any = (),
    ):
        super().__init__(lead_time=0)
        check_counts(type(self).__name__, prediction_length=prediction_length, context_length=context_length)
        self.prediction_length, self.context_length = prediction_length, context_length
        self.freq = None if freq is None else period_freq(freq)
        self.config, self.mixer, self.d_model, self.num_layers = config, mixer, d_model, num_layers
        self.fit, self.callbacks = fit or FitConfig(), list(callbacks)
        check_kinds(type(self).__name__, fit=(self.fit, FitConfig, "a FitConfig"))

    def _train(
        self, predictor: DeepStatePredictor | None, training_data: Entries, validation_data: Entries | None
    ) -> DeepStatePredictor:
        entries = list(training_data)
        schema = read_schema(entries, self.freq, covariates=True) if predictor is None else predictor.schema
        series = [read_series(entry, schema, 0, i) for i, entry in enumerate(entries)]
        apart = None
        if validation_data is not None:
            apart = [read_series(entry, schema, 0, i) for i, entry in enumerate(validation_data)]
        periods = periods_of(schema.freq)
        context = self.context_length or max(4 * periods[0], 32, 3 * self.prediction_length)
        config = self.config or candidates(schema.freq)[-1]
        torch.manual_seed(self.fit.seed)
        options = {
            "covariates": len(clock(pd.period_range("2000-01-03", periods=2, freq=schema.freq))[0]) + schema.known,
            "static": schema.static,
            "config": asdict(config),
            "mixer": self.mixer,
            "d_model": self.d_model,
            "num_layers": self.num_layers,
        }
        network = build(options)
        made = DeepStatePredictor(network, schema, self.prediction_length, context, options)
        if predictor is not None:
            if made.plan() != predictor.plan():
                raise ValueError(OTHER_OPTIONS)
            network.load_state_dict(predictor.network.state_dict())
        learn(network, series, apart, context, self.fit, self.callbacks)
        return made


def build(options: Mapping[str, Any]) -> DeepState:
    """A new network from plain data; raises as DeepState does."""
    config = {**options["config"], "seasons": tuple(options["config"]["seasons"])}
    return DeepState(**{**options, "config": StructuralConfig(**config)})


def clock(index: pd.PeriodIndex) -> Tensor:
    """What the calendar says of every step, float32, shape (t, k), at least one feature (a constant)."""
    offset = re.sub(r"^(\d*)([MQY])(?=-|$)", r"\1\2E", index.freqstr)  # periods say M where offsets say ME
    features = [feature(index) for feature in time_features_from_frequency_str(offset)]
    table = np.stack([*features, np.ones(len(index))], 1)
    return torch.from_numpy(table.astype(np.float32))


def cut(series: Series, end: int, context: int, ahead: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """A window that ends before step `end`: target (c, t), covariates (1, t + ahead, k), static (c, s) or None.

    Args:
        series: One item.
        end: Steps seen.
        context: t; missing values stand before the first step.
        ahead: Steps after the window whose covariates are wanted.
    """
    start = max(end - context, 0)
    short = context - (end - start)
    target = torch.nn.functional.pad(series.target[:, start:end], (short, 0), value=torch.nan)
    index = pd.period_range(series.start + (start - short), periods=context + ahead, freq=series.start.freq)
    known = torch.nn.functional.pad(series.known[start : end + ahead], (0, 0, short, 0))
    covariates = torch.cat([clock(index), known], 1)[None]
    static = series.static.expand(len(target), -1) if len(series.static) else None
    return target, covariates, static


class StateWindows(Dataset):
    """Windows of single channels, for the likelihood; places are spread over each series, the last one always there.

    Args:
        series: Items.
        context: Steps of a window.
        share: Part of each series' places to take, as (from, to) of the whole.
    """

    def __init__(self, series: Sequence[Series], context: int, share: tuple[float, float]):
        self.series, self.context = series, context
        self.places: list[tuple[int, int, int]] = []
        for number, item in enumerate(series):
            ends = range(min(context, item.length), item.length + 1)
            taken = ends[int(share[0] * len(ends)) : max(int(share[1] * len(ends)), 1)] or ends[-1:]
            self.places += [(number, c, end) for c in range(len(item.target)) for end in taken]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        number, channel, end = self.places[index]
        target, covariates, static = cut(self.series[number], end, self.context, 0)
        return target[channel], covariates[0], torch.zeros(0) if static is None else static[channel]


class _Likelihood(torch.nn.Module):
    """The network with the loss that the trainer calls."""

    def __init__(self, network: DeepState):
        super().__init__()
        self.network = network

    def loss(self, target: Tensor, covariates: Tensor, static: Tensor) -> Tensor:
        """Negative log-likelihood a value, in units of each window; windows without a value say nothing."""
        seen = ~target.isnan().all(1)
        if not seen.any():
            return target.new_zeros((), dtype=torch.float64).requires_grad_()
        given = static[seen] if static.shape[1] else None
        return self.network.standard_loss(target[seen], covariates[seen], given)


def learn(
    network: DeepState,
    series: Sequence[Series],
    apart: Sequence[Series] | None,
    context: int,
    config: FitConfig,
    callbacks: Sequence[Any],
) -> None:
    """Train in place; the best weights on the validation windows are kept, and the working folder stays as it was.

    Args:
        network: To be trained.
        series: To learn from.
        apart: To choose by; None for the last share of each series.
        context: Steps of a window.
        config: Epochs, rates, seed.
        callbacks: Lightning callbacks of the user.
    """
    from ssmcore.engine import RunSettings, fit, make_loader

    from .task import NetworkTask

    border = 1.0 if apart is not None else 1 - config.validation_share
    train = StateWindows(series, context, (0.0, border))
    held = StateWindows(apart if apart is not None else series, context, (0.0 if apart is not None else border, 1.0))
    loader = make_loader(train, config.batch_size, seed=config.seed, steps_per_epoch=config.steps_per_epoch)
    check = make_loader(
        held, config.batch_size, seed=0, shuffle=False, steps_per_epoch=max(1, 2048 // config.batch_size)
    )
    settings = RunSettings(
        epochs=config.epochs,
        seed=config.seed,
        monitor="val_loss",
        patience=config.patience,
        accelerator="cpu",  # the filter is native there
        silent=True,
    )
    model = _Likelihood(network)
    task = NetworkTask(model, config.lr, config.weight_decay, config.epochs * len(loader))
    with tempfile.TemporaryDirectory() as folder:
        fit(task, loader, check, settings, Path(folder), callbacks)
        best = Path(folder) / "best.safetensors"
        if best.is_file():
            model.load_state_dict(load_weights(best)[0])
    network.eval()
