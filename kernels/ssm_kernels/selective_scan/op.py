"""The selective scan operator: input checks, torch.library registration, choice of backend.

    a[t], w[t] = discretize(dt[t], A)          rule: "euler" (Mamba), "zoh" or "bilinear"
    h[t]       = a[t] h[t-1] + w[t] B[t] x[t]
    y[t]       = (C[t] . h[t] + D x[t]) silu(z[t])

Names as in Gu & Dao 2023, Mamba, with dt for Delta; b batch, l length, d channels, n state size.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from .. import backends, rows
from ..autograd import differentiable_vector_jacobian, vector_jacobian
from ..checks import COMPLEX, FLOATS, Shapes, check_choice, check_devices, check_dtype, compute_dtype
from ..library import define, register
from . import native, reference

PROBES: dict[str, backends.Probe] = {"native": backends.native_probe, "reference": backends.reference_probe}

# The tensors that have a gradient, in the order of every signature here.
TENSORS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor? initial_state, "
    "Tensor? cu_seqlens, Tensor? lengths, bool dt_softplus, bool reverse, str rule, str backend"
)
define(f"selective_scan({_INPUTS}, bool save) -> (Tensor y, Tensor last_state, Tensor boundaries)")
define(f"selective_scan_backward(Tensor dy, Tensor? dlast, Tensor boundaries, {_INPUTS}) -> Tensor[]")


def selective_scan(
    x: Float[Tensor, "b l d"],
    dt: Float[Tensor, "b l d"],
    A: Shaped[Tensor, "d n"],
    B: Shaped[Tensor, "b l n"] | Shaped[Tensor, "b l g n"] | Shaped[Tensor, "d n"],
    C: Shaped[Tensor, "b l n"] | Shaped[Tensor, "b l g n"] | Shaped[Tensor, "d n"],
    *,
    D: Float[Tensor, " d"] | None = None,
    z: Float[Tensor, "b l d"] | None = None,
    dt_bias: Float[Tensor, " d"] | None = None,
    dt_softplus: bool = False,
    initial_state: Shaped[Tensor, "r d n"] | None = None,
    cu_seqlens: Int[Tensor, " r+1"] | None = None,
    lengths: Int[Tensor, " b"] | None = None,
    reverse: bool = False,
    rule: str = "euler",
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan a diagonal selective state space over time.

        h[t] = a[t] h[t-1] + w[t] B[t] x[t],   y[t] = (C[t] . h[t] + D x[t]) silu(z[t])

    Differentiable in every tensor, `initial_state` included, from `y` and from the last state. Memory grows with
    (b, l, d) only: backward computes the states again from one in every few dozen steps.

    Args:
        x: Input, shape (b, l, d), any float dtype.
        dt: Step, in samples, shape (b, l, d); positive after `dt_bias` and `dt_softplus`.
        A: Diagonal of the state matrix, real part < 0 for a stable system, in 1/sample, shape (d, n). A complex A
            stands for conjugate pairs: y = 2 Re(C . h).
        B: Input projection: varying, shape (b, l, n), or in g groups of d/g channels, shape (b, l, g, n); or constant,
            shape (d, n). Complex only with a complex A.
        C: Output projection, likewise.
        D: Skip weight, shape (d,).
        z: Gate, shape (b, l, d); the output is multiplied by silu(z).
        dt_bias: Added to dt before softplus, shape (d,).
        dt_softplus: Whether the step is softplus(dt + dt_bias).
        initial_state: h before the first step, shape (r, d, n); zeros when None. r is b, or the number of segments.
        cu_seqlens: Bounds of r packed sequences, rising from 0 to l, int32 or int64, shape (r + 1,); needs b = 1. The
            state starts anew at every bound, exactly.
        lengths: Valid steps of each item, int32 or int64, shape (b,); the padding to the right of them gives y = 0
            and leaves the last state alone.
        reverse: Scan from the last step to the first; the last state is then the one at the first step.
        rule: Discretisation: "euler" (a = e^{dt A}, w = dt), "zoh" (w = (e^{dt A} - 1)/A) or "bilinear".
        return_last_state: Also return the last state.
        backend: "auto", "reference", "native" or "triton".
    Returns:
        y, shape and dtype of x; with `return_last_state` also the last state, shape (r, d, n), float32 (float64 when
        any input is; complex when A is).
    Raises:
        ValueError: A shape, dtype, device or value disagrees; names the argument, what was expected and what came.
        RuntimeError: The backend that was asked for cannot run here.
    Source: Gu & Dao 2023, Mamba, Alg. 2 and eq. 4; "euler" as in the released code.
    """
    dtype = _check(x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, lengths, rule)
    chosen = backends.choose("selective_scan", backend, x.device.type, PROBES)
    state_dtype = dtype.to_complex() if A.is_complex() else dtype
    as_state = {"A", "B", "C", "initial_state"}
    given = zip(TENSORS, (x, dt, A, B, C, D, z, dt_bias, initial_state), strict=True)
    tensors = [t if t is None else t.to(state_dtype if name in as_state else dtype) for name, t in given]
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, last, _ = torch.ops.ssm_kernels.selective_scan(
        *tensors, cu_seqlens, lengths, dt_softplus, reverse, rule, chosen, save
    )
    y = y.to(x.dtype)
    return (y, last) if return_last_state else y


