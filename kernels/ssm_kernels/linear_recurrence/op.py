"""The linear recurrence operator: input checks, torch.library registration, choice of backend.

    h[t] = a[t] h[t-1] + b[t]

b batch (and the input b, as in the literature), l length, d channels, r rows: batch items or packed segments.
"""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from .. import backends, rows
from ..by_rows import bounds_on_device, rows_or_none
from ..checks import COMPLEX, FLOATS, Shapes, check_devices, check_dtype, compute_dtype, state_dtype
from ..derivatives import register_differentiable
from . import native, reference

PROBES: dict[str, backends.Probe] = {
    "native": backends.native_probe,
    "triton": backends.triton_probe,
    "reference": backends.reference_probe,
}


def linear_recurrence(
    a: Shaped[Tensor, "b l d"] | Shaped[Tensor, " d"],
    b: Shaped[Tensor, "b l d"],
    *,
    initial_state: Shaped[Tensor, "r d"] | None = None,
    cu_seqlens: Int[Tensor, " r+1"] | None = None,
    lengths: Int[Tensor, " b"] | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run a diagonal linear recurrence over time.

        h[t] = a[t] h[t-1] + b[t]

    Differentiable in every tensor, `initial_state` included, from `h` and from the last state.

    Args:
        a: Decay, varying, shape (b, l, d), or constant, shape (d,); any float or complex dtype.
        b: Input, shape (b, l, d), any float or complex dtype.
        initial_state: h before the first step, shape (r, d); zeros when None. r is b, or the segments of `cu_seqlens`.
        cu_seqlens: Bounds of r packed sequences, rising from 0 to l, int32 or int64, shape (r + 1,); needs b = 1. The
            state starts anew at every bound, exactly.
        lengths: Valid steps of each item, int32 or int64, shape (b,); the padding to the right of them gives h = 0 and
            leaves the last state alone.
        reverse: Run from the last step to the first; the last state is then the one at the first step.
        return_last_state: Also return the last state.
        backend: "auto", "reference", "native" or "triton".
    Returns:
        h, shape (b, l, d), dtype of b (complex when any input is); with `return_last_state` also the last state, shape
        (r, d), float32 (float64 when any input is; complex when any input is).
    Raises:
        ValueError: A shape, dtype, device or value disagrees; names the argument, what was expected and what came.
        RuntimeError: The backend that was asked for cannot run here.
    Source: Martin & Cundy 2018, Parallelizing linear recurrent neural nets over sequence length, eq. 5.
    """
    dtype = _check(a, b, initial_state, cu_seqlens, lengths)
    chosen = backends.choose("linear_recurrence", backend, b.device.type, PROBES)
    h0 = None if initial_state is None else initial_state.to(dtype)
    h, last = torch.ops.ssm_kernels.linear_recurrence(
        a.to(dtype), b.to(dtype), h0, cu_seqlens, lengths, reverse, chosen
    )
    if b.is_complex() or not dtype.is_complex:
        h = h.to(b.dtype)
    return (h, last) if return_last_state else h


def _check(a, b, initial_state, cu_seqlens, lengths) -> torch.dtype:
    op, shapes = "linear_recurrence", Shapes("linear_recurrence")
    shapes.check("b", b, "b l d")
    shapes.check("a", a, "b l d", "d")
    shapes.sizes["r"], shapes.source["r"] = rows.check_rows(shapes, cu_seqlens, lengths), "the rows"
    if initial_state is not None:
        shapes.check("initial_state", initial_state, "r d")
    given = {"b": b, "a": a, "initial_state": initial_state}
    for name, t in given.items():
        if t is not None:
            check_dtype(op, name, t, (*FLOATS, *COMPLEX))
    check_devices(op, {**given, **bounds_on_device(cu_seqlens, lengths)})
    dtype = compute_dtype(*given.values())
    return state_dtype(dtype, any(t is not None and t.is_complex() for t in given.values()))


def _reference(a, b, initial_state, cu_seqlens, lengths, reverse, backend):
    the_rows = rows_or_none("linear_recurrence", b, cu_seqlens, lengths)
    return reference.linear_recurrence(a, b, initial_state, the_rows, reverse)


def _forward(a, b, initial_state, cu_seqlens, lengths, reverse, backend):
    if backend == "native":
        return native.forward(a, b, initial_state, _rows(b, cu_seqlens, lengths), reverse)
    if backend == "triton" and b.numel() > 0:
        from . import triton

        the_rows = rows_or_none("linear_recurrence", b, cu_seqlens, lengths)
        return triton.forward(a, b, initial_state, the_rows, reverse)
    return _reference(a, b, initial_state, cu_seqlens, lengths, reverse, backend)


def _rows(b: Tensor, cu_seqlens: Tensor | None, lengths: Tensor | None) -> list[rows.Row]:
    return rows.rows_of("linear_recurrence", b.shape[0], b.shape[1], cu_seqlens, lengths)


def _fake(a, b, initial_state, cu_seqlens, lengths, reverse, backend):
    r = b.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return b.new_empty(b.shape), b.new_empty(r, b.shape[2])


def _backward(cotangents, saved, inputs) -> list[Tensor] | None:
    a, b, initial_state, cu_seqlens, lengths, reverse, backend = inputs
    if backend == "reference" or (backend == "triton" and b.numel() == 0):
        return None
    dh, dlast = cotangents
    if backend == "triton":
        from . import triton

        the_rows = rows_or_none("linear_recurrence", b, cu_seqlens, lengths)
        return triton.backward(dh, dlast, saved[0], a, b, initial_state, the_rows, reverse)
    return native.backward(dh, dlast, saved[0], a, b, initial_state, _rows(b, cu_seqlens, lengths), reverse)


register_differentiable(
    "linear_recurrence",
    "Tensor a, Tensor b, Tensor? initial_state, Tensor? cu_seqlens, Tensor? lengths, bool reverse, str backend",
    "Tensor h, Tensor last_state",
    tensors=3,
    saved=(0,),
    forward=_forward,
    fake=_fake,
    reference=_reference,
    backward=_backward,
)
