"""How the steps of a model begin: spread over the scales of time that it is to see. Δ in the papers."""

import math

import torch
from torch import Tensor


def log_uniform(d: int, low: float, high: float) -> Tensor:
    """d random steps between `low` and `high`, evenly spread on a log scale, shape (d,).

    Raises:
        ValueError: Not 0 < low <= high.
    """
    if not 0 < low <= high:
        raise ValueError(f"steps between {low} and {high}, expected 0 < low <= high")
    return (torch.rand(d) * (math.log(high) - math.log(low)) + math.log(low)).exp()


def inverse_softplus(y: Tensor) -> Tensor:
    """x with softplus(x) = y, for y > 0, any shape. Raises nothing."""
    return y + torch.log(-torch.expm1(-y))
