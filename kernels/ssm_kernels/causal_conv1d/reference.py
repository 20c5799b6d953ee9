"""Causal depthwise convolution in plain PyTorch: the oracle that every backend is tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..by_rows import by_rows
from ..rows import Row


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    rows: list[Row] | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last state (rows, w - 1, d); arguments as in op.py, all in one compute dtype. Differentiable.

    rows: None for a plain batch; else steps outside every row give y = 0.
    """
    if rows is not None:
        return by_rows(
            lambda x, state: causal_conv1d(x, weight, bias, state, None, silu, reverse), (x,), initial_state, rows
        )
    (b, l, d), w = x.shape, weight.shape[1]
    state = x.new_zeros(b, w - 1, d) if initial_state is None else initial_state
    seen = torch.cat((state, x.flip(1) if reverse else x), 1)
    y = torch.zeros_like(x) if bias is None else bias.expand_as(x)
    for j in range(w):
        y = y + weight[:, j] * seen[:, j : j + l]
    if silu:
        y = F.silu(y)
    return (y.flip(1) if reverse else y), seen[:, l:].clone()
