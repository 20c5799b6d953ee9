"""How good a predictor would have been: forecasts from many points of series that go on after each.

One look at each series serves all its origins, which is why this is fast; every forecast uses only what came before it.
A predictor of another kind (structural models, GluonTS's own) forecasts from one origin after the other. Scores are
those of the GIFT-Eval and fev leaderboards: MASE, and the weighted quantile loss over nine deciles as CRPS.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gluonts.model.estimator import Estimator
from gluonts.model.forecast import QuantileForecast
from gluonts.model.predictor import Predictor
from torch import Tensor

from .conformal import LEVELS, recent_errors
from .fitting import targets_after, whole_window
from .models.window import Window
from .predictor import SSMPredictor
from .series import Series, read_schema, read_series
from .trainable import check_counts, check_kinds

DECILES = tuple(round(0.1 * k, 1) for k in range(1, 10))
BY_TIME = ("target", "past_feat_dynamic_real", "dt")
"""Fields of an entry that end with its target."""


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """Forecasts and outcomes: i forecasts of h steps of a channel each."""

    levels: tuple[float, ...]
    quantiles: np.ndarray
    """Shape (levels, i, h)."""
    outcomes: np.ndarray
    """NaN where missing, shape (i, h)."""
    seasonal_errors: np.ndarray
    """In-sample error of the seasonal-naive forecast before each origin, shape (i,)."""
    items: tuple[Any, ...]
    """item_id of each."""

    def quantile(self, level: float) -> np.ndarray:
        """Of every forecast, shape (i, h).

        Raises:
            ValueError: The level was not kept.
        """
        if level not in self.levels:
            kept = ", ".join(map(str, self.levels))
            raise ValueError(f"Backtest: level {level} was not kept, only {kept}; give backtest the levels you need")
        return self.quantiles[self.levels.index(level)]

    def coverage(self, low: float = 0.1, high: float = 0.9) -> np.ndarray:
        """Share of outcomes between two levels, for every step, shape (h,); NaN without an outcome. As `quantile`."""
        inside = (self.outcomes >= self.quantile(low)) & (self.outcomes <= self.quantile(high))
        return _mean(np.where(np.isnan(self.outcomes), np.nan, inside), 0)

    @property
    def mase(self) -> float:
        """Mean over forecasts of the absolute error of the median, in seasonal errors; without forecasts of what had
        never changed, whose seasonal error is 0."""
        return self._in_seasonal_errors(_mean(np.abs(self.outcomes - self.quantile(0.5)), 1))

    @property
    def wql(self) -> float:
        """Mean over nine deciles of 2 sum(pinball loss) / sum |outcome|."""
        return float(np.nansum(self._decile_losses()) / len(DECILES) / np.nansum(np.abs(self.outcomes)))

    @property
    def sql(self) -> float:
        """Mean over forecasts and nine deciles of twice the mean pinball loss, in seasonal errors, as `mase`."""
        return self._in_seasonal_errors(_mean(self._decile_losses().mean(0), 1))

    def _in_seasonal_errors(self, losses: np.ndarray) -> float:
        usable = self.seasonal_errors > 0
        return float(_mean(losses[usable] / self.seasonal_errors[usable], 0))

    def _decile_losses(self) -> np.ndarray:
        """Twice the pinball losses, shape (deciles, i, h)."""
        error = self.outcomes - np.stack([self.quantile(level) for level in DECILES])
        levels = np.array(DECILES)[:, None, None]
        return 2 * np.maximum(levels * error, (levels - 1) * error)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Of those that are known along an axis; NaN where none is."""
    known = (~np.isnan(values)).sum(axis)
    return np.where(known, np.nansum(values, axis) / np.maximum(known, 1), np.nan)


def backtest(
    predictor: Predictor,
    dataset: Iterable[Mapping[str, Any]],
    *,
    windows: int,
    distance: int | None = None,
    season: int = 1,
    levels: Sequence[float] = LEVELS,
) -> Backtest:
    """Forecast the last `windows` windows of every series from what came before each.

    Args:
        predictor: Not trained on those windows, if the scores are to mean anything. Ours, or any of GluonTS.
        dataset: GluonTS data entries that hold the outcomes.
        windows: Forecasts of every series.
        distance: Steps from one origin to the next; None for the prediction length, windows side by side.
        season: Of the seasonal error that MASE divides by, in steps.
        levels: Quantile levels to keep; the deciles must be among them for `wql`.
    Raises:
        ValueError: An argument or an entry cannot be used, or a series is too short.
    """
    check_kinds("backtest", predictor=(predictor, Predictor, "a predictor, as estimator.train(dataset) returns it"))
    check_counts("backtest", windows=windows, distance=distance, season=season)
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"backtest: levels={list(levels)}, expected one or more between 0 and 1")
    h = predictor.prediction_length
    distance = h if distance is None else distance
    parts: list[tuple] = []
    for number, entry in enumerate(dataset):
        ours = isinstance(predictor, SSMPredictor)
        schema = predictor.trained.schema if ours else read_schema([entry], None, covariates=False)
        series = read_series(entry, schema, 0, number)
        first = series.length - h - (windows - 1) * distance - 1
        if first < 1:
            raise ValueError(
                f"item {entry.get('item_id', number)!r}: {series.length} steps are too few for {windows} windows of {h}"
            )
        origins = torch.arange(first, series.length - h, distance)
        if ours:
            quantiles = _quantiles(predictor, series, origins, tuple(levels))
        else:
            quantiles = _one_by_one(predictor, entry, series, origins, levels)
        raw = series.target + series.first[:, None]
        outcomes = targets_after(series, origins, h) + series.first[:, None, None]
        errors = torch.stack([seasonal_error(raw[:, : int(origin) + 1], season) for origin in origins], 1)
        parts.append((quantiles.flatten(1, 2), outcomes.flatten(0, 1), errors.flatten(), [series.item_id] * len(raw)))
    if not parts:
        raise ValueError("backtest: the dataset has no entries")
    return Backtest(
        levels=tuple(levels),
        quantiles=torch.cat([p[0] for p in parts], 1).numpy(),
        outcomes=torch.cat([p[1] for p in parts]).numpy(),
        seasonal_errors=torch.cat([p[2] for p in parts]).numpy(),
        items=tuple(name for p in parts for name in p[3] for _ in range(windows)),
    )


