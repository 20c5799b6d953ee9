"""Sums over lists of rows: a sparse matrix of zeros and ones, as lists of its rows and of its columns.

    y[i] = sum of x[j] over j in bag i

Autograd would scatter the gradient of such a sum. Here the gradient is the sum over the transposed lists, which gathers
as well: faster on CPUs, the same bits in every run on GPUs, and with derivatives of any order.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmcore.array_types import Float, Int


@dataclass(frozen=True, eq=False)
class Bags:
    """The lists. r bags of c rows, with m entries in all."""

    index: Int[Tensor, "m"]
    """Members, bag after bag, each 0 .. c - 1."""
    bounds: Int[Tensor, "r1"]
    """Where each bag starts in `index`, and at last m; shape (r + 1,)."""
    index_t: Int[Tensor, "m"]
    """For each of the c rows after the other: the bags that it is in."""
    bounds_t: Int[Tensor, "c1"]
    """The bounds of these, shape (c + 1,)."""

    @classmethod
    def consecutive(cls, bag: Int[Tensor, "m"], bounds: Int[Tensor, "r1"]) -> "Bags":
        """Rows that stand bag by bag.

        Args:
            bag: Bag of each row, rising, shape (m,).
            bounds: Where each bag starts, and at last m; shape (r + 1,).
        """
        rows = torch.arange(len(bag) + 1, device=bag.device)
        return cls(rows[:-1], bounds, bag, rows)

    def sum(self, x: Float[Tensor, "c d"]) -> Float[Tensor, "r d"]:
        """The sum of every bag, (c, d) to (r, d); 0 for an empty one. Real dtypes. Raises nothing."""
        return _Sum.apply(x, self, False)


def bounds_of(sizes: Int[Tensor, "r"]) -> Int[Tensor, "r1"]:
    """Where lists of these sizes, shape (r,), start when one follows the other, and at last the end; shape (r + 1,).

    Raises nothing.
    """
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bags: Bags, transposed: bool) -> Tensor:
        ctx.bags, ctx.transposed = bags, transposed
        index, bounds = (bags.index_t, bags.bounds_t) if transposed else (bags.index, bags.bounds)
        return F.embedding_bag(index, x.contiguous(), bounds, mode="sum", include_last_offset=True)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Sum.apply(gradient, ctx.bags, not ctx.transposed), None, None
