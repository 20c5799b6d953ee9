"""Selective scan in plain PyTorch: the oracle that every backend is tested against. Sequential, obvious, slow.

Names: a, w discretised decay and input weight; h state; u = x. Shapes: b batch, l length, d channels, n state size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rows import Row

RULES = ("euler", "zoh", "bilinear")


def discretize(dt: Tensor, A: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Decay a and input weight w of h[t] = a h[t-1] + w B x[t].

    Args:
        dt: Step, real, any shape that broadcasts with A.
        A: Diagonal of the state matrix, real or complex.
        rule: "euler" (a = e^{dt A}, w = dt: Mamba's), "zoh" (w = (e^{dt A} - 1)/A) or "bilinear".
    Source: Gu et al. 2022, S4, eq. 3 (bilinear) and Gupta et al. 2022, DSS, eq. 4 (zoh); Gu & Dao 2023, Mamba (euler).
    """
    u = dt * A
    if rule == "euler":
        return u.exp(), dt
    if rule == "bilinear":
        q = 1 / (1 - u / 2)
        return (1 + u / 2) * q, dt * q
    tiny = u.abs() < 1e-2
    # Where the quotient is taken, its denominator is safe; where it is not, its gradient must not be nan either.
    safe_u = torch.where(tiny, torch.ones_like(u), u)
    series = 1 + u / 2 * (1 + u / 3 * (1 + u / 4 * (1 + u / 5 * (1 + u / 6 * (1 + u / 7)))))
    return u.exp(), dt * torch.where(tiny, series, torch.expm1(safe_u) / safe_u)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    rows: list[Row] | None,
    dt_softplus: bool,
    reverse: bool,
    rule: str,
) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last state (rows, d, n); arguments as in op.py, all in one compute dtype. Differentiable.

    rows: None for a plain batch; else steps outside every row give y = 0.
    """
    if rows is not None:
        return _scan_rows(x, dt, A, B, C, D, z, dt_bias, initial_state, rows, dt_softplus, reverse, rule)
    if reverse:
        x, dt, B, C = (t.flip(1) if t.ndim > 2 else t for t in (x, dt, B, C))
        z = None if z is None else z.flip(1)
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = F.softplus(dt, threshold=40)  # torch's default threshold of 20 is not exact in float64
    b, l, d = x.shape
    h = A.new_zeros(b, d, A.shape[1]) if initial_state is None else initial_state.to(A.dtype)
    outputs = []
    B_steps, C_steps = _steps(B, l, d), _steps(C, l, d)
    for x_t, dt_t, B_t, C_t in zip(x.unbind(1), dt.unbind(1), B_steps, C_steps, strict=True):
        a, w = discretize(dt_t[..., None], A, rule)
        h = a * h + w * B_t * x_t[..., None]
        y_t = (C_t * h).sum(-1)
        outputs.append(2 * y_t.real if y_t.is_complex() else y_t)
    y = torch.stack(outputs, 1) if outputs else x.clone()
    if D is not None:
        y = y + D * x
    if z is not None:
        y = y * F.silu(z)
    return (y.flip(1) if reverse else y), h


def routed_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    order: Tensor,
    rows: list[Row] | None,
    dt_softplus: bool,
    reverse: bool,
    rule: str,
) -> tuple[Tensor, Tensor]:
    """k scans over the same tokens, scan i in the order of table i, summed: y (b, l, d), last state (k, rows, d, n).

    All but z have the routes as their first axis: dt (k, b, l, d), A (k, d, n), order (k, l), initial_state
    (k, rows, d, n); x, B and C, (k, b, l, ...), may do without it where the routes share them, (b, l, ...).
    """
    y, last = torch.zeros_like(dt[0]), []
    for i, there in enumerate(order.long().unbind(0)):
        x_i, B_i, C_i = ((t[i] if t.ndim == 4 else t).index_select(1, there) for t in (x, B, C))
        z_i = None if z is None else z.index_select(1, there)
        D_i, bias, state = (None if t is None else t[i] for t in (D, dt_bias, initial_state))
        y_i, h = selective_scan(
            x_i, dt[i].index_select(1, there), A[i], B_i, C_i, D_i, z_i, bias, state, rows, dt_softplus, reverse, rule
        )
        y = y + y_i.index_select(1, there.argsort())
        last.append(h)
    return y, torch.stack(last)


def _steps(M: Tensor, l: int, d: int) -> list[Tensor]:
    """B or C at each step, broadcastable with (b, d, n)."""
    if M.ndim == 2:
        return [M] * l
    if M.ndim == 3:
        return list(M[:, :, None].unbind(1))
    return list(M.repeat_interleave(d // M.shape[2], dim=2).unbind(1))


def _scan_rows(x, dt, A, B, C, D, z, dt_bias, initial_state, rows, dt_softplus, reverse, rule):
    y, last = torch.zeros_like(x), []
    pieces = []
    for i, row in enumerate(rows):
        at = (slice(row.batch, row.batch + 1), slice(row.start, row.start + row.length))
        y_row, h_row = selective_scan(
            x[at], dt[at], A,
            B[at] if B.ndim > 2 else B,
            C[at] if C.ndim > 2 else C,
            D, z[at] if z is not None else None, dt_bias,
            initial_state[i : i + 1] if initial_state is not None else None,
            None, dt_softplus, reverse, rule,
        )  # fmt: skip
        pieces.append((at, y_row))
        last.append(h_row)
    for at, y_row in pieces:
        y = y.clone()
        y[at] = y_row
    return y, torch.cat(last)