def cross_validate(
    estimator: Estimator, dataset: Iterable[Mapping[str, Any]], *, folds: int, season: int = 1
) -> list[Backtest]:
    """Train anew before each of the last `folds` windows, side by side, and forecast that one.

    Args:
        estimator: Ours, or any of GluonTS.
        dataset: GluonTS data entries.
        folds: How often.
        season: As in `backtest`.
    Returns:
        One result for each fold, oldest first.
    Raises:
        ValueError: An argument or an entry cannot be used, or a series is too short.
    """
    check_kinds("cross_validate", estimator=(estimator, Estimator, "an estimator, which is trained before each fold"))
    check_counts("cross_validate", folds=folds, season=season)
    entries, h = list(dataset), estimator.prediction_length
    schema = read_schema(entries, None, covariates=False)
    for number, entry in enumerate(entries):
        length = read_series(entry, schema, 0, number).length
        if length < folds * h + 2:
            name = entry.get("item_id", number)
            raise ValueError(f"item {name!r}: {length} steps are too few to train before {folds} folds of {h}")
    results = []
    for fold in range(folds, 0, -1):
        predictor = estimator.train([_cut(entry, fold * h) for entry in entries])
        known = [_cut(entry, (fold - 1) * h) for entry in entries]
        results.append(backtest(predictor, known, windows=1, season=season))
    return results


def seasonal_error(values: Tensor, season: int) -> Tensor:
    """Mean |x[t] - x[t - season]| of the observed pairs, shape (c, t) to (c,); the season is 1 in shorter series."""
    lag = season if season < values.shape[1] else 1
    return (values[:, lag:] - values[:, :-lag]).abs().nanmean(1)


@torch.no_grad()
def _quantiles(predictor: SSMPredictor, series: Any, origins: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Shape (levels, c, origins, h), in the units of the data."""
    network, calibration = predictor.network, predictor.trained.calibration
    memory = 0 if calibration is None else calibration.looks_back(int(origins[0]) + 1)
    count = min(series.length, series.length - int(origins[0]) + memory)
    window = predictor.on_device(whole_window(network, series, count))
    hidden = network(window)
    places = origins - (series.length - count)
    if calibration is None:
        made = network.head.predict(*_at(window, hidden, places), predictor.trained.num_samples)
        values = made.values[:, 0].double().cpu()
        if made.levels is None:
            result = torch.quantile(values, torch.tensor(levels, dtype=torch.float64), dim=0)
        else:  # a level between two, or further out, as GluonTS reads it off them
            flat, keys = values.flatten(1).numpy(), [str(level) for level in made.levels]
            forecast = QuantileForecast(flat, start_date=series.forecast_start, forecast_keys=keys)
            result = torch.from_numpy(np.stack([forecast.quantile(level) for level in levels]))
            result = result.view(-1, *values.shape[1:])
        return result + series.first[:, None, None]
    point = network.head.point(window, hidden).cpu()
    # Rows of errors go by their outcome, so what one origin knows is a slice of what the last one knows.
    errors, rows = recent_errors(series.target[None], point, count), []
    if calibration.gain:
        scale = window.scale.cpu()
        width = calibration.widths(errors, scale)
        rows = [point[:, :, p] + calibration.adapted(width[:, :, p], scale[..., p], levels) for p in places.tolist()]
        return torch.stack(rows, 3)[:, 0] + series.first[:, None, None]
    for origin, place in zip(origins.tolist(), places.tolist(), strict=True):
        stop = errors.shape[2] - (series.length - 1 - origin)
        known = errors[:, :, max(0, stop - calibration.memory) : stop]
        rows.append(point[:, :, place] + calibration.quantiles(known, window.scale[..., place].cpu(), levels))
    return torch.stack(rows, 3)[:, 0] + series.first[:, None, None]


def _at(window: Window, hidden: Any, places: Tensor) -> tuple:
    """Window and hidden at some of their origins only."""
    names = {"known": 1, "base": 2, "scale": 2, "level": 2}
    picked = {name: getattr(window, name).index_select(axis, places) for name, axis in names.items()}
    return replace(window, **picked), replace(
        hidden, features=hidden.features[:, :, places], scale=hidden.scale[:, :, places]
    )


def _one_by_one(
    predictor: Predictor, entry: Mapping[str, Any], series: Series, origins: Tensor, levels: Sequence[float]
) -> Tensor:
    """As `_quantiles`, of any predictor."""
    forecasts = predictor.predict([_cut(entry, series.length - 1 - origin) for origin in origins.tolist()])
    found = [np.stack([forecast.quantile(level) for level in levels]) for forecast in forecasts]
    values = torch.from_numpy(np.stack(found, 1)).double()  # (levels, origins, h) or (levels, origins, h, c)
    return values.permute(0, 3, 1, 2) if series.multivariate else values[:, None]


def _cut(entry: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """An entry without its last steps; what is known for the future stays."""
    cut = {name: np.asarray(entry[name])[..., :-steps] for name in BY_TIME if steps and entry.get(name) is not None}
    return {**entry, **cut}
