"""How good a predictor would have been: forecasts from many points of series that go on after each.

One look at each series serves all its origins, which is why this is fast; every forecast uses only what came before it.
Scores are those of the GIFT-Eval and fev leaderboards: MASE, and the weighted quantile loss over nine deciles as CRPS.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gluonts.model.estimator import Estimator
from torch import Tensor

from .conformal import LEVELS, recent_errors
from .fitting import targets_after, whole_window
from .models.window import Window
from .predictor import SSMPredictor
from .series import read_series

DECILES = tuple(round(0.1 * k, 1) for k in range(1, 10))


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

    def coverage(self, low: float = 0.1, high: float = 0.9) -> np.ndarray:
        """Share of outcomes between two levels, for every step, shape (h,)."""
        lower, upper = (self.quantiles[self.levels.index(level)] for level in (low, high))
        inside = (self.outcomes >= lower) & (self.outcomes <= upper)
        return np.nanmean(np.where(np.isnan(self.outcomes), np.nan, inside), axis=0)

    @property
    def mase(self) -> float:
        """Mean over forecasts of the absolute error of the median, in seasonal errors."""
        median = self.quantiles[self.levels.index(0.5)]
        return float(np.nanmean(np.nanmean(np.abs(self.outcomes - median), 1) / self.seasonal_errors))

    @property
    def wql(self) -> float:
        """Mean over nine deciles of 2 sum(pinball loss) / sum |outcome|."""
        return float(np.nansum(self._decile_losses()) / len(DECILES) / np.nansum(np.abs(self.outcomes)))

    @property
    def sql(self) -> float:
        """Mean over forecasts and nine deciles of twice the mean pinball loss, in seasonal errors."""
        return float(np.nanmean(np.nanmean(self._decile_losses(), (0, 2)) / self.seasonal_errors))

    def _decile_losses(self) -> np.ndarray:
        """Twice the pinball losses, shape (deciles, i, h)."""
        error = self.outcomes - np.stack([self.quantiles[self.levels.index(level)] for level in DECILES])
        levels = np.array(DECILES)[:, None, None]
        return 2 * np.maximum(levels * error, (levels - 1) * error)


def backtest(
    predictor: SSMPredictor,
    dataset: Iterable[Mapping[str, Any]],
    *,
    windows: int,
    distance: int | None = None,
    season: int = 1,
    levels: Sequence[float] = LEVELS,
) -> Backtest:
    """Forecast the last `windows` windows of every series from what came before each.

    Args:
        predictor: Not trained on those windows, if the scores are to mean anything.
        dataset: GluonTS data entries that hold the outcomes.
        windows: Forecasts of every series.
        distance: Steps from one origin to the next; None for the prediction length, windows side by side.
        season: Of the seasonal error that MASE divides by, in steps.
        levels: Quantile levels to keep; the deciles must be among them for `wql`.
    Raises:
        ValueError: A series is too short, or an entry cannot be used.
    """
    h = predictor.prediction_length
    distance = h if distance is None else distance
    if windows < 1 or distance < 1:
        raise ValueError(f"backtest: windows={windows}, distance={distance}, expected at least 1 of each")
    parts: list[tuple] = []
    for number, entry in enumerate(dataset):
        series = read_series(entry, predictor.trained.schema, 0, number)
        first = series.length - h - (windows - 1) * distance - 1
        if first < 1:
            raise ValueError(
                f"item {entry.get('item_id', number)!r}: {series.length} steps are too few for {windows} windows of {h}"
            )
        origins = torch.arange(first, series.length - h, distance)
        quantiles = _quantiles(predictor, series, origins, tuple(levels))
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
        estimator: One of ours.
        dataset: GluonTS data entries.
        folds: How often.
        season: As in `backtest`.
    Returns:
        One result for each fold, oldest first.
    Raises:
        ValueError: folds is not positive, or a series is too short.
    """
    if folds < 1:
        raise ValueError(f"cross_validate: folds={folds}, expected at least 1")
    entries, h = [dict(entry) for entry in dataset], estimator.prediction_length
    results = []
    for fold in range(folds, 0, -1):
        predictor = estimator.train(_cut(entries, fold * h))
        results.append(backtest(predictor, _cut(entries, (fold - 1) * h), windows=1, season=season))
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
        values = network.head.predict(*_at(window, hidden, places), predictor.trained.num_samples)
        if values.levels is None:
            result = torch.quantile(values.values, torch.tensor(levels, dtype=torch.float64), dim=0)
        else:
            result = torch.stack([values.values[_nearest(values.levels, level)] for level in levels])
        return result[:, 0].cpu() + series.first[:, None, None]
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


def _nearest(levels: tuple[float, ...], level: float) -> int:
    return min(range(len(levels)), key=lambda i: abs(levels[i] - level))


def _cut(entries: list[dict], steps: int) -> list[dict]:
    """The entries without their last steps."""
    if not steps:
        return entries
    return [{**entry, "target": np.asarray(entry["target"])[..., :-steps]} for entry in entries]
