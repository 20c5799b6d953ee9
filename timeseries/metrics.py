"""Scores over every window, and the two forecasts that any model has to beat.

MSE, MAE: mean over windows x steps x series of the values that were observed, in standard units.
"""

from collections.abc import Callable
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
    rows = torch.arange(origins.start, origins.stop)
    squared, absolute = torch.zeros(horizon, dtype=torch.float64), torch.zeros(horizon, dtype=torch.float64)
    count = torch.zeros(horizon, dtype=torch.float64)
    for series in values.split(len(values) if together else 1):
        forecast, targets = method(series), series[:, 1:].unfold(1, horizon, 1)
        for part in rows.split(block):
            truth = targets[:, part].double()
            present = ~truth.isnan()
            error = torch.where(present, forecast(part).double() - truth, 0.0)
            squared += error.square().sum((0, 1))
            absolute += error.abs().sum((0, 1))
            count += present.sum((0, 1))
    if not count.sum():
        raise ValueError(f"score: rows {origins.start + 1} to {origins.stop + horizon - 1} hold no observed value")
    return Scores(
        mse=float(squared.sum() / count.sum()),
        mae=float(absolute.sum() / count.sum()),
        mse_by_step=squared / count.clamp_min(1),
        mae_by_step=absolute / count.clamp_min(1),
        windows=len(rows),
    )


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