def _check(x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, lengths, rule) -> torch.dtype:
    op, shapes = "selective_scan", Shapes("selective_scan")
    shapes.check("x", x, "b l d")
    shapes.check("dt", dt, "b l d")
    shapes.check("A", A, "d n")
    specs = {name: shapes.check(name, M, "b l n", "b l g n", "d n") for name, M in (("B", B), ("C", C))}
    for name, t, spec in (("D", D, "d"), ("z", z, "b l d"), ("dt_bias", dt_bias, "d")):
        if t is not None:
            shapes.check(name, t, spec)
    if (g := shapes.sizes.get("g", 1)) and (g == 0 or shapes.sizes["d"] % g):
        raise ValueError(f"{op}: d={shapes.sizes['d']} channels cannot be cut into g={g} groups of B and C")
    if len({specs["B"], specs["C"]} & {"b l n", "b l g n"}) == 2 and g != 1:
        raise ValueError(f"{op}: B has shape {tuple(B.shape)} and C {tuple(C.shape)}; give both in {g} groups")
    shapes.sizes["r"], shapes.source["r"] = rows.check_rows(shapes, cu_seqlens, lengths), "the rows"
    if initial_state is not None:
        shapes.check("initial_state", initial_state, "r d n")
    given = dict(zip(TENSORS, (x, dt, A, B, C, D, z, dt_bias, initial_state), strict=True))
    for name, t in given.items():
        may_be_complex = name == "A" or (name in ("B", "C", "initial_state") and A.is_complex())
        if t is not None:
            check_dtype(op, name, t, (*FLOATS, *COMPLEX) if may_be_complex else FLOATS)
    check_devices(op, {**given, "cu_seqlens": _on_device(cu_seqlens, x), "lengths": _on_device(lengths, x)})
    check_choice(op, "rule", rule, reference.RULES)
    return compute_dtype(*given.values())


def _on_device(index: Tensor | None, x: Tensor) -> Tensor | None:
    """Row bounds may stay on the CPU: every backend reads them there."""
    return None if index is None or index.device.type == "cpu" else index


def _rows(x: Tensor, cu_seqlens: Tensor | None, lengths: Tensor | None) -> list[rows.Row]:
    return rows.rows_of("selective_scan", x.shape[0], x.shape[1], cu_seqlens, lengths)


def _groups(B: Tensor, C: Tensor) -> int:
    return next((M.shape[2] for M in (B, C) if M.ndim == 4), 1)


@register("selective_scan")
def _forward(
    x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, lengths, dt_softplus, reverse, rule, backend, save
):
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    the_rows = _rows(x, cu_seqlens, lengths)
    if backend == "native":
        return native.forward(*tensors, the_rows, dt_softplus, reverse, rule, save)
    plain = cu_seqlens is None and lengths is None
    y, last = reference.selective_scan(*tensors, None if plain else the_rows, dt_softplus, reverse, rule)
    return y, last, x.new_empty(0)


