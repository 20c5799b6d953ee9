"""An MLP whose two maps are Monarch matrices: two block-diagonal factors with a transposition between them.

    M x = P L P' R x,   out = M_out gelu(M_in x)

R and L have k blocks; the transposition P' deals each block's outputs out to all blocks of L, so every output depends
on every input at 1 / k of a dense map's weights and work.
Source: Dao et al. 2022, Monarch: expressive structured matrices, sec. 3; Fu et al. 2023, Monarch Mixer, sec. 3; the
"Monarch" variant of Patro & Agneeswaran 2024, SiMBA, table 1, is this channel mixer.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float
from .mlp import PositionWise


@dataclass(frozen=True, kw_only=True)
class MonarchMlpConfig:
    """Options of the Monarch MLP."""

    expand: float = 4.0
    """Hidden channels, in multiples of d_model."""
    blocks: int = 4
    """Blocks k of each factor; its square divides d_model, and it divides the hidden channels."""


class MonarchLinear(nn.Module):
    """A Monarch map of d channels to `out`, with a bias, (..., d) to (..., out).

    Raises:
        ValueError: The blocks do not divide what they must.
    """

    def __init__(self, d: int, out: int, blocks: int):
        super().__init__()
        inner = min(d, out)
        if blocks < 1 or d % blocks or out % blocks or inner % (blocks * blocks):
            raise ValueError(
                f"MonarchLinear: {d} to {out} channels in {blocks} blocks, expected blocks that divide both, "
                f"and {blocks}^2 to divide {inner}"
            )
        right, left = (blocks, inner // blocks, d // blocks), (blocks, out // blocks, inner // blocks)
        self.right, self.left = (nn.Parameter(torch.randn(*shape) / math.sqrt(shape[-1])) for shape in (right, left))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... out"]:
        """The map, shape (..., d) to (..., out). Raises nothing."""
        k = self.right.shape[0]
        inner = torch.einsum("...kd,kod->...ko", x.unflatten(-1, (k, -1)), self.right)
        dealt = inner.unflatten(-1, (k, -1)).transpose(-3, -2).flatten(-2)
        return torch.einsum("...kd,kod->...ko", dealt, self.left).flatten(-2) + self.bias


class MonarchMlp(PositionWise):
    """out_proj gelu(in_proj x) with Monarch maps, (b, l, d) to (b, l, d).

    Raises:
        ValueError: The blocks do not fit the channels.
    """

    Config = MonarchMlpConfig
    examples = ({"blocks": 2}, {"blocks": 2, "expand": 2.5})
    residual_out = ("out_proj.left", "out_proj.bias")

    def __init__(self, d_model: int, config: MonarchMlpConfig | None = None):
        super().__init__(d_model, config)
        hidden = int(self.config.expand * d_model)
        self.in_proj = MonarchLinear(d_model, hidden, self.config.blocks)
        self.out_proj = MonarchLinear(hidden, d_model, self.config.blocks)

    def map_channels(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Shape (..., d). Raises nothing of its own."""
        return self.out_proj(F.gelu(self.in_proj(x)))
