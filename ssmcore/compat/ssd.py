"""mamba_ssm's functions around the state space dual, Mamba-2's scan.

    S[t] = exp(dt[t] A) S[t-1] + B[t] (dt[t] x[t])^T,   y[t] = S[t]^T C[t] + D x[t]

b batch, l length, h heads, p head width, g groups of heads that share B and C, n state size.
"""

import torch
import torch.nn.functional as F
from ssm_kernels.checks import FLOATS, Shapes, check_devices, check_dtype
from torch import Tensor

from ..functional import Rows, at_least_float32, chunked_scan
from .conv import causal_conv1d_fn
from .norm import rmsnorm_fn
from .rows import rows_of_index


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Scan whole sequences, differentiable.

    Args:
        x: Input, shape (b, l, h, p).
        dt: Step, shape (b, l, h).
        A: Decay rate of a head, shape (h,).
        B: Shape (b, l, g, n).
        C: Shape (b, l, g, n).
        chunk_size: Upstream's tokens a block, a matter of speed; ours chooses its own.
        D: Skip weight, shape (h,) or (h, p).
        z: Gate, shape (b, l, h, p); the output is multiplied by silu(z).
        dt_bias: Shape (h,).
        initial_states: Shape (b, h, p, n).
        seq_idx: The packed sequence that each token is of, shape (b, l); the state starts anew with each.
        cu_seqlens: The same as bounds, shape (r + 1,), for b = 1; `return_varlen_states` needs them.
        dt_softplus: Whether the step is softplus(dt + dt_bias).
        dt_limit: Smallest and largest step.
        return_final_states: Also return the last states, shape (b, h, p, n).
        return_varlen_states: Also return the last state of each packed sequence, shape (r, h, p, n).
    Returns:
        y, shape (b, l, h, p), dtype of x; and the states that were asked for.
    Raises:
        ValueError: A shape, dtype or device is wrong.
    """
    op = "mamba_chunk_scan_combined"
    rows = _check_scan(op, x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, return_varlen_states)
    u = at_least_float32(x)
    step = at_least_float32(dt) if dt_bias is None else at_least_float32(dt) + dt_bias
    step = F.softplus(step) if dt_softplus else step
    if tuple(dt_limit) != (0.0, float("inf")):
        step = step.clamp(*dt_limit)
    steps = (at_least_float32(C), at_least_float32(B), step[..., None] * u, step * at_least_float32(A))
    state = None if initial_states is None else at_least_float32(initial_states).transpose(2, 3)
    if rows is None:
        y, last = _scan(steps, state, None)
        finals = each = last
    else:
        if state is not None:
            state = state.new_zeros(rows.count, *state.shape[1:]).index_copy(0, rows.first, state)
        y, each = _scan(tuple(map(rows.pack, steps)), state, rows)
        y, finals = rows.unpack(y), each.index_select(0, rows.last)
    if D is not None:
        y = y + u * (D if D.ndim == 2 else D[:, None])
    y = (y if z is None else y * F.silu(at_least_float32(z))).to(x.dtype)
    out = (y, *[finals.transpose(2, 3)] * return_final_states, *[each.transpose(2, 3)] * return_varlen_states)
    return out if len(out) > 1 else y


def _scan(steps: tuple[Tensor, ...], state: Tensor | None, rows: Rows | None) -> tuple[Tensor, Tensor]:
    q, k, v, log_decay = steps
    bounds = None if rows is None else rows.cu_seqlens
    y, last = chunked_scan(q, k, v, log_decay=log_decay, initial_state=state, cu_seqlens=bounds, return_last_state=True)
    return y, last


def _check_scan(op, x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, varlen) -> Rows | None:
    shapes = Shapes(op)
    given = (
        ("x", x, "b l h p"), ("dt", dt, "b l h"), ("A", A, "h"), ("B", B, "b l g n"), ("C", C, "b l g n"),
        ("z", z, "b l h p"), ("dt_bias", dt_bias, "h"), ("initial_states", initial_states, "b h p n"),
    )  # fmt: skip
    for name, t, spec in given:
        if t is not None:
            shapes.check(name, t, spec)
            check_dtype(op, name, t, FLOATS)
    if D is not None:
        shapes.check("D", D, "h", "h p")
    check_devices(op, {**{name: t for name, t, _ in given}, "D": D})
    b, l, h, g = (shapes.sizes[letter] for letter in "blhg")
    if g == 0 or h % g:
        raise ValueError(f"{op}: {h} heads cannot share {g} groups of B and C")
    if varlen and cu_seqlens is None:
        raise ValueError(f"{op}: return_varlen_states needs cu_seqlens")
    if cu_seqlens is not None:
        if b != 1 or cu_seqlens.ndim != 1:
            raise ValueError(f"{op}: cu_seqlens {tuple(cu_seqlens.shape)} needs shape (r + 1,) and b = 1, got b = {b}")
        lengths = torch.diff(cu_seqlens.long())
        if len(lengths) == 0 or int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != l or bool((lengths <= 0).any()):
            raise ValueError(f"{op}: cu_seqlens must rise from 0 to l={l}, got {cu_seqlens.tolist()}")
        seq_idx = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)[None]
    return None if seq_idx is None else rows_of_index(op, seq_idx, b, l)


def ssd_minimal_discrete(
    X: Tensor, A: Tensor, B: Tensor, C: Tensor, block_len: int, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scan of steps that are discretised already, as upstream's teaching code writes it; any length.

    Args:
        X: Input times step, shape (b, l, h, p).
        A: Log decay of each step, shape (b, l, h).
        B: Shape (b, l, h, n).
        C: Shape (b, l, h, n).
        block_len: Upstream's tokens a block, a matter of speed; ours chooses its own.
        initial_states: Shape (b, 1, h, p, n) or (b, h, p, n).
    Returns:
        y, shape (b, l, h, p), and the last states, shape (b, h, p, n).
    Raises:
        ValueError: A shape, dtype or device is wrong.
    """
    state = None if initial_states is None else initial_states.reshape(-1, *initial_states.shape[-3:]).transpose(2, 3)
    y, last = _scan((C, B, X, A), state, None)
    return y, last.transpose(2, 3)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """A Mamba-2 block between its first projection and its output, differentiable.

    Args:
        zxbcdt: Gates, input, B, C and steps, shape (b, l, 2 m + 2 d + 2 g n + h): 2 m for a gated side path, then z, x
            of d = h p channels, B and C of g n, and dt.
        conv1d_weight: Shape (d + 2 g n, w).
        conv1d_bias: Shape (d + 2 g n,).
        dt_bias: Shape (h,).
        A: Shape (h,).
        D: Shape (h,) or (h, p).
        chunk_size, initial_states, seq_idx, dt_limit, return_final_states: As in `mamba_chunk_scan_combined`.
        activation: Of the convolution: None, "silu" or "swish".
        rmsnorm_weight: Of the gated norm before the output, shape (d,); None gates only.
        rmsnorm_eps: Added to its mean squares.
        outproj_weight: Shape (e, d + m); None leaves the projection out.
        outproj_bias: Shape (e,).
        headdim: p; needed where D is (h,).
        ngroups: g.
        norm_before_gate: Normalise, then gate; else the other way round.
    Returns:
        The output, shape (b, l, e) or (b, l, d + m); and with `return_final_states` the states, (b, h, p, n).
    Raises:
        ValueError: A shape, dtype or device is wrong, or headdim is missing.
    """
    op, shapes = "mamba_split_conv1d_scan_combined", Shapes("mamba_split_conv1d_scan_combined")
    shapes.check("zxbcdt", zxbcdt, "b l channels")
    shapes.check("A", A, "h")
    shapes.check("D", D, "h", "h p")
    shapes.check("conv1d_weight", conv1d_weight, "c w")
    p = D.shape[1] if D.ndim == 2 else headdim
    if p is None:
        raise ValueError(f"{op}: headdim is needed where D has shape (h,), got None")
    h, c = A.shape[0], conv1d_weight.shape[0]
    d, shared = h * p, (c - h * p) // 2
    side = (zxbcdt.shape[2] - d - c - h) // 2
    if c != d + 2 * shared or shared % ngroups or shared < 0 or zxbcdt.shape[2] != 2 * side + d + c + h or side < 0:
        came = f"zxbcdt {tuple(zxbcdt.shape)} and conv1d_weight {tuple(conv1d_weight.shape)}"
        raise ValueError(f"{op}: {came} do not fit {h} heads of {p} and {ngroups} groups")
    gate0, side0, z, u, dt = zxbcdt.split([side, side, d, c, h], dim=2)
    u = causal_conv1d_fn(u.transpose(1, 2), conv1d_weight, conv1d_bias, seq_idx, activation=activation)
    assert isinstance(u, Tensor)
    u, B, C = u.transpose(1, 2).split([d, shared, shared], dim=2)
    B, C = (M.unflatten(2, (ngroups, -1)) for M in (B, C))
    y, finals = mamba_chunk_scan_combined(
        u.unflatten(2, (h, p)), dt, A, B, C, chunk_size, D=D, dt_bias=dt_bias, initial_states=initial_states,
        z=None if rmsnorm_weight is not None else z.unflatten(2, (h, p)), seq_idx=seq_idx, dt_softplus=True,
        dt_limit=dt_limit, return_final_states=True,
    )  # fmt: skip
    y = y.flatten(2)
    if rmsnorm_weight is not None:
        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, d // ngroups, norm_before_gate)
    y = torch.cat([F.silu(gate0) * side0, y], 2) if side else y
    if outproj_weight is not None:
        y = F.linear(y.to(outproj_weight.dtype), outproj_weight, outproj_bias)
    return (y, finals) if return_final_states else y
