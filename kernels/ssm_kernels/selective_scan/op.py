"""The selective scan operator: input checks, torch.library registration, choice of backend.

    a[t], w[t] = discretize(dt[t], A)          rule: "euler" (Mamba), "zoh" or "bilinear"
    h[t]       = a[t] h[t-1] + w[t] B[t] x[t]
    y[t]       = (C[t] . h[t] + D x[t]) silu(z[t])

Names as in Gu & Dao 2023, Mamba, with dt for Delta; b batch, l length, d channels, n state size.
"""

from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from .. import backends, rows
from ..by_rows import bounds_on_device, rows_or_none
from ..checks import COMPLEX, FLOATS, Shapes, check_choice, check_devices, check_dtype, compute_dtype, state_dtype
from ..derivatives import register_differentiable
from . import native, reference

PROBES: dict[str, backends.Probe] = {
    "native": backends.native_probe,
    "triton": backends.triton_probe,
    "reference": backends.reference_probe,
}
COMPLEX_PROBES = {**PROBES, "triton": lambda device: "its kernels hold real states, but A is complex"}

# The tensors that have a gradient, in the order of every signature here.
TENSORS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
Tensors: TypeAlias = tuple[Any, ...]  # a tensor, or None where an optional one is not given
# Those in the dtype of the state, complex when A is.
AS_STATE = ("A", "B", "C", "initial_state")
# Those that Triton reads in half precision, as they come, and widens in registers.
READ_AS_GIVEN = ("x", "dt", "z")


