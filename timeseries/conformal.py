"""Intervals from the errors a forecaster has made: quantiles of what came less what was forecast, for every step ahead.

The errors of a series' own latest forecasts count, a `memory` of them a step, so that the intervals follow the series
when it grows calmer or wilder. Until it has made enough of its own, the errors of the validation windows of all series,
in units of the running scale, stand in for as many as PRIOR of them.

    recent[h]  y[j + h] - base[j, h]  for the latest origins j whose outcome is known,  times inflation[h]
    level q    weighted quantile of recent[h] (weight 1 each) and scale * sketch[:, h] (PRIOR less their number, in all)

For long horizons a memory holds few errors that are independent, and their quantiles cover too little. With a `gain`
the width of every step ahead follows what the intervals that were issued have covered:

    level q    scale * (m[h] + exp(width[h]) (sketch quantile q - m[h])),  m the median of the sketch
    width[h]   += gain / H (missed - 0.2)    once an outcome is known; missed: outside the 80 % interval issued for it

Source: split conformal prediction with a moving calibration set (Xu & Xie 2021, EnbPI; Stankeviciute et al. 2021 for a
set a step ahead); Gibbs & Candes 2021, adaptive conformal inference, here on the logarithm of the width.
Exchangeability does not hold for series, so coverage is measured, not promised.

    b  items      c  channels      t  steps      j  origins      h  prediction_length      s  points of the sketch
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEVELS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975)
PRIOR = 200
POINTS = 100
WIDEST = 7.0
"""Bound of the logarithm of a width: a thousand times."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the validation part taught about errors."""

    sketch: Tensor
    """Quantiles of the errors in units of the running scale, pooled over series, float64, shape (s, h)."""
    inflation: Tensor
    """How much larger errors are out of sample than on rows that the final fit has seen, float64, shape (h,)."""
    memory: int
    """Errors a step that count at most."""
    gain: float = 0.0
    """How fast the width follows what was covered; 0 for not at all, with quantiles of recent errors."""

    @classmethod
    def fit(cls, errors: Tensor, seen: Tensor | None, memory: int, gain: float = 0.0) -> "Calibration":
        """From the errors of the validation windows.

        Args:
            errors: In units of the running scale, NaN where unknown, shape (n, h).
            seen: The same windows' errors under the final fit, which has seen their outcomes; None if it has not.
            memory: Errors a step that count at most.
            gain: How fast the width follows what was covered.
        """
        horizon = errors.shape[1]
        points = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
        sketch = torch.zeros(POINTS, horizon, dtype=torch.float64)
        for h in range(horizon):  # a step at a time: the errors of all steps may be a large table
            known = errors[:, h][~errors[:, h].isnan()]
            if len(known):
                ranks = (points * len(known)).long().clamp_max(len(known) - 1)
                sketch[:, h] = known.sort().values[ranks]
        inflation = torch.ones(horizon, dtype=torch.float64)
        if seen is not None:
            ratio = errors.abs().nanmean(0) / seen.abs().nanmean(0).clamp_min(1e-30)
            # One factor for neighbouring steps: a ratio of two means is noisy, and below 1 it is nothing but noise.
            inflation = torch.where(ratio.isfinite(), ratio, 1.0).mean().clamp(1.0, 2.0).expand(horizon).clone()
        return cls(sketch=sketch, inflation=inflation, memory=memory, gain=gain)

    def looks_back(self, length: int) -> int:
        """Origins of a series of `length` steps whose forecasts are needed: the latest, or all where widths follow."""
        return length if self.gain else min(length, self.memory + len(self.inflation))

    def reach(self, errors: Tensor, scale: Tensor) -> Tensor:
        """Logarithm of the width that an 80 % interval needed to cover an error; NaN where that is not known.

        Args:
            errors: In the units of the data, NaN where unknown, shape (..., h).
            scale: Running scale when each forecast was made, shape (..., h).
        Returns:
            Shape (..., h).
        """
        low, middle, high = self._of_sketch((0.1, 0.5, 0.9))
        off = errors * self.inflation / scale - middle
        return torch.maximum(off / (high - middle), off / (low - middle)).log()

    def wider(self, width: Tensor, reach: Tensor, issued: Tensor) -> Tensor:
        """The width after an outcome of every step ahead.

        Args:
            width: Before, shape (..., h).
            reach: Of the outcomes, shape (..., h).
            issued: Width of the intervals that were issued for them, shape (..., h).
        Returns:
            Shape (..., h).
        """
        missed = (reach > issued).to(width) - 0.2
        moved = width + torch.where(reach.isnan(), 0.0, self.gain / width.shape[-1] * missed)
        return moved.clamp(-WIDEST, WIDEST)

    def widths(self, errors: Tensor, scale: Tensor) -> Tensor:
        """The widths after every step of a series, from its beginning.

        Args:
            errors: By outcome, as `recent_errors` gives those of all steps, shape (b, c, t, h).
            scale: Running scale, shape (b, c, t).
        Returns:
            Shape (b, c, t, h).
        """
        t, h = errors.shape[-2:]
        steps = torch.arange(h)
        made = (torch.arange(t)[:, None] - 1 - steps).clamp_min(0)  # when the forecast of each outcome was made
        reach, widths = self.reach(errors, scale[..., made]), torch.zeros_like(errors)
        for now in range(1, t):
            issued = widths[..., made[now], steps]
            widths[..., now, :] = self.wider(widths[..., now - 1, :], reach[..., now, :], issued)
        return widths

    def _of_sketch(self, levels: Sequence[float]) -> Tensor:
        """Quantiles of the sketch, shape (n, h)."""
        places = [min(math.ceil(level * len(self.sketch)), len(self.sketch)) - 1 for level in levels]
        return self.sketch[places]

    def adapted(self, width: Tensor, scale: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
        """Quantiles of the error of the next forecast, by widths.

        Args:
            width: Shape (b, c, h).
            scale: Running scale, shape (b, c).
            levels: n of them.
        Returns:
            Shape (n, b, c, h), rising in n.
        """
        (middle,) = self._of_sketch((0.5,))
        spread = (self._of_sketch(levels) - middle)[:, None, None]
        return scale[..., None] * (middle + width.exp() * spread)

    def quantiles(self, recent: Tensor, scale: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
        """Quantiles of the error of the next forecast.

        Args:
            recent: Latest errors in the units of the data, NaN where unknown, shape (b, c, j, h).
            scale: Running scale, shape (b, c).
            levels: n of them.
        Returns:
            Shape (n, b, c, h), rising in n.
        """
        own = ~recent.isnan()
        spare = (min(PRIOR, self.memory) - own.sum(-2, keepdim=True)).clamp_min(0)
        if own.all() and not spare.any():
            return _order_statistics(recent * self.inflation, levels)
        prior = self.sketch * scale[..., None, None]  # (b, c, s, h)
        values = torch.cat([(recent * self.inflation).nan_to_num(), prior], -2).transpose(-1, -2)
        weight = torch.cat([own.double(), (spare / POINTS).expand(prior.shape)], -2).transpose(-1, -2)
        values, order = values.contiguous().sort(-1)
        mass = weight.gather(-1, order).cumsum(-1)
        total = mass[..., -1:]
        wanted = torch.tensor(levels, dtype=torch.float64, device=mass.device)
        # A rank among `total` values; the tails reach out by one value more, as the n + 1 of conformal prediction says.
        side = torch.tensor([level < 0.5 for level in levels], device=mass.device)
        wanted = torch.where(side, wanted * (total + 1) - 1, wanted * (total + 1)).clamp_min(1e-9)
        place = torch.searchsorted(mass.contiguous(), torch.minimum(wanted, total - 1e-9))
        return values.gather(-1, place.clamp_max(values.shape[-1] - 1)).movedim(-1, 0)


def _order_statistics(errors: Tensor, levels: Sequence[float]) -> Tensor:
    """The same where every one of j errors has weight 1: (b, c, j, h) to (n, b, c, h), without sorting all of them."""
    count = errors.shape[-2]
    ranks = [level * (count + 1) - (level < 0.5) for level in levels]
    places = [min(max(math.ceil(min(max(rank, 1e-9), count - 1e-9)) - 1, 0), count - 1) for rank in ranks]
    columns = errors.transpose(-1, -2).contiguous().numpy()
    return torch.from_numpy(np.partition(columns, sorted(set(places)), -1)[..., places]).movedim(-1, 0)


def recent_errors(target: Tensor, forecasts: Tensor, memory: int) -> Tensor:
    """The errors whose outcome is known.

    Args:
        target: NaN where missing, shape (b, c, t).
        forecasts: After each of the last o of the t steps, shape (b, c, o, h).
        memory: Errors a step to return at most.
    Returns:
        Shape (b, c, j, h), NaN where unknown, j = memory or fewer; row -1 is the latest outcome.
    """
    o, horizon = forecasts.shape[-2:]
    t = target.shape[-1]
    # Row i of the result ends at outcome t - 1 - i: the forecast of step h was made h steps before it.
    count = min(memory, t)
    outcome = torch.arange(t - count, t)
    origin = outcome[:, None] - torch.arange(1, horizon + 1)  # (j, h), a step of the series
    place = origin - (t - o)
    known = (place >= 0) & (origin >= 0)
    made = forecasts[..., place.clamp_min(0), torch.arange(horizon)]
    errors = target[..., outcome, None] - made
    return torch.where(known, errors, torch.nan)
