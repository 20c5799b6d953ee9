"""What a network is shown, and what an encoder hands to a head: the contract between the two halves of a forecaster.

Window  --encoder-->  Hidden  --head-->  loss, or Prediction

b  items      c  channels      t  past steps      o  origins: the last o of the t steps, a forecast after each
h  prediction_length           e  width           k  inputs at a past step    q  known-future covariates
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What does not change from window to window."""

    prediction_length: int
    """h."""
    channels: int = 1
    """Channels that known-future covariates act on each in its own way: c."""
    inputs: int = 0
    """Covariates that each past step brings, known-future and past ones together: k."""
    known: int = 0
    """Covariates that are known for the future: q."""
    static: int = 0
    """Numbers that describe an item: s."""
    cardinalities: tuple[int, ...] = ()
    """Number of values of each category that describes an item."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A batch of pieces of series, each channel less its first value ever, in the units of the data."""

    target: Tensor
    """float64, NaN where missing, shape (b, c, t)."""
    inputs: Tensor
    """float32, shape (b, t, k)."""
    known: Tensor
    """Covariates of the steps to forecast, float32, shape (b, o, h, q)."""
    static: Tensor
    """float32, shape (b, s)."""
    category: Tensor
    """int64, shape (b, number of categories)."""
    base: Tensor
    """The linear forecast, float64, shape (b, c, o, h)."""
    scale: Tensor
    """Running scale of the series at the origins, float64, positive, shape (b, c, o)."""
    level: Tensor
    """Running mean of |value|, float64, shape (b, c, o)."""
    first: Tensor
    """The value that was taken off, float64, shape (b, c)."""
    dt: Tensor | None = None
    """Time since the step before, in steps, shape (b, t); None is 1 everywhere."""

    def to(self, device: torch.device) -> "Window":
        """On another device, shapes as before."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.to(device) for name, t in moved.items() if t is not None})


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """What an encoder found out."""

    features: Tensor
    """float32, shape (b, c, o, h, e)."""
    scale: Tensor
    """Of what is to be forecast, as the encoder sees it, float64, positive, shape (b, c, o)."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Quantiles or samples of the future, in the units of the window."""

    values: Tensor
    """float64, shape (n, b, c, o, h)."""
    levels: tuple[float, ...] | None
    """Of the n quantiles, rising; None for n samples."""
