"""A read-out for the absolute error: from that of the ridge regression, by gradient on whitened features.

    minimise  mean |y - x - V u - b|        u  the features of LinearSSM, rotated and scaled to unit covariance

Least squares forecasts the mean, and a few wild weeks bend it; this forecasts the median of every step. There is no
closed form, but little is left to do from the ridge solution on features that are all alike: three passes, or as many
as make LEAST_STEPS where the rows are few.
It starts from one fixed seed, so that it gives the same read-out every time.

    c  series      t  time steps      r  rows (windows of single series)      f  features      k  of them that vary
    h  prediction_length
"""

import math

import torch
from torch import Tensor

from .linear_ssm import LinearSSM

EPOCHS, BATCH, RATE = 3, 2048, 3e-3
LEAST_STEPS = 80
"""Steps of Adam at least: three passes over a few thousand rows would be six, which change nothing."""
MOST_ROWS = 500_000
"""Rows that are kept in memory; with more, every second, third ... origin serves."""
LEAST = 1e-7
"""Variance, relative to the largest, below which a direction of the features is left out."""


def fit_median(model: LinearSSM, values: Tensor, train: range) -> None:
    """Replace a read-out by one of least absolute error.

    Args:
        model: Fitted by ridge regression; its read-out is overwritten.
        values: All series in standard units, NaN where missing, float64, shape (c, t).
        train: Origins (last rows seen) of the training windows.
    """
    step = max(1, math.ceil(len(values) * len(train) / MOST_ROWS))
    origins = torch.tensor(list(train[::step]))
    features, last = _features(model, values, origins)
    rotate = _whitening(features)
    white = torch.stack([(row.double() @ rotate).float() for row in features])
    # Of the ridge solution that part counts which the rotated features can say.
    inverse = torch.linalg.pinv(rotate)
    weight = (inverse @ model.weight).float().requires_grad_()
    bias = model.bias.float().clone().requires_grad_()
    futures = values[:, 1:].unfold(1, model.prediction_length, 1)
    _descend(weight, bias, white, last, futures, origins)
    model.weight.copy_(rotate @ weight.detach().double())
    model.bias.copy_(bias.detach().double())


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


def _descend(weight: Tensor, bias: Tensor, white: Tensor, last: Tensor, futures: Tensor, origins: Tensor) -> None:
    """Adam on the mean absolute error: weight (k, h) and bias (h,) in place; features (c, r, k), futures (c, t, h)."""
    rows = white.shape[1]
    total = white.shape[0] * rows
    batch = min(BATCH, total)
    epochs = max(EPOCHS, math.ceil(LEAST_STEPS / (total // batch)))
    steps = epochs * (total // batch)
    optimizer = torch.optim.Adam([weight, bias], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        order = torch.randperm(total, generator=generator)
        for picked in order[: total // batch * batch].split(batch):
            series, row = picked // rows, picked % rows
            target = (futures[series, origins[row]] - last[series, row, None]).float()
            known = ~target.isnan()
            error = torch.where(known, white[series, row] @ weight + bias - target, 0.0)
            optimizer.zero_grad()
            (error.abs().sum() / known.sum().clamp_min(1)).backward()
            optimizer.step()
            schedule.step()
