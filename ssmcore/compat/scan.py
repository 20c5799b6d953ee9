"""mamba_ssm's functions around the selective scan, channel-first; equations as in `ssm_kernels.selective_scan`.

b batch, d channels, l length, n state size, g groups of B and C; h heads where a state has them, d then their width.
"""

import torch
import torch.nn.functional as F
from ssm_kernels.checks import COMPLEX, FLOATS, Shapes, check_devices, check_dtype
from torch import Tensor

from ..functional import at_least_float32, causal_conv1d, selective_scan
from .rows import check_slots


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan whole sequences.

    Args:
        u: Input, shape (b, d, l).
        delta: Step, shape (b, d, l).
        A: Diagonal of the state matrix, real or complex, shape (d, n).
        B: Constant, shape (d, n), or varying, (b, n, l) or (b, g, n, l); of a complex A the last axis of a varying B is
            2 l, real and imaginary parts in turn.
        C: As B.
        D: Skip weight, shape (d,).
        z: Gate, shape (b, d, l).
        delta_bias: Shape (d,).
        delta_softplus: Whether the step is softplus(delta + delta_bias).
        return_last_state: Also return the last state.
    Returns:
        y, shape (b, d, l), dtype of u; and the last state, shape (b, d, n), float32. Strides are not promised.
    Raises:
        ValueError: A shape, dtype or device is wrong.
    """
    op, shapes = "selective_scan_fn", Shapes("selective_scan_fn")
    shapes.check("u", u, "b d l")
    shapes.check("delta", delta, "b d l")
    shapes.check("A", A, "d n")
    for name, t, spec in (("D", D, "d"), ("z", z, "b d l"), ("delta_bias", delta_bias, "d")):
        if t is not None:
            shapes.check(name, t, spec)
    _check_types(op, {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias})
    B, C = (_steps_first(shapes, name, M, A.is_complex()) for name, M in (("B", B), ("C", C)))
    y, last = selective_scan(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        A,
        B,
        C,
        D=D,
        z=None if z is None else z.transpose(1, 2),
        dt_bias=delta_bias,
        dt_softplus=delta_softplus,
        return_last_state=True,
    )
    y = y.transpose(1, 2)
    return (y, last) if return_last_state else y


def _steps_first(shapes: Shapes, name: str, M: Tensor, is_complex: bool) -> Tensor:
    """A varying B or C with the steps first, shape (b, l, n) or (b, l, g, n); a constant one as it is."""
    if M.ndim == 2:
        shapes.check(name, M, "d n")
        return M
    if is_complex and not M.is_complex():
        M = torch.view_as_complex(at_least_float32(M).unflatten(-1, (-1, 2)).contiguous())
    shapes.check(name, M, "b n l", "b g n l")
    return M.transpose(1, 2) if M.ndim == 3 else M.permute(0, 3, 1, 2)


def _check_types(op: str, tensors: dict[str, Tensor | None]) -> None:
    is_complex = tensors["A"] is not None and tensors["A"].is_complex()
    for name, t in tensors.items():
        if t is not None:
            if not isinstance(t, Tensor):
                raise ValueError(f"{op}: {name} must be a torch.Tensor, got {type(t).__name__}")
            check_dtype(op, name, t, (*FLOATS, *COMPLEX) if is_complex and name in "ABC" else FLOATS)
    check_devices(op, tensors)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """A Mamba block between its first projection and its output, differentiable.

    Args:
        xz: Input and gate, shape (b, 2 d, l).
        conv1d_weight: Shape (d, 1, w).
        conv1d_bias: Shape (d,).
        x_proj_weight: To the low-rank step of r numbers, B and C: shape (r + 2 n, d), less n for a constant B or C.
        delta_proj_weight: Shape (d, r).
        out_proj_weight: Shape (e, d).
        out_proj_bias: Shape (e,).
        A: Shape (d, n), real or complex.
        B: None to project it from the tokens; else as in `selective_scan_fn`.
        C: Likewise.
        D: Shape (d,).
        delta_bias: Shape (d,).
        B_proj_bias: Added to the projected B, shape (n,).
        C_proj_bias: Added to the projected C, shape (n,).
        delta_softplus: Whether the step is softplus(delta + delta_bias).
        checkpoint_lvl: How much upstream's backward recomputes; ours always stores only what it must.
        b_rms_weight: Normalise B with it, shape (n,).
        c_rms_weight: Normalise C with it, shape (n,).
        dt_rms_weight: Normalise the steps, after their projection, with it, shape (d,).
        b_c_dt_rms_eps: Added to their mean squares.
    Returns:
        The block's output, shape (b, l, e).
    Raises:
        ValueError: A shape, dtype or device is wrong.
    """
    shapes = Shapes("mamba_inner_fn")
    shapes.check("A", A, "d n")
    shapes.check("delta_proj_weight", delta_proj_weight, "d r")
    shapes.check("conv1d_weight", conv1d_weight, "d 1 w")
    shapes.check("out_proj_weight", out_proj_weight, "e d")
    shapes.check("xz", xz, "b channels l")
    if xz.shape[1] != 2 * A.shape[0]:
        raise ValueError(f"mamba_inner_fn: xz has {xz.shape[1]} channels, expected 2 d = {2 * A.shape[0]}, from A")
    _check_types("mamba_inner_fn", {"xz": xz, "A": A, "D": D, "delta_bias": delta_bias, "x_proj": x_proj_weight})
    n = A.shape[1] * (2 if A.is_complex() else 1)
    u, z = xz.transpose(1, 2).chunk(2, dim=2)
    u = causal_conv1d(u, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    assert isinstance(u, Tensor)
    weights = [delta_proj_weight.shape[1], n if B is None else 0, n if C is None else 0]
    low_rank, B_own, C_own = F.linear(u, x_proj_weight).split(weights, dim=2)
    dt = F.linear(low_rank, delta_proj_weight)
    if dt_rms_weight is not None:
        dt = _rms_norm(dt, dt_rms_weight, b_c_dt_rms_eps)
    B = _projected(shapes, "B", B, B_own, B_proj_bias, b_rms_weight, b_c_dt_rms_eps, A)
    C = _projected(shapes, "C", C, C_own, C_proj_bias, c_rms_weight, b_c_dt_rms_eps, A)
    y = selective_scan(u, dt, A, B, C, D=D, z=z, dt_bias=delta_bias, dt_softplus=delta_softplus)
    assert isinstance(y, Tensor)
    bias = None if out_proj_bias is None else out_proj_bias.to(out_proj_weight.dtype)
    return F.linear(y.to(out_proj_weight.dtype), out_proj_weight, bias)


def _projected(shapes, name, given, own, bias, rms_weight, eps, A) -> Tensor:
    """B or C, shape (b, l, n), from the tokens unless it was given."""
    if given is not None:
        return _steps_first(shapes, name, given, A.is_complex())
    own = own if bias is None else own + bias.to(own.dtype)
    own = own if rms_weight is None else _rms_norm(own, rms_weight, eps)
    return torch.view_as_complex(at_least_float32(own).unflatten(-1, (-1, 2)).contiguous()) if A.is_complex() else own


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(at_least_float32(x), x.shape[-1:], at_least_float32(weight), eps).to(x.dtype)


@torch.no_grad()
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """One step of the recurrence, the state written in place. Not differentiable, as upstream.

    Args:
        state: Shape (b, d, n) or (b, h, d, n); with `state_batch_indices` (slots, ...).
        x: Shape (b, d) or (b, h, d), as are dt and z.
        dt: Step.
        A: Shape (d, n) or (h, d, n).
        B: Shape (b, n), or of g groups of heads (b, g, n).
        C: As B.
        D: Shape (d,) or (h, d).
        z: Gate.
        dt_bias: Shape (d,) or (h, d).
        dt_softplus: Whether the step is softplus(dt + dt_bias).
        state_batch_indices: The slot of each item, int, shape (b,).
    Returns:
        y, shape and dtype of x.
    Raises:
        ValueError: A shape, dtype or device is wrong.
    """
    op, shapes = "selective_state_update", Shapes("selective_state_update")
    heads = isinstance(state, Tensor) and state.ndim == 4
    token, weight, group = ("b h d", "h d", "b g n") if heads else ("b d", "d", "b n")
    shapes.check("x", x, token)
    shapes.check("state", state, ("s " if state_batch_indices is not None else "b ") + weight + " n")
    given = (("dt", dt, token), ("A", A, f"{weight} n"), ("B", B, group), ("C", C, group), ("D", D, weight))
    for name, t, spec in (*given, ("z", z, token), ("dt_bias", dt_bias, weight), ("indices", state_batch_indices, "b")):
        if t is not None:
            shapes.check(name, t, spec)
    tensors = {"state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    _check_types(op, tensors)
    if heads and (B.shape[1] == 0 or x.shape[1] % B.shape[1]):
        raise ValueError(f"{op}: {x.shape[1]} heads cannot share {B.shape[1]} groups of B and C")
    if state_batch_indices is not None:
        check_slots(op, "state_batch_indices", state_batch_indices, state.shape[0])
        slots = state_batch_indices.long()
        own = state[slots]
        y = selective_state_update(own, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
        state[slots] = own
        return y
    u, decay, dt = at_least_float32(x), *_steps(dt, A, dt_bias, dt_softplus)
    if heads:
        B, C = (M.repeat_interleave(x.shape[1] // M.shape[1], 1) for M in (B, C))
    wide = state if state.dtype == u.dtype else state.to(u.dtype)
    wide.mul_(decay).addcmul_((dt * u)[..., None], at_least_float32(B)[..., None, :])
    if wide is not state:
        state.copy_(wide)
    y = (wide @ at_least_float32(C)[..., None])[..., 0]
    y = y if D is None else y + u * D
    return (y if z is None else y * F.silu(at_least_float32(z))).to(x.dtype)


def _steps(dt: Tensor, A: Tensor, bias: Tensor | None, softplus: bool) -> tuple[Tensor, Tensor]:
    """The decay, shape (b, ..., d, n) or smaller with axes of 1, and the step, shape (b, ..., d).

    Mamba-2 gives one decay a head, spread over (d, n) by strides of 0: then it is computed once a head.
    """
    spread = A.ndim == 3 and A.stride(-1) == A.stride(-2) == dt.stride(-1) == 0
    if spread and (bias is None or bias.stride(-1) == 0):
        A, dt, bias = A[:, :1, :1], dt[..., :1], None if bias is None else bias[..., :1]
    step = at_least_float32(dt) if bias is None else at_least_float32(dt) + bias
    step = F.softplus(step) if softplus else step
    return torch.exp(step[..., None] * at_least_float32(A)), step
