"""From series to a forecaster: the closed form, what is left over by gradient, and what the validation part says.

1  origins of every series are shared out: training windows, then validation windows
2  the linear base is fitted on the training windows; ridge strength, whether covariates and a cycle help, and how much
   of a read-out of least absolute errors, by validation
3  an encoder or a distribution is trained by gradient on what the base leaves over, with early stopping
4  the errors on the validation windows become the calibration of the intervals
5  the base is fitted again on all windows, with what was chosen (not where validation data were set apart)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import LinearSSMConfig
from .conformal import Calibration
from .models.linear_base import LinearBase
from .models.median import fit_median_to_pieces
from .models.network import Network
from .models.ridge import RidgeReport, fit_read_out
from .models.window import Window
from .series import Series


@dataclass(frozen=True, kw_only=True)
class Item:
    """A series and the origins (last steps seen) that serve a purpose."""

    series: Series
    train: range
    validation: range


def split_origins(length: int, horizon: int, share: float) -> tuple[range, range]:
    """Share the origins of a series out, so that no training target lies in the validation part.

    Args:
        length: Steps of the series.
        horizon: h.
        share: Of the steps, for validation.
    Returns:
        Training and validation origins. A series too short to keep them apart lets training targets overlap; one
        shorter than the horizon serves both with windows whose later targets are missing.
    """
    whole = length - horizon
    if whole < 2:
        return range(max(length - 1, 0)), range(max(length - 1, 0))
    count = max(int(share * length) - horizon + 1, min(whole // 3, max(1, int(share * whole))), 1)
    start = whole - count
    clean = range(max(start - horizon + 1, 0))
    return (clean if len(clean) >= max(10, whole // 4) else range(start)), range(start, whole)


def pair(training: Sequence[Series], validation: Sequence[Series] | None, horizon: int, share: float) -> list[Item]:
    """The items of a fit.

    Args:
        training: Series to learn from.
        validation: Series set apart, None for none: the last share of the training series serves then. A series that
            goes on where the training series of the same place ends validates on what is new in it.
        horizon: h.
        share: Of the steps, for validation.
    """
    if validation is None:
        splits = [split_origins(series.length, horizon, share) for series in training]
        return [Item(series=s, train=t, validation=v) for s, (t, v) in zip(training, splits, strict=True)]
    items = [Item(series=s, train=all_origins(s.length, horizon), validation=range(0)) for s in training]
    for i, series in enumerate(validation):
        known = training[i].length if i < len(training) and training[i].start == series.start else 0
        whole = all_origins(series.length, horizon)
        first = known - 1 if 0 < known < series.length else max(0, whole.stop - max(1, int(share * series.length)))
        items.append(Item(series=series, train=range(0), validation=range(min(first, whole.stop - 1), whole.stop)))
    return items


def all_origins(length: int, horizon: int) -> range:
    """Every origin whose targets are known, or, in a series shorter than the horizon, some of them."""
    return range(max(length - horizon, length - 1 if length <= horizon + 1 else 0, 0))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the validation part has chosen of the linear base."""

    ridge: float
    """Strength of the ridge regression; infinity is the naive forecast."""
    effect: Tensor
    """Which covariates have an effect, bool, shape (q,)."""
    median: float
    """Share of the read-out of least absolute errors in the mean of both: 0, 1/2 or 1."""


