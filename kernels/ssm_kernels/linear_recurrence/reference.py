"""Linear recurrence in plain PyTorch: the oracle that every backend is tested against. Sequential, obvious, slow."""

import torch
from torch import Tensor

from ..by_rows import by_rows
from ..rows import Row


def linear_recurrence(
    a: Tensor, b: Tensor, initial_state: Tensor | None, rows: list[Row] | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """h (b, l, d) and the last state (rows, d); arguments as in op.py, all in one compute dtype. Differentiable.

    rows: None for a plain batch; else steps outside every row give h = 0.
    """
    if rows is not None:
        if a.ndim == 1:
            return by_rows(lambda b, h: linear_recurrence(a, b, h, None, reverse), (b,), initial_state, rows)
        return by_rows(lambda b, a, h: linear_recurrence(a, b, h, None, reverse), (b, a), initial_state, rows)
    if reverse:
        a, b = a.flip(1) if a.ndim == 3 else a, b.flip(1)
    h = b.new_zeros(b.shape[0], b.shape[2]) if initial_state is None else initial_state.clone()
    states = []
    for a_t, b_t in zip([a] * b.shape[1] if a.ndim == 1 else a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        states.append(h)
    y = torch.stack(states, 1) if states else b.new_zeros(b.shape)
    return (y.flip(1) if reverse else y), h.contiguous()
