"""From series to a forecaster: the closed form, what is left over by gradient, and what the validation part says.

1  origins of every series are shared out: training windows, then validation windows
2  the linear base is fitted on the training windows; ridge strength, and whether covariates help, by validation
3  an encoder or a distribution is trained by gradient on what the base leaves over, with early stopping
4  the errors on the validation windows become the calibration of the intervals
5  the base is fitted again on all windows, with the strength chosen (not where validation data were set apart)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .conformal import Calibration
from .models.linear_base import LinearBase
from .models.network import Network
from .models.ridge import RidgeReport, fit_read_out
from .models.window import Window
from .series import Series

LARGEST_PIECE = 2e7
"""Numbers of one feature table; longer batches are cut by channels."""


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


def fit_base(
    base: LinearBase, items: Sequence[Item], *, strengths: Sequence[float] | None, select: str, keep: bool
) -> RidgeReport:
    """Fit the linear base in closed form.

    Args:
        base: Overwritten.
        items: Series and origins.
        strengths: Ridge strengths to choose from; None for the default grid.
        select: `mae` or `mse`, the validation score that decides.
        keep: Shrink towards the read-out that it has.
    Returns:
        Validation scores.
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
    best: tuple[float, RidgeReport, dict[str, Tensor]] | None = None
    for effect in [base.effect.clone()] if keep else _effects(items, base):
        base.effect.copy_(effect)
        report = fit_read_out(
            base.linear,
            lambda: _rows(base, items, "train"),
            lambda: _rows(base, items, "validation"),
            strengths=strengths,
            select=select,
            keep=keep,
        )
        score = getattr(report, select)[report.chosen]
        if best is None or score < best[0]:
            best = score, report, {name: tensor.clone() for name, tensor in base.state_dict().items()}
    assert best is not None
    base.load_state_dict(best[2])
    return best[1]


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
    piece = max(1, int(LARGEST_PIECE / (series.length * len(base.linear.angles))))
    parts = [
        base(part, known, scale[:, i : i + piece], origins, dt)
        for i, part in zip(range(0, target.shape[1], piece), target.split(piece, 1), strict=True)
    ]
    return torch.cat(parts, 1)[0], scale[0], level[0]


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


def calibrate(errors: Tensor, seen: Tensor | None, memory: int) -> Calibration:
    """See Calibration.fit. No fitted constant series may turn the sketch into rounding noise over a vanishing scale."""
    return Calibration.fit(errors.clamp(-1e6, 1e6), None if seen is None else seen.clamp(-1e6, 1e6), memory)


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


def _effects(items: Sequence[Item], base: LinearBase) -> list[Tensor]:
    """No effect of the known covariates, and what a regression of differences on differences says."""
    none = torch.zeros_like(base.effect)
    if not len(none):
        return [none]
    gram, cross = torch.zeros(len(none), len(none), dtype=torch.float64), none.clone()
    for item in items:
        if len(item.train):
            end = item.train.stop
            unit = _spread(item.series)
            change = (item.series.target[:, :end] / unit).diff(dim=1)
            moved = item.series.known[:end].double().diff(dim=0)
            for row in change:
                good = ~row.isnan()
                gram += moved[good].T @ moved[good]
                cross += moved[good].T @ row[good]
    size = gram.diagonal().clamp_min(1e-12)
    effect = torch.linalg.solve(gram + torch.diag(1e-3 * size), cross)
    return [none, effect] if effect.isfinite().all() else [none]