def fit_base(
    base: LinearBase,
    items: Sequence[Item],
    options: LinearSSMConfig,
    *,
    named: int = 0,
    chosen: Choice | None = None,
    keep: bool = False,
) -> Choice:
    """Fit the linear base: in closed form, then perhaps to the absolute error.

    Args:
        base: Overwritten.
        items: Series and origins.
        options: Which of them are read: see SSMEstimator.
        named: Covariates that are no cycle; they stand first.
        chosen: Do this; None to let the validation part choose.
        keep: Shrink towards the read-out that it has; covariates and median are not fitted anew.
    Returns:
        What was done.
    Raises:
        ValueError: No pair of observed values anywhere.
    """
    if not any((~item.series.target.isnan()).sum(1).max() > 1 for item in items if len(item.train)):
        raise ValueError(
            "train: no series has two observed values, so there is nothing to learn from; give longer ones"
        )
    sizes = torch.stack([_typical(item.series) for item in items if len(item.train)])
    if not keep:
        base.ratio.copy_(sizes.nanmedian().nan_to_num())
    if keep:
        candidates = [(base.effect.any(1), base.effect.clone())]
    else:
        candidates = [(used, _effect(items, base, used)) for used in _uses(len(base.effect), named, chosen)]
    best: tuple[float, RidgeReport, Tensor, dict[str, Tensor]] | None = None
    for used, effect in candidates:
        if not effect.isfinite().all():
            continue
        base.effect.copy_(effect)
        report = fit_read_out(
            base.linear,
            lambda: _rows(base, items, "train"),
            lambda: _rows(base, items, "validation"),
            strengths=options.ridge if chosen is None else (chosen.ridge,),
            select=options.select,
            keep=keep,
        )
        score = getattr(report, options.select)[report.chosen]
        if best is None or score < best[0]:
            best = score, report, used, {name: tensor.clone() for name, tensor in base.state_dict().items()}
    assert best is not None
    _, report, used, tensors = best
    base.load_state_dict(tensors)
    ridge, share = report.strengths[report.chosen], 0.0 if chosen is None else chosen.median
    if math.isfinite(ridge) and not keep and (share if chosen else options.median):
        share = _towards_median(base, items, options, share)
    return Choice(ridge=ridge, effect=used, median=share)


def _towards_median(base: LinearBase, items: Sequence[Item], options: LinearSSMConfig, share: float) -> float:
    """Move the read-out to that of least absolute errors, or half way, or not; 0 lets the validation part say."""
    linear = base.linear
    ends = [(linear.weight.clone(), linear.bias.clone())]
    total = sum(len(item.train) * len(item.series.first) for item in items)
    fit_median_to_pieces(linear, _rows(base, items, "train"), total)
    ends.append((linear.weight.clone(), linear.bias.clone()))

    def mean(part: float) -> tuple[Tensor, Tensor]:
        weight, bias = (torch.lerp(one, other, part) for one, other in zip(*ends, strict=True))
        return weight, bias

    if not share:
        shares, sums = (0.0, 0.5, 1.0), torch.zeros(3, 2, dtype=torch.float64)
        for features, targets in _rows(base, items, "validation"):
            features = (features - linear.feature_mean) / linear.feature_scale
            for row, part in zip(sums, shares, strict=True):
                weight, bias = mean(part)
                error = (features @ weight + bias - targets).nan_to_num()
                row += torch.stack([error.square().sum(), error.abs().sum()])
        scores = {"mse": sums[:, 0], "mae": sums[:, 1], "both": sums.prod(1)}
        share = shares[int(scores[options.mean_by].argmin())]
    weight, bias = mean(share)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return share


