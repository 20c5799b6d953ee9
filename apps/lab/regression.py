"""In-context regression: points and values of a function that is new in each sequence; what is the value at the next?

    x1 0, 0 y1, x2 0, 0 y2, ...       asked at every point: what is its value?

The functions are those of the literature, each scaled so that values have the variance that a linear one has.
b batch, k points, n dimensions.
Source: Garg et al. 2022, What can transformers learn in-context?; Park et al. 2024, Can Mamba learn how to learn?
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ssmcore.registry import resolve

from .tasks import Drawn, at_least

Sampled = Callable[[Tensor, int, torch.Generator], Tensor]
"""(points (b, k, n), active dimensions, generator) -> values (b, k)."""
SPARSITY, HIDDEN, DEPTH = 3, 100, 4
"""Weights that are not zero; hidden units of the network; levels of the tree."""


def regression(
    batch: int,
    length: int,
    generator: torch.Generator,
    *,
    dims: int = 5,
    active: int | None = None,
    function: str = "linear",
    noise: float = 0.0,
    scale: float = 1.0,
) -> Drawn:
    """Draw sequences of points and values.

    Args:
        batch: b.
        length: Points k.
        generator: Of the draws.
        dims: n of a point.
        active: Dimensions in which points differ from 0 (a curriculum raises it); None is all.
        function: A key of FUNCTIONS.
        noise: Standard deviation that is added to the values.
        scale: Factor on the values.
    Returns:
        Vectors (b, 2 k, n + 1): a point and 0, then zeros and its value; targets (b, 2 k), NaN at the values.
    Raises:
        ValueError: length is below 1, active is not in 1..dims, or the function is unknown.
    """
    at_least("regression", length, 1)
    active = dims if active is None else active
    if not 1 <= active <= dims:
        raise ValueError(f"regression: active={active}, expected 1 to dims={dims}")
    draw = resolve(function, FUNCTIONS, "function")
    x = torch.randn(batch, length, dims, generator=generator)
    x[..., active:] = 0
    y = scale * draw(x, active, generator) + noise * torch.randn(batch, length, generator=generator)
    points = torch.cat([x, torch.zeros(batch, length, 1)], -1)
    values = torch.cat([torch.zeros_like(x), y[..., None]], -1)
    inputs = torch.stack([points, values], 2).flatten(1, 2)
    return inputs, torch.stack([y, torch.full_like(y, math.nan)], 2).flatten(1)


def least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """The best answers that linear regression without noise can give: the smallest weights that fit what was seen.

    Args:
        inputs: As `regression` draws them, (b, 2 k, n + 1).
        targets: (b, 2 k); gives the shape.
    Returns:
        Answers, (b, 2 k); zero where nothing is asked, and at the first point.
    Raises:
        ValueError: The shapes disagree.
    """
    if inputs.shape[:2] != targets.shape:
        raise ValueError(f"least_squares: targets have shape {tuple(targets.shape)}, inputs {tuple(inputs.shape)}")
    x, y = inputs[:, ::2, :-1].double(), inputs[:, 1::2, -1].double()
    answers = torch.zeros_like(targets, dtype=torch.float64)
    for i in range(1, x.shape[1]):
        weights = torch.linalg.pinv(x[:, :i]) @ y[:, :i, None]
        answers[:, 2 * i] = (x[:, i] * weights[..., 0]).sum(-1)
    return answers.to(inputs.dtype)


def _weights(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(len(x), x.shape[-1], 1, generator=generator)


def _linear(x: Tensor, active: int, generator: torch.Generator) -> Tensor:
    return (x @ _weights(x, generator))[..., 0]


def _sparse(x: Tensor, active: int, generator: torch.Generator) -> Tensor:
    w = _weights(x, generator)
    kept = torch.rand(len(x), active, generator=generator).argsort(1)[:, :SPARSITY]
    return (x @ (w * torch.zeros_like(w).scatter_(1, kept[..., None], 1.0)))[..., 0]


def _quadratic(x: Tensor, active: int, generator: torch.Generator) -> Tensor:
    return (x.square() @ _weights(x, generator))[..., 0] / 3**0.5


def _classification(x: Tensor, active: int, generator: torch.Generator) -> Tensor:
    return _linear(x, active, generator).sign()


def _network(x: Tensor, active: int, generator: torch.Generator) -> Tensor:
    into = torch.randn(len(x), x.shape[-1], HIDDEN, generator=generator)
    out = torch.randn(len(x), HIDDEN, 1, generator=generator)
    return ((x @ into).relu() @ out)[..., 0] * (2 / HIDDEN) ** 0.5


def _tree(x: Tensor, active: int, generator: torch.Generator) -> Tensor:
    """A full binary tree: each node asks for the sign of one coordinate, each leaf has a normal value."""
    asked = torch.randint(x.shape[-1], (len(x), 2**DEPTH - 1), generator=generator)
    leaves = torch.randn(len(x), 2**DEPTH, generator=generator)
    node = torch.zeros(x.shape[:2], dtype=torch.int64)
    for _ in range(DEPTH):
        coordinate = asked.gather(1, node)
        right = x.gather(2, coordinate[..., None])[..., 0] > 0
        node = 2 * node + 1 + right
    return leaves.gather(1, node - (2**DEPTH - 1))


FUNCTIONS: dict[str, Sampled] = {
    "linear": _linear,
    "sparse": _sparse,
    "quadratic": _quadratic,
    "classification": _classification,
    "relu_2nn": _network,
    "decision_tree": _tree,
}
"""What can be drawn by name."""
