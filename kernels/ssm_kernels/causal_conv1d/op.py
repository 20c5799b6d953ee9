"""The causal depthwise convolution operator: input checks, torch.library registration, choice of backend.

    y[t] = act(bias + weight[:, w-1] x[t] + weight[:, w-2] x[t-1] + ... + weight[:, 0] x[t-w+1])

b batch, l length, d channels, w width (taps), r rows: batch items or packed segments.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import backends, rows
from ..by_rows import bounds_on_device, rows_or_none
from ..checks import FLOATS, Shapes, check_choice, check_devices, check_dtype, compute_dtype
from ..derivatives import register_differentiable
from . import native, reference

PROBES: dict[str, backends.Probe] = {
    "native": backends.native_probe,
    "triton": backends.triton_probe,
    "reference": backends.reference_probe,
}


def causal_conv1d(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d w"],
    bias: Float[Tensor, " d"] | None = None,
    *,
    activation: str | None = None,
    initial_state: Float[Tensor, "r w-1 d"] | None = None,
    cu_seqlens: Int[Tensor, " r+1"] | None = None,
    lengths: Int[Tensor, " b"] | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Filter each channel with its own few taps, looking only back in time.

        y[t] = act(bias + sum over j of weight[:, w-1-j] x[t-j])

    Differentiable in every tensor, `initial_state` included, from `y` and from the last state.

    Args:
        x: Input, shape (b, l, d), any float dtype.
        weight: Taps, shape (d, w), w >= 1; weight[:, -1] multiplies the current sample, as in a left-padded conv1d.
        bias: Shape (d,).
        activation: None or "silu".
        initial_state: The w-1 inputs before the first step, oldest first, shape (r, w - 1, d); zeros when None. r is b,
            or the segments of `cu_seqlens`.
        cu_seqlens: Bounds of r packed sequences, rising from 0 to l, int32 or int64, shape (r + 1,); needs b = 1. The
            state starts anew at every bound, exactly.
        lengths: Valid steps of each item, int32 or int64, shape (b,); the padding to the right of them gives y = 0 and
            does not enter the last state.
        reverse: Filter from the last step to the first, looking only forward in time; "oldest" is then the latest step.
        return_last_state: Also return the last state: the last w-1 valid inputs, oldest first.
        backend: "auto", "reference", "native" or "triton".
    Returns:
        y, shape and dtype of x; with `return_last_state` also the last state, shape (r, w - 1, d), float32 (float64
        when any input is).
    Raises:
        ValueError: A shape, dtype, device or value disagrees; names the argument, what was expected and what came.
        RuntimeError: The backend that was asked for cannot run here.
    Source: Gu & Dao 2023, Mamba, sec. 3.4; state and weight order as in the causal-conv1d package.
    """
    dtype = _check(x, weight, bias, activation, initial_state, cu_seqlens, lengths)
    chosen = backends.choose("causal_conv1d", backend, x.device.type, PROBES)
    # Triton reads x in half precision as it comes, widens it in registers, and writes y and dx in the same.
    own = x.dtype if chosen == "triton" and dtype == torch.float32 else dtype
    cast = (x.to(own), *(None if t is None else t.to(dtype) for t in (weight, bias, initial_state)))
    y, last = torch.ops.ssm_kernels.causal_conv1d(*cast, cu_seqlens, lengths, activation == "silu", reverse, chosen)
    y = y.to(x.dtype)
    return (y, last) if return_last_state else y


def _check(x, weight, bias, activation, initial_state, cu_seqlens, lengths) -> torch.dtype:
    op, shapes = "causal_conv1d", Shapes("causal_conv1d")
    shapes.check("x", x, "b l d")
    shapes.check("weight", weight, "d w")
    if shapes.sizes["w"] < 1:
        raise ValueError(f"{op}: weight has shape {tuple(weight.shape)}, expected a width w of at least 1")
    if bias is not None:
        shapes.check("bias", bias, "d")
    if activation is not None:
        check_choice(op, "activation", activation, ("silu",))
    shapes.sizes["r"], shapes.source["r"] = rows.check_rows(shapes, cu_seqlens, lengths), "the rows"
    shapes.sizes["w-1"], shapes.source["w-1"] = shapes.sizes["w"] - 1, "weight"
    if initial_state is not None:
        shapes.check("initial_state", initial_state, "r w-1 d")
    given = {"x": x, "weight": weight, "bias": bias, "initial_state": initial_state}
    for name, t in given.items():
        if t is not None:
            check_dtype(op, name, t, FLOATS)
    check_devices(op, {**given, **bounds_on_device(cu_seqlens, lengths)})
    return compute_dtype(*given.values())


def _reference(x, weight, bias, initial_state, cu_seqlens, lengths, silu, reverse, backend):
    the_rows = rows_or_none("causal_conv1d", x, cu_seqlens, lengths)
    y, last = reference.causal_conv1d(x.to(weight.dtype), weight, bias, initial_state, the_rows, silu, reverse)
    return y.to(x.dtype), last


def _rows(x: Tensor, cu_seqlens: Tensor | None, lengths: Tensor | None) -> list[rows.Row]:
    return rows.rows_of("causal_conv1d", x.shape[0], x.shape[1], cu_seqlens, lengths)


def _forward(x, weight, bias, initial_state, cu_seqlens, lengths, silu, reverse, backend):
    if backend == "native":
        return native.forward(x, weight, bias, initial_state, _rows(x, cu_seqlens, lengths), silu, reverse)
    if backend == "triton" and x.numel() > 0:
        from . import triton

        the_rows = rows_or_none("causal_conv1d", x, cu_seqlens, lengths)
        return triton.forward(x, weight, bias, initial_state, the_rows, silu, reverse)
    return _reference(x, weight, bias, initial_state, cu_seqlens, lengths, silu, reverse, backend)


def _fake(x, weight, bias, initial_state, cu_seqlens, lengths, silu, reverse, backend):
    r = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x.new_empty(x.shape), weight.new_empty(r, weight.shape[1] - 1, x.shape[2])


def _backward(cotangents, saved, inputs) -> list[Tensor] | None:
    x, weight, bias, initial_state, cu_seqlens, lengths, silu, reverse, backend = inputs
    if backend == "reference" or (backend == "triton" and x.numel() == 0):
        return None
    dy, dlast = cotangents
    if backend == "triton":
        from . import triton

        the_rows = rows_or_none("causal_conv1d", x, cu_seqlens, lengths)
        return triton.backward(dy, dlast, x, weight, bias, initial_state, the_rows, silu, reverse)
    the_rows = _rows(x, cu_seqlens, lengths)
    return native.backward(dy, dlast, x, weight, bias, initial_state, the_rows, silu, reverse)


register_differentiable(
    "causal_conv1d",
    "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? cu_seqlens, Tensor? lengths, "
    "bool silu, bool reverse, str backend",
    "Tensor y, Tensor last_state",
    tensors=4,
    forward=_forward,
    fake=_fake,
    reference=_reference,
    backward=_backward,
)