def selective_scan(
    x: Float[Tensor, "b l d"],
    dt: Float[Tensor, "b l d"] | Float[Tensor, "b l q"],
    A: Shaped[Tensor, "d n"] | Shaped[Tensor, " d"],
    B: Shaped[Tensor, "b l n"] | Shaped[Tensor, "b l g n"] | Shaped[Tensor, "d n"],
    C: Shaped[Tensor, "b l n"] | Shaped[Tensor, "b l g n"] | Shaped[Tensor, "d n"],
    *,
    D: Float[Tensor, " d"] | None = None,
    z: Float[Tensor, "b l d"] | None = None,
    dt_bias: Float[Tensor, " d"] | None = None,
    dt_weight: Float[Tensor, "d q"] | None = None,
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
        dt: Step, in samples, shape (b, l, d); positive after `dt_bias` and `dt_softplus`. With `dt_weight` its low-rank
            factor, shape (b, l, q).
        A: Diagonal of the state matrix, real part < 0 for a stable system, in 1/sample, shape (d, n). A complex A
            stands for conjugate pairs: y = 2 Re(C . h). Shape (d,): the first state's alone, the others' being its
            multiples, A[:, i] = (i + 1) A, as S4D-real starts; on a GPU one exponential a step and channel is enough.
        B: Input projection: varying, shape (b, l, n), or in g groups of d/g channels, shape (b, l, g, n); or constant,
            shape (d, n). Complex only with a complex A.
        C: Output projection, likewise.
        D: Skip weight, shape (d,).
        z: Gate, shape (b, l, d); the output is multiplied by silu(z).
        dt_bias: Added to dt before softplus, shape (d,).
        dt_weight: The step is dt_weight dt, shape (d, q): a Mamba layer's projection of the step. Triton does it in the
            forward scan itself where q <= 32 and rows are not cut: no (b, l, d) of steps is written or kept then.
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
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    _check_shapes(tensors, dt_weight, cu_seqlens, lengths)
    if dt_weight is not None:
        tensors = (*tensors[:7], with_weight("selective_scan", x, dt_bias, dt_weight), initial_state)
    y, last = scan("selective_scan", tensors, cu_seqlens, lengths, None, dt_softplus, reverse, rule, backend)
    return (y, last) if return_last_state else y


def with_weight(name: str, x: Tensor, dt_bias: Tensor | None, dt_weight: Tensor) -> Tensor:
    """Bias and weight of a projected step as the operator takes them for its dt_bias, shape (..., d, 1 + q).

    Args:
        name: The front, for messages.
        x: For its device.
        dt_bias: Shape (..., d) or None.
        dt_weight: Shape (..., d, q).
    Raises:
        ValueError: A dtype or device is wrong.
    """
    for key, t in (("dt_weight", dt_weight), ("dt_bias", dt_bias)):
        if t is not None:
            check_dtype(name, key, t, FLOATS)
    check_devices(name, {"x": x, "dt_weight": dt_weight, "dt_bias": dt_bias})
    bias = dt_weight.new_zeros(dt_weight.shape[:-1]) if dt_bias is None else dt_bias
    return torch.cat([bias[..., None], dt_weight], -1)


def _check_shapes(
    tensors: Tensors, dt_weight: Tensor | None, cu_seqlens: Tensor | None, lengths: Tensor | None
) -> None:
    op, shapes = "selective_scan", Shapes("selective_scan")
    x, dt, A, B, C, D, z, dt_bias, initial_state = tensors
    shapes.check("x", x, "b l d")
    if dt_weight is not None:
        shapes.check("dt_weight", dt_weight, "d q")
    shapes.check("dt", dt, "b l d" if dt_weight is None else "b l q")
    shapes.check("A", A, "d n", "d")
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


def scan(
    name: str,
    tensors: Tensors,
    cu_seqlens: Tensor | None,
    lengths: Tensor | None,
    order: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    rule: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """What the fronts `selective_scan` and `routed_scan` share, once the shapes are checked.

    Args:
        name: The front, for messages.
        tensors: As TENSORS, shapes as `reference.selective_scan` takes them, or with `order` `reference.routed_scan`.
        cu_seqlens, lengths, dt_softplus, reverse, rule, backend: As in `selective_scan`.
        order: Shape (k, l) or None.
    Returns:
        y in the dtype of x, and the last state.
    Raises:
        ValueError: A dtype, device or value disagrees.
        RuntimeError: The backend that was asked for cannot run here.
    """
    x, A, given = tensors[0], tensors[2], dict(zip(TENSORS, tensors, strict=True))
    for key, t in given.items():
        if t is not None:
            check_dtype(
                name, key, t, (*FLOATS, *COMPLEX) if key == "A" or (key in AS_STATE and A.is_complex()) else FLOATS
            )
    check_devices(name, {**given, "order": order, **bounds_on_device(cu_seqlens, lengths)})
    check_choice(name, "rule", rule, reference.RULES)
    chosen = backends.choose("selective_scan", backend, x.device.type, COMPLEX_PROBES if A.is_complex() else PROBES)
    dtype = compute_dtype(*tensors)
    wide = state_dtype(dtype, A.is_complex())
    as_given = READ_AS_GIVEN if chosen == "triton" and dtype == torch.float32 else ()
    cast = [t if t is None or key in as_given else t.to(wide if key in AS_STATE else dtype) for key, t in given.items()]
    # Traces keep what backward wants in any case: the tracer compares a run with gradients to one without.
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in cast)
    save = wanted or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    y, last, _ = torch.ops.ssm_kernels.selective_scan(
        *cast, cu_seqlens, lengths, order, dt_softplus, reverse, rule, chosen, save
    )
    return y.to(x.dtype), last


def check_order(order: Tensor, the_rows: list[rows.Row]) -> None:
    """Every route of a table on the CPU, shape (k, l), visits in a row's steps that row's tokens, each once.

    On another device a look at the table would cost a wait.

    Raises:
        ValueError: A token is left out, visited twice or visited in another row; names the route.
    """
    if order.device.type != "cpu":
        return
    for start, length in dict.fromkeys((row.start, row.length) for row in the_rows):
        local = order[:, start : start + length].long() - start
        right = ((local >= 0) & (local < length)).all(dim=1)
        if right.all():
            right = torch.zeros_like(local, dtype=torch.bool).scatter_(1, local, True).all(dim=1)
        if not right.all():
            route, end = int((~right).nonzero()[0]), start + length
            raise ValueError(f"routed_scan: order[{route}, {start}:{end}] is not a permutation of {start}..{end - 1}")


def _at_work(backend: str, dt: Tensor, B: Tensor) -> str:
    """The backend that runs: a kernel cannot be launched for no state or no step, and the reference serves there."""
    return backend if dt.numel() > 0 and B.numel() > 0 else "reference"


def _is_first(A: Tensor, order: Tensor | None) -> bool:
    """Whether A is the first state's alone, (d,) or with routes (k, d)."""
    return A.ndim == (1 if order is None else 2)


def _multiples(A: Tensor, B: Tensor, order: Tensor | None) -> Tensor:
    """A of every state, (d, n) or with routes (k, d, n)."""
    if not _is_first(A, order):
        return A
    return A[..., None] * torch.arange(1, B.shape[-1] + 1, dtype=A.real.dtype, device=A.device)


def _is_projected(dt_bias: Tensor | None, order: Tensor | None) -> bool:
    """Whether dt is the low-rank factor, and dt_bias a bias and a weight, (d, 1 + q) or with routes (k, d, 1 + q)."""
    return dt_bias is not None and dt_bias.ndim == (2 if order is None else 3)


def _full(tensors: Tensors, order: Tensor | None) -> Tensors:
    """The operator's tensors with A of every state and a step for every channel."""
    x, dt, A, B, C, D, z, dt_bias, initial_state = tensors
    if _is_projected(dt_bias, order):
        weight, dt_bias = dt_bias[..., 1:], dt_bias[..., 0]
        with torch.autocast(dt.device.type, enabled=False):
            dt = (dt.to(weight.dtype).flatten(-3, -2) @ weight.mT).unflatten(-2, dt.shape[-3:-1])
    return (x, dt, _multiples(A, B, order), B, C, D, z, dt_bias, initial_state)


def _folded(grads: list[Tensor | None], tensors: Tensors, order: Tensor | None) -> list[Tensor]:
    """From gradients of `_full` tensors those of the operator's own."""
    dt, A, B, dt_bias = tensors[1], tensors[2], tensors[3], tensors[7]
    if _is_first(A, order):
        multiples = torch.arange(1, B.shape[-1] + 1, device=A.device)
        assert grads[2] is not None
        grads[2] = (grads[2] * multiples).sum(-1).to(A.dtype)
    if _is_projected(dt_bias, order):
        assert grads[1] is not None
        assert grads[7] is not None
        step, low = grads[1].to(dt_bias.dtype).flatten(-3, -2), dt.to(dt_bias.dtype).flatten(-3, -2)
        with torch.autocast(dt.device.type, enabled=False):
            grads[1] = (step @ dt_bias[..., 1:]).to(dt.dtype).view(dt.shape)
            grads[7] = torch.cat([grads[7][..., None], step.mT @ low], -1)
    return [g for g in grads if g is not None]


def _rows(dt: Tensor, cu_seqlens: Tensor | None, lengths: Tensor | None) -> list[rows.Row]:
    return rows.rows_of("selective_scan", dt.shape[-3], dt.shape[-2], cu_seqlens, lengths)


def _reference(
    x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, lengths, order, dt_softplus, reverse, rule, backend, save
):
    the_rows = rows_or_none("selective_scan", dt[0] if order is not None else dt, cu_seqlens, lengths)
    real, gate = A.real.dtype, None if z is None else z.to(A.real.dtype)
    tensors = _full((x.to(real), dt.to(real), A, B, C, D, gate, dt_bias, initial_state), order)
    options: Tensors = (the_rows, dt_softplus, reverse, rule)
    if order is None:
        y, last = reference.selective_scan(*tensors, *options)
    else:
        options = (order, *options)
        y, last = reference.routed_scan(*tensors, *options)
    return y.to(x.dtype), last, A.real.new_empty(0)


def _forward(
    x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, lengths, order, dt_softplus, reverse, rule, backend, save
):
    tensors: Tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    backend = _at_work(backend, dt, B)
    if order is not None:
        check_order(order, _rows(dt, cu_seqlens, lengths))
    options: Tensors = (dt_softplus, reverse, rule)
    if backend == "native":
        given: Tensors = (*_full(tensors, order), order, _rows(dt, cu_seqlens, lengths), *options)
        return native.forward(*given, save=save)
    if backend == "triton":
        from . import triton

        the_rows = rows_or_none("selective_scan", dt[0] if order is not None else dt, cu_seqlens, lengths)
        tensors = (x, dt, _multiples(A, B, order), *tensors[3:])
        if _is_projected(dt_bias, order) and not triton.projects(tensors, order, the_rows):
            tensors = _full(tensors, order)
        given = (*tensors, order, the_rows, *options)
        return triton.forward(*given, save=save, powers=_is_first(A, order))
    return _reference(*(*tensors, cu_seqlens, lengths, order, *options, backend, save))


def _fake(
    x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, lengths, order, dt_softplus, reverse, rule, backend, save
):
    b, l = dt.shape[-3], dt.shape[-2]
    r = b if cu_seqlens is None else cu_seqlens.shape[0] - 1
    A = _multiples(A, B, order)
    backend = _at_work(backend, dt, B)
    shape: tuple[int, ...] = (0,)
    if backend == "native" and save:
        shape = native.boundaries_shape(A, b * l, r, native.groups_of(B, C, order))
    if backend == "triton" and save:
        from . import triton

        shape = triton.boundaries_shape(A, dt.shape, r)
    last = (r, *A.shape) if order is None else (A.shape[0], r, *A.shape[1:])
    return x.new_empty(x.shape[-3:]), A.new_empty(last), A.real.new_empty(shape)


def _backward(cotangents, saved, inputs) -> list[Tensor] | None:
    tensors, (cu_seqlens, lengths, order, dt_softplus, reverse, rule, backend, _) = inputs[:9], inputs[9:]
    backend = _at_work(backend, tensors[1], tensors[3])
    if backend == "reference":
        return None
    dy, dlast, _ = cotangents
    x, dt = tensors[:2]
    dy = x.new_zeros(x.shape[-3:]) if dy is None else dy
    full = _full(tensors, order)
    options = dict(order=order, dt_softplus=dt_softplus, reverse=reverse, rule=rule)
    if backend == "triton":
        from . import triton

        the_rows = rows_or_none("selective_scan", dt[0] if order is not None else dt, cu_seqlens, lengths)
        grads = triton.backward(dy, dlast, saved[0], *full, rows=the_rows, **options)
    else:
        grads = native.backward(dy, dlast, saved[0], *full, rows=_rows(dt, cu_seqlens, lengths), **options)
    return _folded(list(grads), tensors, order)


register_differentiable(
    "selective_scan",
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor? initial_state, "
    "Tensor? cu_seqlens, Tensor? lengths, Tensor? order, bool dt_softplus, bool reverse, str rule, str backend, "
    "bool save",
    "Tensor y, Tensor last_state, Tensor boundaries",
    tensors=len(TENSORS),
    saved=(2,),
    forward=_forward,
    fake=_fake,
    reference=_reference,
    backward=_backward,
)
