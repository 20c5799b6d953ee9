"""Short causal depthwise convolution with its window in the state: the local part of most recurrent mixers.

    y[t] = bias + sum_j weight[:, j] x[t - w + 1 + j]

Any number of tokens continues any state: one token is not a case of its own.
"""

import math

import torch
from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..functional import causal_conv1d
from ..mixer import Context


class ShortConv(nn.Module):
    """Depthwise convolution over the last `width` tokens. Parameters are named and shaped as nn.Conv1d's.

    Shapes: x (b, l, d) or packed (1, tokens, d); state (b, w - 1, d) or (r, w - 1, d), oldest token first.

    Raises:
        ValueError: d or width < 1.
    """

    def __init__(self, d: int, width: int, *, bias: bool = True, activation: str | None = "silu"):
        super().__init__()
        if d < 1 or width < 1:
            raise ValueError(f"ShortConv: d={d}, width={width}, expected at least 1")
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(d, 1, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(d).uniform_(-bound, bound)) if bias else None
        self.activation = activation

    def forward(
        self, x: Tokens, state: Float[Tensor, "r window d"] | None, ctx: Context
    ) -> tuple[Tokens, Float[Tensor, "r window d"]]:
        """Convolve.

        Args:
            x: Tokens, shape (b, l, d) or packed.
            state: The w - 1 inputs before each item's or row's first token; zeros when None.
            ctx: The rows of packed tokens.
        Returns:
            y, shape and dtype of x; and the last w - 1 inputs, float32 (float64 when the weights are).
        Raises:
            ValueError: A shape disagrees.
        """
        y, last = causal_conv1d(
            x,
            self.weight[:, 0],
            self.bias,
            activation=self.activation,
            initial_state=state,
            cu_seqlens=ctx.cu_seqlens,
            return_last_state=True,
        )
        return y, last

    def extra_repr(self) -> str:
        """What print(module) shows."""
        d, _, width = self.weight.shape
        return f"{d}, width={width}, bias={self.bias is not None}, activation={self.activation}"
