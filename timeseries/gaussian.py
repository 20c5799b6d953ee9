"""Linear Gaussian forecasters as GluonTS predictors: exact intervals, missing values skipped, nothing imputed.

    StructuralEstimator(24).train(dataset)      level, trend and seasons, fitted to every series by itself

A structural model is fitted when it forecasts: `train` only looks at the frequency. Of its candidates the one with the
lowest AIC serves each series. deep_state.py has the one that learns from many series.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gluonts.core.component import validated
from gluonts.model.forecast import Forecast
from gluonts.model.predictor import Predictor
from torch import Tensor

from .config import StructuralConfig
from .conformal import LEVELS
from .frequency import periods_of
from .models.window import Prediction
from .predictor import PLAN, make_forecast
from .series import Schema, Series, period_freq, read_schema, read_series
from .structural import FittedStructural, fit_structural
from .trainable import OTHER_OPTIONS, Entries, Trainable, check_counts

LONGEST_DUMMY = 24
"""Seasons up to this period may have any pattern; longer ones get harmonics."""
HARMONICS = 6


def candidates(freq: str) -> tuple[StructuralConfig, ...]:
    """Structural models that are tried on a series: level or damped trend, without and with the seasons of the step.

    Args:
        freq: Of pandas periods.
    Raises:
        ValueError: pandas does not know the frequency.
    """
    seasons = tuple(p for p in periods_of(freq)[:1] if p > 1)
    harmonics = HARMONICS if seasons and seasons[0] > LONGEST_DUMMY else None
    trends = (StructuralConfig(), StructuralConfig(trend="linear", damping=0.98))
    if not seasons:
        return trends
    with_seasons = [{**asdict(config), "seasons": seasons, "harmonics": harmonics} for config in trends]
    return (*trends, *(StructuralConfig(**options) for options in with_seasons))


class GaussianPredictor(Predictor):
    """What the two predictors share: exact normal quantiles, and files that run no code when they are read.

    Args:
        schema: Of the training data.
        prediction_length: Steps to forecast.
    """

    def __init__(self, schema: Schema, prediction_length: int):
        super().__init__(prediction_length=prediction_length)
        self.schema = schema

    def predict(self, dataset: Entries, num_samples: int | None = None) -> Iterator[Forecast]:
        """Forecast what follows each series, in order; `num_samples` has no meaning for exact quantiles.

        Raises:
            ValueError: An entry cannot be used; one sentence that names it.
        """
        for number, entry in enumerate(dataset):
            series = read_series(entry, self.schema, self.prediction_length, number)
            mean, deviation = self.moments(series)
            normal = torch.distributions.Normal(0.0, 1.0)
            quantiles = [mean + deviation * float(normal.icdf(torch.tensor(level))) for level in LEVELS]
            values = torch.stack(quantiles)[:, None, :, None]
            yield make_forecast(series, Prediction(values=values, levels=LEVELS), mean[None])

    def moments(self, series: Series) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of what follows, less the first value, float64, both (c, h)."""
        raise NotImplementedError

    def serialize(self, path: Path) -> None:
        """Write a folder that exists: predictor.json, and network.safetensors where there is a network."""
        super().serialize(path)
        (path / PLAN).write_text(json.dumps(self.plan(), indent=1))

    def plan(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON has it."""
        plan = {"schema": asdict(self.schema), "prediction_length": self.prediction_length}
        return json.loads(json.dumps(plan))

    @staticmethod
    def read_plan(path: Path) -> tuple[Schema, dict[str, Any]]:
        """What `serialize` wrote.

        Raises:
            ValueError: There is no such file.
        """
        if not (Path(path) / PLAN).is_file():
            raise ValueError(f"deserialize: there is no {PLAN} in {path}")
        plan = json.loads((Path(path) / PLAN).read_text())
        return Schema.from_dict(plan["schema"]), plan

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.plan() == other.plan()

    __hash__ = None


class StructuralPredictor(GaussianPredictor):
    """Fits each series when it forecasts it.

    Args:
        schema: Of the training data.
        prediction_length: Steps to forecast.
        configs: Candidates; the lowest AIC serves.
        longest: Latest values that are looked at.
    """

    def __init__(self, schema: Schema, prediction_length: int, configs: Sequence[StructuralConfig], longest: int):
        super().__init__(schema, prediction_length)
        self.configs, self.longest = tuple(configs), longest

    def fit(self, series: Series) -> list[FittedStructural]:
        """The best candidate of every channel; the first one where a channel has too few values for any.

        Args:
            series: One item.
        """
        y = series.target[:, -self.longest :]
        seen = y[~y.isnan().all(1)]
        if not len(seen):
            return []
        values, tried, criteria = (~seen.isnan()).sum(1), [], []
        for config in self.configs:
            fitted = fit_structural(seen, config)
            unknown = fitted.variances.shape[1] + fitted.model.transition.shape[-1]
            tried.append(fitted)
            # As many states as values explain anything: their forecast is the vague prior.
            criteria.append(torch.where(values > unknown, fitted.aic, torch.inf))
        return [tried[i] for i in torch.stack(criteria).argmin(0).tolist()]

    def moments(self, series: Series) -> tuple[Tensor, Tensor]:
        """See GaussianPredictor."""
        mean = torch.zeros(len(series.target), self.prediction_length, dtype=torch.float64)
        deviation = torch.zeros_like(mean)
        seen = ~series.target[:, -self.longest :].isnan().all(1)
        for row, (channel, fitted) in enumerate(zip(seen.nonzero()[:, 0].tolist(), self.fit(series), strict=True)):
            ahead, variance = fitted.forecast(self.prediction_length)
            mean[channel], deviation[channel] = ahead[row], variance[row].clamp_min(0).sqrt()
        return mean, deviation

    def plan(self) -> dict[str, Any]:
        """See GaussianPredictor."""
        more = {"configs": [asdict(config) for config in self.configs], "longest": self.longest}
        return {**super().plan(), **json.loads(json.dumps(more))}

    @classmethod
    def deserialize(cls, path: Path, device: Any = None) -> "StructuralPredictor":
        """Read what `serialize` wrote; it computes on the CPU.

        Raises:
            ValueError: A file is absent.
        """
        schema, plan = cls.read_plan(path)
        configs = [StructuralConfig(**{**c, "seasons": tuple(c["seasons"])}) for c in plan["configs"]]
        return cls(schema, plan["prediction_length"], configs, plan["longest"])


class StructuralEstimator(Trainable[StructuralPredictor]):
    """Structural models by maximum likelihood, a series at a time.

    Args:
        prediction_length: Steps to forecast.
        freq: Frequency of the series; None takes that of the data.
        configs: Candidates; None for those that suit the frequency.
        longest: Latest values of a series that are looked at.
    Raises:
        ValueError: A value that cannot be used.
    """

    @validated()
    def __init__(self, prediction_length: int, freq: str | None = None, configs: Any = None, longest: int = 2000):
        super().__init__(lead_time=0)
        check_counts(type(self).__name__, prediction_length=prediction_length, longest=longest)
        self.prediction_length, self.longest = prediction_length, longest
        self.freq = None if freq is None else period_freq(freq)
        self.configs = configs

    def _train(
        self, predictor: StructuralPredictor | None, training_data: Entries, validation_data: Entries | None
    ) -> StructuralPredictor:
        """Look at the frequency; nothing is carried over, because each series is fitted when it is forecast."""
        schema = read_schema(training_data, self.freq, covariates=False)
        made = StructuralPredictor(
            schema, self.prediction_length, self.configs or candidates(schema.freq), self.longest
        )
        if predictor is not None and made != predictor:
            raise ValueError(OTHER_OPTIONS)
        return made
