"""The closed-form fit of LinearSSM: one pass over the training rows for the Gram matrices, one over validation.

    minimise  sum over windows |y - x - W (f - mean)/scale - b|^2 + lambda N |W|^2,   b free

lambda is chosen by the validation score, or by the squared error over folds of the training part and the validation
part together (`out_of_sample`); lambda = infinity without b, the naive forecast, is one of the candidates.
Missing targets drop out of their own step only: every step then has its own Gram matrix, computed as the full one less
the rows that miss it.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .linear_ssm import LinearSSM

DEFAULT_RIDGE = (*(10 ** (k / 2) for k in range(-12, 3)), math.inf)


@dataclass(frozen=True, kw_only=True)
class RidgeReport:
    """Scores of every ridge strength, in the order tried, and the one chosen."""

    strengths: tuple[float, ...]
    mse: tuple[float, ...]
    """On the validation part."""
    mae: tuple[float, ...]
    """On the validation part."""
    chosen: int
    pooled: tuple[float, ...] | None = None
    """Squared error over the folds and the validation part, where that was asked for: what chose."""


class _Moments:
    """Sums over training windows, for centred and scaled normal equations."""

    def __init__(self, features: int, horizon: int):
        options = {"dtype": torch.float64}
        self.gram = torch.zeros(features + 1, features + 1, **options)
        self.cross = torch.zeros(features + 1, horizon, **options)
        self.squares = torch.zeros(horizon, **options)
        self.missing: dict[int, Tensor] = {}

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Features (r, f) and targets less the last value (r, h), NaN where missing."""
        features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        absent = targets.isnan()
        self.gram += features.T @ features
        self.cross += features.T @ targets.nan_to_num()
        self.squares += targets.nan_to_num().square().sum(0)
        for h in absent.any(0).nonzero().flatten().tolist():
            rows = features[absent[:, h]]
            self.missing[h] = self.missing.get(h, 0) + rows.T @ rows

    def include(self, other: "_Moments", sign: int = 1) -> "_Moments":
        """Add the rows of another, or take them off; returns itself."""
        self.gram += sign * other.gram
        self.cross += sign * other.cross
        self.squares += sign * other.squares
        for h, gram in other.missing.items():
            self.missing[h] = self.missing.get(h, 0) + sign * gram
        return self

    def errors(self, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of squared errors, shape (s,), of read-outs (s, f, h) and (s, h) on these rows; how many count, ()."""
        scaled = weight / scale[:, None]
        theta = torch.cat([scaled, (bias - mean @ scaled)[:, None]], dim=1)  # of the rows as they are, (s, f + 1, h)
        explained = torch.einsum("sfh,sfh->sh", theta, self.gram @ theta)
        count = self.gram[-1, -1].expand(len(self.squares)).clone()
        for h, gram in self.missing.items():
            explained[:, h] -= torch.einsum("sf,sf->s", theta[..., h], theta[..., h] @ gram)
            count[h] -= gram[-1, -1]
        errors = self.squares - 2 * torch.einsum("sfh,fh->sh", theta, self.cross) + explained
        return errors.sum(-1), count.sum()

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
    for series in values:
        features, last, seen = model.features(series[None, : origins.stop])
        yield _cut(series, features[0], last[0], seen[0], origins, model.prediction_length)


def _cut(
    series: Tensor, features: Tensor, last: Tensor, seen: Tensor, origins: range, horizon: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.arange(origins.start, origins.stop)
    keep = rows[seen[rows]]
    return features[keep], last[keep], series[1:].unfold(0, horizon, 1)[keep]


def out_of_sample(
    model: LinearSSM,
    values: Tensor,
    train: range,
    validation: range,
    strengths: Sequence[float],
    folds: int,
) -> tuple[Tensor, _Moments]:
    """Mean squared error of every strength on rows that its read-out has not been fitted to.

    The training origins are cut into `folds` stretches of time; each is scored by the fit to the others, less the rows
    whose targets overlap it. The validation part is scored by the fit to all. One validation part is one episode of a
    series and may want another strength than the rest of it does; the folds ask the whole past. Everything comes from
    the Gram matrices: no row is looked at twice.

    Args:
        model: Gives the poles and the context.
        values: All series in standard units, NaN where missing, shape (c, t).
        train: Origins of the training windows.
        validation: Origins of the validation windows.
        strengths: Candidates.
        folds: At least 2.
    Returns:
        float64, shape (s,); and the sums over all training rows.
    Raises:
        ValueError: Fewer than 2 folds, or fewer training windows than folds.
    """
    if not 2 <= folds <= len(train):
        raise ValueError(f"out_of_sample: folds={folds}, expected 2 to {len(train)}, the number of training windows")
    sizes, horizon = (len(model.feature_mean), model.prediction_length), model.prediction_length
    bounds = [train.start + len(train) * k // folds for k in range(folds + 1)]
    inside, around = [_Moments(*sizes) for _ in range(folds)], [_Moments(*sizes) for _ in range(folds)]
    held, total = _Moments(*sizes), _Moments(*sizes)
    for series in values:
        made = [part[0] for part in model.features(series[None, : max(train.stop, validation.stop)])]

        def add(moments: _Moments, origins: range, series: Tensor = series, made: list[Tensor] = made) -> None:
            features, last, targets = _cut(series, *made, origins, horizon)
            moments.add(features, targets - last[:, None])

        add(held, validation)
        for k, (start, stop) in enumerate(itertools.pairwise(bounds)):
            add(inside[k], range(start, stop))
            add(around[k], range(max(start - horizon, train.start), start))
            add(around[k], range(stop, min(stop + horizon, train.stop)))
    for part in inside:
        total.include(part)
    errors, count = held.errors(*total.solve(strengths))
    for part, gap in zip(inside, around, strict=True):
        rest = _Moments(*sizes).include(total).include(part, -1).include(gap, -1)
        more, rows = part.errors(*rest.solve(strengths))
        errors, count = errors + more, count + rows
    return errors / count.clamp_min(1), total


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
    folds: int = 0,
) -> RidgeReport:
    """Fit the read-out on the training windows and choose the ridge strength on rows that it has not been fitted to.

    Args:
        model: Its read-out is overwritten.
        values: All series in standard units, NaN where missing, float64, shape (c, t).
        train: Origins (last rows seen) of the training windows.
        validation: Origins of the validation windows.
        strengths: Candidates; infinity is the naive forecast. None for half decades from 1e-6 to 10 and infinity.
        select: `mae` or `mse`, the validation score that decides, without folds.
        folds: Stretches of the training part that decide together with the validation part; see `out_of_sample`. 0
            leaves it to the validation part alone.
    Returns:
        Every candidate's scores.
    Raises:
        ValueError: No candidate, a negative one, an unknown `select`, or a single fold.
    """
    strengths = tuple(DEFAULT_RIDGE if strengths is None else strengths)

    def rows(origins: range) -> Iterator[tuple[Tensor, Tensor]]:
        for features, last, targets in windows(model, values, origins):
            yield features, targets - last[:, None]

    pooled, moments = None, None
    if folds and strengths:
        pooled, moments = out_of_sample(model, values, train, validation, strengths, folds)
    report = fit_read_out(
        model,
        lambda: rows(train),
        lambda: rows(validation),
        strengths=strengths,
        select=select,
        chosen=None if pooled is None else int(pooled.argmin()),
        moments=moments,
    )
    return report if pooled is None else replace(report, pooled=tuple(pooled.tolist()))


def fit_read_out(
    model: LinearSSM,
    train: Rows,
    validation: Rows,
    *,
    strengths: Sequence[float] | None = None,
    select: str = "mae",
    keep: bool = False,
    chosen: int | None = None,
    moments: _Moments | None = None,
) -> RidgeReport:
    """As `fit_linear_ssm`, from features and targets that the caller cuts.

    Args:
        model: Its read-out is overwritten.
        train: Gives the training rows.
        validation: Gives the validation rows.
        strengths, select: As in `fit_linear_ssm`.
        keep: Shrink towards the read-out that the model has, in place of the naive forecast: what remains of it where
            the new rows say nothing.
        chosen: Which candidate to take; None for the best by `select`.
        moments: Sums over the training rows, where they are known; `train` is not asked then.
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
    if moments is None:
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
    if chosen is None:
        chosen = int((absolute if select == "mae" else squared).argmin())
    for name, value in (("feature_mean", mean), ("feature_scale", scale)):
        getattr(model, name).copy_(value)
    model.weight.copy_(weight[chosen])
    model.bias.copy_(bias[chosen])
    return RidgeReport(strengths=strengths, mse=tuple(squared.tolist()), mae=tuple(absolute.tolist()), chosen=chosen)


def _read(model: LinearSSM, features: Tensor) -> Tensor:
    """What the model's present read-out adds to the last value, shape (r, h)."""
    return model.read_out(features, features.new_zeros(len(features)))