@torch.library.register_fake("ssm_kernels::selective_scan")
def _forward_fake(
    x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, lengths, dt_softplus, reverse, rule, backend, save
):
    r = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (0,)
    if backend == "native" and save:
        shape = native.boundaries_shape(A, x.shape[0] * x.shape[1], r, _groups(B, C))
    return x.new_empty(x.shape), A.new_empty(r, *A.shape), x.new_empty(shape)


@register("selective_scan_backward")
def _backward(
    dy, dlast, boundaries, x, dt, A, B, C, D, z, dt_bias, initial_state,
    cu_seqlens, lengths, dt_softplus, reverse, rule, backend,
):  # fmt: skip
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    if backend == "native":
        arguments = (*tensors, _rows(x, cu_seqlens, lengths), dt_softplus, reverse, rule)
        grads = native.backward(dy, dlast, boundaries, *arguments)
        return [g for g in grads if g is not None]
    given = [t for t in tensors if t is not None]
    return vector_jacobian(_as_reference(tensors, cu_seqlens, lengths, dt_softplus, reverse, rule), given, (dy, dlast))


@torch.library.register_fake("ssm_kernels::selective_scan_backward")
def _backward_fake(dy, dlast, boundaries, x, dt, A, B, C, D, z, dt_bias, initial_state, *rest):
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    return [t.new_empty(t.shape) for t in tensors if t is not None]


def _as_reference(tensors, cu_seqlens, lengths, dt_softplus, reverse, rule):
    """The reference as a function of the given tensors only."""
    plain = cu_seqlens is None and lengths is None
    the_rows = None if plain else _rows(tensors[0], cu_seqlens, lengths)

    def run(*given):
        it = iter(given)
        full = (next(it) if t is not None else None for t in tensors)
        return reference.selective_scan(*full, the_rows, dt_softplus, reverse, rule)

    return run


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:11], output[2])
    ctx.flags = inputs[11:15]  # dt_softplus, reverse, rule, backend
    ctx.y_like = output[0].shape


def _forward_grad(ctx, dy, dlast, _):
    *tensors, cu_seqlens, lengths, boundaries = ctx.saved_tensors
    if dy is None:
        dy = tensors[0].new_zeros(ctx.y_like)
    grads = iter(
        torch.ops.ssm_kernels.selective_scan_backward(dy, dlast, boundaries, *tensors, cu_seqlens, lengths, *ctx.flags)
    )
    return (*(next(grads) if t is not None else None for t in tensors), *[None] * 7)


torch.library.register_autograd("ssm_kernels::selective_scan", _forward_grad, setup_context=_setup)


def _setup_backward(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    dy, dlast, _, *rest = inputs
    ctx.save_for_backward(dy, dlast, *rest[:11])
    ctx.flags = rest[11:14]


def _backward_grad(ctx, second):
    """Double backward: differentiate the reference's gradients once more, whichever backend made the first."""
    dy, dlast, *tensors, cu_seqlens, lengths = ctx.saved_tensors
    scan = _as_reference(tensors, cu_seqlens, lengths, *ctx.flags)
    present = [t is not None for t in (dy, dlast, *tensors)]

    def gradients(*given):
        it = iter(given)
        dy_, dlast_, *rest = (next(it) if there else None for there in present)
        return tuple(differentiable_vector_jacobian(scan, [t for t in rest if t is not None], (dy_, dlast_)))

    given = [t for t in (dy, dlast, *tensors) if t is not None]
    grads = iter(differentiable_vector_jacobian(gradients, given, tuple(second)))
    first, last, *rest = (next(grads) if there else None for there in present)
    return (first, last, None, *rest, *[None] * 6)


torch.library.register_autograd("ssm_kernels::selective_scan_backward", _backward_grad, setup_context=_setup_backward)
