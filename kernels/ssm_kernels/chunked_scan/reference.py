"""The matrix-valued scan in plain PyTorch: the oracle of every backend. Sequential, obvious, slow."""

import torch
from torch import Tensor

from ..by_rows import by_rows
from ..rows import Row


def chunked_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    initial_state: Tensor | None,
    rows: list[Row] | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """o (b, l, h, p) and the last state (rows, h, n, p); arguments as in op.py, all in one compute dtype.

    rows: None for a plain batch; else steps outside every row give o = 0. Differentiable.
    """
    if rows is not None:

        def run(v, q, k, log_decay, beta, state):
            return chunked_scan(q, k, v, log_decay, beta, state, None, reverse)

        return by_rows(run, (v, q, k, log_decay, beta), initial_state, rows)
    (b, l, h, p), n = v.shape, q.shape[3]
    q, k = (t.repeat_interleave(h // t.shape[2], 2) for t in (q, k))
    state = v.new_zeros(b, h, n, p) if initial_state is None else initial_state.clone()
    outputs = []
    for t in range(l - 1, -1, -1) if reverse else range(l):
        if log_decay is not None:
            alpha = log_decay[:, t].exp()
            state = (alpha[..., None] if alpha.ndim == 3 else alpha[..., None, None]) * state
        write = v[:, t]
        if beta is not None:
            write = beta[:, t, :, None] * (write - torch.einsum("bhnp,bhn->bhp", state, k[:, t]))
        state = state + k[:, t, :, :, None] * write[:, :, None, :]
        outputs.append(torch.einsum("bhnp,bhn->bhp", state, q[:, t]))
    if not outputs:
        return v.new_zeros(v.shape), state.contiguous()
    return torch.stack(outputs[::-1] if reverse else outputs, 1), state.contiguous()
