"""A read-out for the absolute error: from that of the ridge regression, by gradient on whitened features.

    minimise  mean |y - x - V u - b|        u  the features of LinearSSM, rotated and scaled to unit covariance

Least squares forecasts the mean, and a few wild weeks bend it; this forecasts the median of every step. There is no
closed form, but little is left to do from the ridge solution on features that are all alike: three passes, or as many
as make LEAST_STEPS where the rows are few.
It starts from one fixed seed, so that it gives the same read-out every time.

    c  series      t  time steps      r  origins      f  features      k  directions of them that vary
    h  prediction_length
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .linear_ssm import LinearSSM

EPOCHS, BATCH, RATE = 3, 2048, 3e-3
LEAST_STEPS = 80
"""Steps of Adam at least: three passes over a few thousand rows would be six, which change nothing."""
MOST_ROWS = 130_000
"""Rows that are kept in memory; with more, every second, third ... origin serves."""
MOST_TARGETS = 5e7
"""Numbers of the table of targets, where the caller cuts it."""
LEAST = 1e-7
"""Variance, relative to the largest, below which a direction of the features is left out."""


@dataclass(frozen=True, kw_only=True)
class WhiteRows:
    """Training rows of every series, in features that are all alike."""

    white: Tensor
    """Rotated features, float32, shape (c, r, k)."""
    rotate: Tensor
    """Scaled features to rotated ones, float64, shape (f, k)."""
    futures: Tensor
    """What came, less the last value, NaN where unknown: a view (c, t, h) of the series ..."""
    last: Tensor
    """... and the last values, NaN where nothing was seen, shape (c, r)."""
    origins: Tensor
    """Last rows seen, shape (r,)."""

    @classmethod
    def of(cls, model: LinearSSM, values: Tensor, train: range) -> "WhiteRows":
        """The rows of a fitted model.

        Args:
            model: Gives the features and their scales.
            values: All series in standard units, NaN where missing, float64, shape (c, t).
            train: Origins (last rows seen) of the training windows.
        """
        step = max(1, math.ceil(len(values) * len(train) / MOST_ROWS))
        origins = torch.tensor(list(train[::step]))
        features, last = _features(model, values, origins)
        rotate = _whitening(features)
        white = torch.stack([(row.double() @ rotate).float() for row in features])
        futures = values[:, 1:].unfold(1, model.prediction_length, 1)
        return cls(white=white, rotate=rotate, futures=futures, last=last, origins=origins)

    def targets(self, series: Tensor | slice, rows: Tensor) -> Tensor:
        """What came after some rows, less the last value, float32, shape (..., h)."""
        if isinstance(series, slice):
            return (self.futures[:, self.origins[rows]] - self.last[:, rows, None]).float()
        return (self.futures[series, self.origins[rows]] - self.last[series, rows, None]).float()

    def rotated(self, weight: Tensor) -> Tensor:
        """A read-out (f, h) for the rotated features, float32, shape (k, h): that part which they can say."""
        return (torch.linalg.pinv(self.rotate) @ weight).float()


def fit_median(model: LinearSSM, rows: WhiteRows) -> None:
    """Replace a read-out by one of least absolute error.

    Args:
        model: Fitted by ridge regression; its read-out is overwritten.
        rows: Its training rows.
    """
    count = rows.white.shape[1]

    def pick(picked: Tensor) -> tuple[Tensor, Tensor]:
        series, row = picked // count, picked % count
        return rows.white[series, row], rows.targets(series, row)

    _go_on(model, rows.rotate, pick, len(rows.white) * count)


def fit_median_to_pieces(model: LinearSSM, pieces: Iterable[tuple[Tensor, Tensor]], total: int) -> None:
    """The same from rows that the caller cuts; with too many, every second, third ... of each piece serves.

    Args:
        model: Fitted by ridge regression; its read-out is overwritten.
        pieces: Features (r, f) and targets less the last value (r, h), NaN where missing.
        total: Rows of all pieces together.
    """
    step = max(1, math.ceil(total / MOST_ROWS), math.ceil(total * model.prediction_length / MOST_TARGETS))
    kept = [(features[::step], targets[::step].float()) for features, targets in pieces]
    features = torch.cat([(f - model.feature_mean) / model.feature_scale for f, _ in kept])
    targets = torch.cat([t for _, t in kept])
    if not len(features):
        return
    rotate = _whitening(features[None])
    white = (features @ rotate).float()
    _go_on(model, rotate, lambda picked: (white[picked], targets[picked]), len(white))


def _go_on(model: LinearSSM, rotate: Tensor, pick: Callable[[Tensor], tuple[Tensor, Tensor]], total: int) -> None:
    """From the read-out that the model has; `pick` gives rotated features and targets of some of `total` rows."""
    weight = (torch.linalg.pinv(rotate) @ model.weight).float().requires_grad_()
    bias = model.bias.float().clone().requires_grad_()

    def error(picked: Tensor) -> Tensor:
        white, targets = pick(picked)
        return white @ weight + bias - targets

    descend([weight, bias], error, total, BATCH, RATE)
    model.weight.copy_(rotate @ weight.detach().double())
    model.bias.copy_(bias.detach().double())


def descend(
    parameters: Iterable[Tensor], error: Callable[[Tensor], Tensor], total: int, batch: int, rate: float
) -> None:
    """Adam on the mean absolute error, in place.

    Args:
        parameters: What to change.
        error: Of picked rows, NaN where unknown, any shape.
        total: Rows.
        batch: Rows of a step.
        rate: Learning rate at the beginning; it falls to zero along a half cosine.
    """
    parameters, batch = list(parameters), min(batch, total)
    epochs = max(EPOCHS, math.ceil(LEAST_STEPS / (total // batch)))
    steps = epochs * (total // batch)
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        order = torch.randperm(total, generator=generator)
        for picked in order[: total // batch * batch].split(batch):
            missed = error(picked)
            known = ~missed.isnan()
            optimizer.zero_grad()
            (torch.where(known, missed, 0.0).abs().sum() / known.sum().clamp_min(1)).backward()
            optimizer.step()
            schedule.step()


def _features(model: LinearSSM, values: Tensor, origins: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled features, float32, shape (c, r, f); last values, NaN where nothing was seen, shape (c, r)."""
    rows, lasts = [], []
    for series in values:
        features, last, seen = model.features(series[None, : int(origins[-1]) + 1])
        scaled = (features[0, origins] - model.feature_mean) / model.feature_scale
        rows.append(scaled.float())
        lasts.append(torch.where(seen[0, origins], last[0, origins], torch.nan))
    return torch.stack(rows), torch.stack(lasts)


def _whitening(features: Tensor) -> Tensor:
    """Scaled features (c, r, f) to the map that gives them unit covariance, shape (f, k)."""
    covariance = sum(row.double().T @ row.double() for row in features) / features[..., 0].numel()
    variances, directions = torch.linalg.eigh(covariance)
    kept = variances > LEAST * variances[-1].clamp_min(1e-300)
    return directions[:, kept] / variances[kept].sqrt()
