"""From the nodes into the order of a scan, and back: two linear maps, each the transpose of the other.

    read: mean over tied nodes, then the nodes in visiting order        back: into place, then the mean over tied nodes

Autograd would turn every gather into a scattered sum over zeros. Here the gradient of one map is the other, which
gathers too; both have derivatives of any order.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssmcore.array_types import Float, Int
from ssmcore.functional import Rows

if TYPE_CHECKING:
    from .topology import Ties


@dataclass(frozen=True, eq=False)
class Passage:
    """What both maps know. n nodes, d channels."""

    order: Int[Tensor, "n"]
    """Node that is visited at each step."""
    place: Int[Tensor, "n"]
    """Step at which each node is visited."""
    ties: "Ties | None"
    """Nodes that are read as their mean; None for none."""

    @classmethod
    def of(cls, order: Int[Tensor, "n"], ties: "Ties | None" = None) -> "Passage":
        """From a permutation of the nodes, shape (n,). Raises nothing."""
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return cls(order, place, ties if ties is not None and len(ties.nodes) else None)

    def read(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Nodes (n, d) as the scan reads them, (n, d). Raises nothing."""
        return _Read.apply(x, self)

    def back(self, y: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """What a scan says at each step, (n, d), at its nodes, (n, d). Raises nothing."""
        return _Back.apply(y, self)


class MirroredRows(Rows):
    """Rows whose reversal, its own inverse and transpose, has itself for a gradient."""

    def reverse(self, x: Float[Tensor, "1 tokens d"]) -> Float[Tensor, "1 tokens d"]:
        """Every row from its last token to its first, (1, tokens, d). Raises: IndexError: x holds other tokens."""
        return Passage(self.mirrored, self.mirrored, None).read(x[0])[None]


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, passage: Passage) -> Tensor:
        ctx.passage = passage
        return (x if passage.ties is None else passage.ties.mean(x)).index_select(0, passage.order)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.passage.back(gradient), None


class _Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, passage: Passage) -> Tensor:
        ctx.passage = passage
        x = y.index_select(0, passage.place)
        return x if passage.ties is None else passage.ties.mean(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.passage.read(gradient), None
