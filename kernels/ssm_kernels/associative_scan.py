"""Inclusive scan under any associative operation, in logarithmic depth, by differentiable PyTorch operations.

    y[0] = x[0],   y[t] = combine(y[t-1], x[t])

Elements are pytrees of tensors, so the same code serves the affine maps of a linear recurrence, (a, b), and the
monoids of a Kalman filter.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def associative_scan(combine: Callable[[Any, Any], Any], elements: Any, dim: int = 1, reverse: bool = False) -> Any:
    """All partial combinations of a sequence of elements.

    About 2 l applications of `combine`, in 2 log2(l) batched calls. Differentiable if `combine` is.

    Args:
        combine: Associative, from (earlier, later) to their combination, elementwise along `dim`; both are pytrees like
            `elements`, of any equal length along `dim`.
        elements: A pytree of tensors that have the same size l along `dim`.
        dim: The dimension of time; the same in each tensor, so count from the front where the ranks differ.
        reverse: Combine from the last step to the first; "earlier" then means nearer to the end.
    Returns:
        A pytree like `elements`: the combination of all steps up to each one.
    Raises:
        ValueError: No tensor is given, or the sizes along `dim` differ.
    Source: Blelloch 1990, Prefix sums and their applications; the recursion is that of jax.lax.associative_scan.
    """
    leaves, structure = pytree.tree_flatten(elements)
    if not leaves or not all(isinstance(t, Tensor) for t in leaves):
        raise ValueError(f"associative_scan: elements must be a pytree of tensors, got {elements!r}")
    for i, t in enumerate(leaves):
        if not -t.ndim <= dim < t.ndim:
            raise ValueError(f"associative_scan: tensor {i} of elements has {t.ndim} dimensions, none is dim={dim}")
        if t.shape[dim] != leaves[0].shape[dim]:
            expected = f"{leaves[0].shape[dim]} as tensor 0"
            raise ValueError(
                f"associative_scan: tensor {i} of elements has size {t.shape[dim]} along dim, not {expected}"
            )

    def joined(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
        made = combine(pytree.tree_unflatten(left, structure), pytree.tree_unflatten(right, structure))
        return pytree.tree_flatten(made)[0]

    if reverse:
        leaves = [t.flip(dim) for t in leaves]
    scanned = _scan(joined, leaves, dim)
    if reverse:
        scanned = [t.flip(dim) for t in scanned]
    return pytree.tree_unflatten(scanned, structure)


def affine(earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Composition of the maps h -> a h + b: the monoid of the linear recurrence.

    Args:
        earlier, later: (a, b), any equal shapes.
    """
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]


def _scan(joined: Callable[[list[Tensor], list[Tensor]], list[Tensor]], leaves: list[Tensor], dim: int) -> list[Tensor]:
    length = leaves[0].shape[dim]
    if length < 2:
        return leaves
    pairs = length // 2
    even, odd = [_every_second(t, dim, 0) for t in leaves], [_every_second(t, dim, 1) for t in leaves]
    at_odd = _scan(joined, joined([t.narrow(dim, 0, pairs) for t in even], odd), dim)
    if length == 2:
        at_even = even
    else:
        rest = (length + 1) // 2 - 1
        later = joined([t.narrow(dim, 0, rest) for t in at_odd], [t.narrow(dim, 1, rest) for t in even])
        at_even = [torch.cat((t.narrow(dim, 0, 1), u), dim) for t, u in zip(even, later, strict=True)]
    return [_interleave(e, o, dim) for e, o in zip(at_even, at_odd, strict=True)]


def _every_second(t: Tensor, dim: int, first: int) -> Tensor:
    index: list[slice] = [slice(None)] * t.ndim
    index[dim] = slice(first, None, 2)
    return t[tuple(index)]


def _interleave(even: Tensor, odd: Tensor, dim: int) -> Tensor:
    dim = dim % even.ndim
    extra = even.shape[dim] - odd.shape[dim]
    both = torch.stack((even.narrow(dim, 0, odd.shape[dim]), odd), dim + 1).flatten(dim, dim + 1)
    return torch.cat((both, even.narrow(dim, odd.shape[dim], extra)), dim) if extra else both