def base_forecasts(base: LinearBase, series: Series, origins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Linear forecasts of one series.

    Args:
        base: Fitted.
        series: One item.
        origins: Last steps seen, shape (o,).
    Returns:
        Forecasts (c, o, h), running scale and level at all steps (c, t).
    """
    target, first = series.target[None], series.first[None]
    scale, level = base.scales(target, first)
    known = None
    if series.known.shape[1]:
        # Steps after the series ends have covariates only where a forecast is wanted; training windows never get there.
        need = int(origins.max()) + 1 + base.linear.prediction_length - len(series.known)
        known = torch.nn.functional.pad(series.known, (0, 0, 0, max(need, 0)))[None]
    dt = None if series.dt is None else series.dt[None]
    return base(target, known, scale, origins, dt)[0], scale[0], level[0]


def targets_after(series: Series, origins: Tensor, horizon: int) -> Tensor:
    """What came after each origin, NaN where it is not known, shape (c, o, h)."""
    padded = torch.nn.functional.pad(series.target, (0, horizon), value=math.nan)
    return padded[:, origins[:, None] + 1 + torch.arange(horizon)]


def whole_window(network: Network, series: Series, origins: int) -> Window:
    """The whole series as one window whose last steps are origins.

    Args:
        network: Its base is fitted.
        series: One item.
        origins: o, at most the length of the series.
    """
    where = torch.arange(series.length - origins, series.length)
    base, scale, level = base_forecasts(network.base, series, where)
    horizon = network.horizon
    known = torch.nn.functional.pad(series.known, (0, 0, 0, max(0, series.length + horizon - len(series.known))))
    return Window(
        target=series.target[None],
        inputs=series.inputs[None],
        known=known[where[:, None] + 1 + torch.arange(horizon)][None],
        static=series.static[None],
        category=series.category[None],
        base=base[None],
        scale=scale[None, :, where],
        level=level[None, :, where],
        first=series.first[None],
        dt=None if series.dt is None else series.dt[None],
    )


@torch.no_grad()
def validation_errors(network: Network, items: Sequence[Item]) -> Tensor:
    """Errors of the point forecast on the validation windows, in units of the running scale, shape (n, h)."""
    pieces = []
    for item in items:
        if len(item.validation):
            series = item.series
            window = whole_window(network, series, series.length - item.validation.start)
            point = network.head.point(window, network(window))[0, :, : len(item.validation)]
            future = targets_after(series, torch.tensor(list(item.validation)), network.horizon)
            scale = window.scale[0, :, : len(item.validation), None]
            pieces.append(((future - point) / scale).flatten(0, 1))
    return torch.cat(pieces)


def calibrate(errors: Tensor, seen: Tensor | None, memory: int, gain: float) -> Calibration:
    """See Calibration.fit. No fitted constant series may turn the sketch into rounding noise over a vanishing scale."""
    return Calibration.fit(errors.clamp(-1e6, 1e6), None if seen is None else seen.clamp(-1e6, 1e6), memory, gain)


def _typical(series: Series) -> Tensor:
    """Deviation over mean size of each channel, shape (c,); NaN without two values."""
    raw = series.target + series.first[:, None]
    size = raw.abs().nanmean(1)
    deviation = (raw - raw.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()
    enough = ((~raw.isnan()).sum(1) > 1) & (size > 0)
    return torch.where(enough, deviation / size.clamp_min(1e-300), torch.nan)


def _spread(series: Series) -> Tensor:
    """Deviation of each channel over the whole series, shape (c, 1); the unit in which its rows enter the fit."""
    centred = series.target - series.target.nanmean(1, keepdim=True)
    spread = centred.square().nanmean(1, keepdim=True).sqrt().nan_to_num()
    size = (series.target + series.first[:, None]).abs().nanmean(1, keepdim=True).nan_to_num()
    return torch.where(spread > 1e-9 * size, spread, 1.0)


def _rows(base: LinearBase, items: Sequence[Item], part: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and targets less the last value, in units of each series' own spread."""
    linear = base.linear
    for item in items:
        origins, series = getattr(item, part), item.series
        if not len(origins):
            continue
        where = torch.tensor(list(origins))
        scale, _ = base.scales(series.target[None], series.first[None])
        x = base.adjusted(series.target[None], series.known[None, : series.length], scale)[0]
        unit = _spread(series)
        end = min(series.length, origins.stop + linear.prediction_length)
        for channel in range(len(x)):
            row = x[channel : channel + 1, :end] / unit[channel]
            features, last, seen = linear.features(row, None if series.dt is None else series.dt[None, :end])
            future = torch.nn.functional.pad(row[0], (0, linear.prediction_length), value=math.nan)
            targets = future[1:].unfold(0, linear.prediction_length, 1)[where] - last[0, where, None]
            good = seen[0, where]
            yield features[0, where[good]], targets[good]


def _uses(count: int, named: int, chosen: Choice | None) -> list[Tensor]:
    """Which of `count` covariates, `named` ones first, may have an effect: none, the named ones, all."""
    if chosen is not None:
        return [chosen.effect]
    return [torch.arange(count) < use for use in sorted({0, named, count})]


def _effect(items: Sequence[Item], base: LinearBase, used: Tensor) -> Tensor:
    """What a regression of differences on differences says of the covariates that are used, shape (q, c)."""
    (q, c), effect = base.effect.shape, torch.zeros_like(base.effect)
    if not used.any():
        return effect
    gram, cross = torch.zeros(c, q, q, dtype=torch.float64), torch.zeros(c, q, dtype=torch.float64)
    for item in items:
        if len(item.train):
            end = item.train.stop
            change = (item.series.target[:, :end] / _spread(item.series)).diff(dim=1)
            moved = item.series.known[:end].double().diff(dim=0)
            for channel, row in enumerate(change):
                good = ~row.isnan()
                gram[channel] += moved[good].T @ moved[good]
                cross[channel] += moved[good].T @ row[good]
    gram, cross = gram[:, used][:, :, used], cross[:, used]
    size = gram.diagonal(dim1=1, dim2=2).clamp_min(1e-12)
    effect[used] = torch.linalg.solve(gram + torch.diag_embed(1e-3 * size), cross).T
    return effect
