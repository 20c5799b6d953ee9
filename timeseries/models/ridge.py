"""The closed-form fit of LinearSSM: one pass over the training rows for the Gram matrices, one over validation.

    minimise  sum over windows |y - x - W (f - mean)/scale - b|^2 + lambda N |W|^2,   b free

lambda is chosen by the validation score; lambda = infinity without b, the naive forecast, is one of the candidates.
Missing targets drop out of their own step only: every step then has its own Gram matrix, computed as the full one less
the rows that miss it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .linear_ssm import LinearSSM

DEFAULT_RIDGE = (*(10 ** (k / 2) for k in range(-12, 3)), math.inf)


@dataclass(frozen=True, kw_only=True)
class RidgeReport:
    """Validation scores of every ridge strength, in the order tried, and the one chosen."""

    strengths: tuple[float, ...]
    mse: tuple[float, ...]
    mae: tuple[float, ...]
    chosen: int


class _Moments:
    """Sums over training windows, for centred and scaled normal equations."""

    def __init__(self, features: int, horizon: int):
        options = {"dtype": torch.float64}
        self.gram = torch.zeros(features + 1, features + 1, **options)
        self.cross = torch.zeros(features + 1, horizon, **options)
        self.missing: dict[int, Tensor] = {}

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Features (r, f) and targets less the last value (r, h), NaN where missing."""
        features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        absent = targets.isnan()
        self.gram += features.T @ features
        self.cross += features.T @ targets.nan_to_num()
        for h in absent.any(0).nonzero().flatten().tolist():
            rows = features[absent[:, h]]
            self.missing[h] = self.missing.get(h, 0) + rows.T @ rows

    def solve(self, strengths: Sequence[float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and scale of the features; weights (s, f, h) and biases (s, h) for every strength."""
        count = self.gram[-1, -1].clamp_min(1)
        mean = self.gram[-1, :-1] / count
        variance = self.gram.diagonal()[:-1] / count - mean.square()
        # A pole without imaginary part gives a constant feature; scale 1 keeps it harmless.
        scale = torch.where(variance > 1e-20, variance.clamp_min(1e-20).sqrt(), 1.0)
        horizon = self.cross.shape[1]
        weight = torch.zeros(len(strengths), len(mean), horizon, dtype=torch.float64)
        bias = torch.zeros(len(strengths), horizon, dtype=torch.float64)
        whole = [h for h in range(horizon) if h not in self.missing]
        for steps, gram in [(whole, self.gram)] * bool(whole) + [([h], self.gram - g) for h, g in self.missing.items()]:
            _solve_steps(gram, self.cross[:, steps], mean, scale, strengths, steps, weight, bias)
        return mean, scale, weight, bias


def _solve_steps(
    gram: Tensor,
    cross: Tensor,
    mean: Tensor,
    scale: Tensor,
    strengths: Sequence[float],
    steps: list[int],
    weight: Tensor,
    bias: Tensor,
) -> None:
    """Fill in the columns `steps` of weight and bias; `gram` and `cross` hold their windows only."""
    count = gram[-1, -1]
    if count < 1:
        return
    centre, target = gram[-1, :-1] / count, cross[-1] / count
    covariance = (gram[:-1, :-1] / count - torch.outer(centre, centre)) / torch.outer(scale, scale)
    values, vectors = torch.linalg.eigh(covariance)
    projected = vectors.T @ ((cross[:-1] / count - torch.outer(centre, target)) / scale[:, None])
    for i, strength in enumerate(strengths):
        if math.isinf(strength):
            continue
        solution = vectors @ (projected / (values.clamp_min(0) + strength)[:, None])
        weight[i][:, steps] = solution
        bias[i][steps] = target - ((centre - mean) / scale) @ solution


def windows(model: LinearSSM, values: Tensor, origins: range) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Features, last values and targets of one series after another, so that memory does not grow with their number.

    Args:
        model: Gives the poles and the context.
        values: All series, NaN where missing, shape (c, t).
        origins: Last rows seen.
    Returns:
        Per series: features (o, f), last values (o,), targets (o, h); origins that have seen no value are left out.
    """
    horizon = model.prediction_length
    rows = torch.arange(origins.start, origins.stop)
    for series in values:
        features, last, seen = model.features(series[None, : origins.stop])
        keep = rows[seen[0, rows]]
        yield features[0, keep], last[0, keep], series[1:].unfold(0, horizon, 1)[keep]


Rows = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives, anew at every call, pieces of features (r, f) and of targets less the last value (r, h), NaN where missing."""


def fit_linear_ssm(
    model: LinearSSM,
    values: Tensor,
    train: range,
    validation: range,
    *,
    strengths: Sequence[float] | None = None,
    select: str = "mae",
) -> RidgeReport:
    """Fit the read-out on the training windows and choose the ridge strength by the validation windows.

    Args:
        model: Its read-out is overwritten.
        values: All series in standard units, NaN where missing, float64, shape (c, t).
        train: Origins (last rows seen) of the training windows.
        validation: Origins of the validation windows.
        strengths: Candidates; infinity is the naive forecast. None for half decades from 1e-6 to 10 and infinity.
        select: `mae` or `mse`, the validation score that decides.
    Returns:
        Every candidate's validation scores.
    Raises:
        ValueError: No candidate, a negative one, or an unknown `select`.
    """

    def rows(origins: range) -> Iterator[tuple[Tensor, Tensor]]:
        for features, last, targets in windows(model, values, origins):
            yield features, targets - last[:, None]

    return fit_read_out(model, lambda: rows(train), lambda: rows(validation), strengths=strengths, select=select)


def fit_read_out(
    model: LinearSSM,
    train: Rows,
    validation: Rows,
    *,
    strengths: Sequence[float] | None = None,
    select: str = "mae",
    keep: bool = False,
) -> RidgeReport:
    """As `fit_linear_ssm`, from features and targets that the caller cuts.

    Args:
        model: Its read-out is overwritten.
        train: Gives the training rows.
        validation: Gives the validation rows.
        strengths, select: As in `fit_linear_ssm`.
        keep: Shrink towards the read-out that the model has, in place of the naive forecast: what remains of it where
            the new rows say nothing.
    Returns:
        Every candidate's validation scores.
    Raises:
        ValueError: No candidate, a negative one, or an unknown `select`.
    """
    strengths = tuple(DEFAULT_RIDGE if strengths is None else strengths)
    if not strengths or min(strengths) < 0:
        raise ValueError(f"fit_linear_ssm: strengths must be non-negative and at least one, got {strengths}")
    if select not in ("mae", "mse"):
        raise ValueError(f"fit_linear_ssm: select={select!r}, expected 'mae' or 'mse'")
    moments = _Moments(len(model.feature_mean), model.prediction_length)
    for features, targets in train():
        moments.add(features, targets - _read(model, features) if keep else targets)
    mean, scale, weight, bias = moments.solve(strengths)
    if keep:  # the old read-out in the units of the new features
        weight = weight + model.weight * (scale / model.feature_scale)[:, None]
        bias = bias + model.bias + ((mean - model.feature_mean) / model.feature_scale) @ model.weight
    squared = torch.zeros(len(strengths), dtype=torch.float64)
    absolute, count = squared.clone(), 0
    for features, targets in validation():
        features, present = (features - mean) / scale, ~targets.isnan()
        count += int(present.sum())
        for i in range(len(strengths)):
            error = torch.where(present, features @ weight[i] + bias[i] - targets, 0.0)
            squared[i] += error.square().sum()
            absolute[i] += error.abs().sum()
    squared, absolute = squared / max(count, 1), absolute / max(count, 1)
    chosen = int((absolute if select == "mae" else squared).argmin())
    for name, value in (("feature_mean", mean), ("feature_scale", scale)):
        getattr(model, name).copy_(value)
    model.weight.copy_(weight[chosen])
    model.bias.copy_(bias[chosen])
    return RidgeReport(strengths=strengths, mse=tuple(squared.tolist()), mae=tuple(absolute.tolist()), chosen=chosen)


def _read(model: LinearSSM, features: Tensor) -> Tensor:
    """What the model's present read-out adds to the last value, shape (r, h)."""
    return model.read_out(features, features.new_zeros(len(features)))
