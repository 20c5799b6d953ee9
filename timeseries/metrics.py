"""Scores over every window, and the two forecasts that any model has to beat.

MSE, MAE: mean over windows x steps x series of the values that were observed, in standard units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Method = Callable[[Tensor], Callable[[Tensor], Tensor]]
"""Series in standard units, NaN where missing, float64, shape (c, t) -> a function of origins (last rows seen), int64,
shape (o,), that gives forecasts, shape (c, o, h). A forecast looks at nothing after its origin."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Errors of one forecaster on one part."""

    mse: float
    mae: float
    mse_by_step: Tensor
    """float64, shape (h,)."""
    mae_by_step: Tensor
    """float64, shape (h,)."""
    windows: int
    """Origins that counted."""

    @property
    def both(self) -> float:
        """Product of the two: what is gained in one may be lost in the other by the same part."""
        return self.mse * self.mae


def score(
    method: Method, values: Tensor, origins: range, horizon: int, *, block: int = 512, together: bool = False
) -> Scores:
    """Compare forecasts from every origin with what came; missing values do not count.

    Args:
        method: Makes the forecasts; it gets one series after another, so that memory does not grow with their number.
        values: All series in standard units, NaN where missing, shape (c, t).
        origins: Last rows seen.
        horizon: h.
        block: Origins at a time.
        together: Give the method all series at once, for one that mixes them.
    Returns:
        The scores.
    Raises:
        ValueError: No observed value to compare with.
    """
    return score_means([method], [(0,)], values, origins, horizon, block=block, together=together)[0]


def score_means(
    methods: Sequence[Method],
    subsets: Sequence[Sequence[int]],
    values: Tensor,
    origins: range,
    horizon: int,
    *,
    block: int = 512,
    together: bool = False,
) -> list[Scores]:
    """The same for means of forecasts, each of which is made once.

    Args:
        methods: Make the forecasts.
        subsets: Which of them a mean is of.
        values, origins, horizon, block, together: As in `score`.
    Returns:
        The scores of every mean.
    Raises:
        ValueError: No observed value to compare with.
    """
    rows = torch.arange(origins.start, origins.stop)
    squared, absolute = (torch.zeros(len(subsets), horizon, dtype=torch.float64) for _ in range(2))
    count = torch.zeros(horizon, dtype=torch.float64)
    for series in values.split(len(values) if together else 1):
        begun, targets = [method(series) for method in methods], series[:, 1:].unfold(1, horizon, 1)
        for part in rows.split(block):
            truth = targets[:, part].double()
            present = ~truth.isnan()
            errors = [torch.where(present, forecast(part).double() - truth, 0.0) for forecast in begun]
            count += present.sum((0, 1))
            for i, subset in enumerate(subsets):
                error = sum(errors[j] for j in subset) / len(subset)
                squared[i] += error.square().sum((0, 1))
                absolute[i] += error.abs().sum((0, 1))
    if not count.sum():
        raise ValueError(f"score: rows {origins.start + 1} to {origins.stop + horizon - 1} hold no observed value")
    return [
        Scores(
            mse=float(square.sum() / count.sum()),
            mae=float(size.sum() / count.sum()),
            mse_by_step=square / count.clamp_min(1),
            mae_by_step=size / count.clamp_min(1),
            windows=len(rows),
        )
        for square, size in zip(squared, absolute, strict=True)
    ]


def naive(values: Tensor, horizon: int) -> Callable[[Tensor], Tensor]:
    """Repeat the last value seen.

    Args:
        values: All series, NaN where missing, shape (c, t).
        horizon: h.
    Returns:
        Forecasts by origin; see Method.
    """
    return seasonal_naive(values, horizon, 1)


def seasonal_naive(values: Tensor, horizon: int, season: int) -> Callable[[Tensor], Tensor]:
    """Repeat the last season; a value missing there is the latest one seen in the same phase, or 0, the mean.

    Args:
        values: All series in standard units, NaN where missing, shape (c, t).
        horizon: h.
        season: Period in steps.
    Returns:
        Forecasts by origin; see Method.
    """
    c, t = values.shape
    phases = torch.nn.functional.pad(values, (0, -t % season), value=float("nan")).view(c, -1, season)
    rounds = torch.arange(phases.shape[1])[:, None]
    latest = torch.where(phases.isnan(), -1, rounds).cummax(1).values
    filled = phases.gather(1, latest.clamp_min(0)).nan_to_num().reshape(c, -1)[:, :t]
    ahead = torch.arange(horizon) % season - season + 1

    def forecast(origins: Tensor) -> Tensor:
        source = origins[:, None] + ahead
        return torch.where(source < 0, 0.0, filled[:, source.clamp_min(0)])

    return forecast
