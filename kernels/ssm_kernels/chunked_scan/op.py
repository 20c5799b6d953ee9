"""The matrix-valued scan operator: input checks, torch.library registration, choice of backend.

    S[t] = T[t] S[t-1] + k[t] v[t]^T,   o[t] = S[t]^T q[t]

b batch, l length, h heads, g groups of heads that share q and k, n key and p value width, r rows: batch items or packed
segments. The backend "native" is chunks of matrix products in PyTorch, on every device; "triton" has kernels for one
decay a head, or none, without the delta rule; "reference" is the loop.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import backends, rows
from ..autograd import vector_jacobian
from ..by_rows import bounds_on_device, rows_or_none
from ..checks import FLOATS, Shapes, check_devices, check_dtype, compute_dtype
from ..derivatives import register_differentiable
from . import chunked, reference

# Matrix products are native code that torch brings for each device: the best choice on a CPU, the second on a GPU.
PROBES: dict[str, backends.Probe] = {
    "native": lambda device: None,
    "triton": backends.triton_probe,
    "reference": backends.reference_probe,
}
VECTOR_PROBES = {**PROBES, "triton": lambda device: "its kernels have one decay a head, log_decay has one for each key"}
DELTA_PROBES = {**PROBES, "triton": lambda device: "its kernels write without erasing, but beta is given"}
GPU_PROBES = {name: PROBES[name] for name in ("triton", "native", "reference")}


def chunked_scan(
    q: Float[Tensor, "b l g n"],
    k: Float[Tensor, "b l g n"],
    v: Float[Tensor, "b l h p"],
    *,
    log_decay: Float[Tensor, "b l h"] | Float[Tensor, "b l h n"] | None = None,
    beta: Float[Tensor, "b l h"] | None = None,
    initial_state: Float[Tensor, "r h n p"] | None = None,
    cu_seqlens: Int[Tensor, " r+1"] | None = None,
    lengths: Int[Tensor, " b"] | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
    chunk: int = 64,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan a state of one matrix a head: linear attention, with decay, and with the delta rule.

        S' = exp(log_decay[t]) S[t-1]
        S[t] = S' + k[t] v[t]^T                                without beta
        S[t] = S' + beta[t] k[t] (v[t] - S'^T k[t])^T          with beta, the delta rule
        o[t] = S[t]^T q[t]

    A decay of shape (b, l, h, n) multiplies each row of the state by its own. Differentiable in every tensor, from `o`
    and from the last state.

    Args:
        q: Queries, shape (b, l, g, n), any float dtype; g divides h, and h / g neighbouring heads share one.
        k: Keys, shape (b, l, g, n).
        v: Values, shape (b, l, h, p).
        log_decay: Logarithm of the decay, <= 0, shape (b, l, h) or (b, l, h, n); -inf forgets; None keeps everything.
        beta: Strength of the delta rule, in 0..2 for unit keys, shape (b, l, h); None writes without erasing.
        initial_state: S before the first step, shape (r, h, n, p); zeros when None. r is b, or the segments of
            `cu_seqlens`.
        cu_seqlens: Bounds of r packed sequences, rising from 0 to l, int32 or int64, shape (r + 1,); needs b = 1. The
            state starts anew at every bound, exactly.
        lengths: Valid steps of each item, int32 or int64, shape (b,); the padding to the right of them gives o = 0 and
            leaves the last state alone.
        reverse: Run from the last step to the first; the last state is then the one at the first step.
        return_last_state: Also return the last state.
        chunk: Steps that are computed at once, a power of two; changes rounding and speed only.
        backend: "auto", "native" (matrix products, on every device), "triton" (without beta, with at most one decay a
            head) or "reference".
    Returns:
        o, shape and dtype of v; with `return_last_state` also the last state, shape (r, h, n, p), float32 (float64
        when any input is).
    Raises:
        ValueError: A shape, dtype, device or value disagrees; names the argument, what was expected and what came.
        RuntimeError: The backend that was asked for cannot run here.
    Source: Dao & Gu 2024, Mamba-2, eq. 13; Yang et al. 2024, GLA, eq. 3; Yang et al. 2024, Gated DeltaNet, eq. 10.
    """
    dtype = _check(q, k, v, log_decay, beta, initial_state, cu_seqlens, lengths, chunk)
    chosen = backends.choose("chunked_scan", backend, v.device.type, _probes(v.device.type, log_decay, beta))
    # Triton reads q, k and v in half precision, where they are all in the same, and sums in float32.
    given = dtype if chosen != "triton" or dtype == torch.float64 or not q.dtype == k.dtype == v.dtype else v.dtype
    cast = [t.to(given) for t in (q, k, v)] + [
        t if t is None else t.to(dtype) for t in (log_decay, beta, initial_state)
    ]
    o, last = torch.ops.ssm_kernels.chunked_scan(*cast, cu_seqlens, lengths, reverse, chunk, chosen)
    o = o.to(v.dtype)
    return (o, last) if return_last_state else o


def _probes(device: str, log_decay: Tensor | None, beta: Tensor | None) -> dict[str, backends.Probe]:
    """The backends that could do this, best first."""
    if beta is not None:
        return DELTA_PROBES
    if log_decay is not None and log_decay.ndim == 4:
        return VECTOR_PROBES
    return PROBES if device == "cpu" else GPU_PROBES


def _check(q, k, v, log_decay, beta, initial_state, cu_seqlens, lengths, chunk) -> torch.dtype:
    op, shapes = "chunked_scan", Shapes("chunked_scan")
    given = {"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta, "initial_state": initial_state}
    specs = {"q": ["b l g n"], "k": ["b l g n"], "v": ["b l h p"], "log_decay": ["b l h", "b l h n"], "beta": ["b l h"]}
    for name, allowed in specs.items():
        if name in ("q", "k", "v") or given[name] is not None:
            shapes.check(name, given[name], *allowed)
    g, h = shapes.sizes["g"], shapes.sizes["h"]
    if g < 1 or h % g:
        raise ValueError(f"{op}: h={h} heads (from v) cannot share g={g} groups (from q)")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"{op}: chunk={chunk!r}, expected a power of two")
    shapes.sizes["r"], shapes.source["r"] = rows.check_rows(shapes, cu_seqlens, lengths), "the rows"
    if initial_state is not None:
        shapes.check("initial_state", initial_state, "r h n p")
    for name, t in given.items():
        if t is not None:
            check_dtype(op, name, t, FLOATS)
    check_devices(op, {**given, **bounds_on_device(cu_seqlens, lengths)})
    return compute_dtype(*given.values())


def _reference(q, k, v, log_decay, beta, initial_state, cu_seqlens, lengths, reverse, chunk, backend):
    the_rows, dtype = rows_or_none("chunked_scan", v, cu_seqlens, lengths), compute_dtype(v)
    wide = (q.to(dtype), k.to(dtype), v.to(dtype))
    o, last = reference.chunked_scan(*wide, log_decay, beta, initial_state, the_rows, reverse)
    return o.to(v.dtype), last


def _has_work(q: Tensor, v: Tensor) -> bool:
    """Whether there is a state and a step at all: a kernel cannot be launched for none."""
    return q.numel() > 0 and v.numel() > 0


def _forward(q, k, v, log_decay, beta, initial_state, cu_seqlens, lengths, reverse, chunk, backend):
    the_rows = rows_or_none("chunked_scan", v, cu_seqlens, lengths)
    if backend == "triton" and _has_work(q, v):
        from . import triton

        return triton.forward(q, k, v, log_decay, initial_state, the_rows, reverse, chunk)
    with torch.autocast(v.device.type, enabled=False):
        if backend != "native" or v.shape[1] == 1:  # of one step, the loop is the shortest way
            return _reference(q, k, v, log_decay, beta, initial_state, cu_seqlens, lengths, reverse, chunk, backend)
        return chunked.chunked_scan(q, k, v, log_decay, beta, initial_state, the_rows, reverse, chunk)


def _fake(q, k, v, log_decay, beta, initial_state, cu_seqlens, lengths, reverse, chunk, backend):
    r = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return v.new_empty(v.shape), v.new_empty(r, v.shape[2], q.shape[3], v.shape[3], dtype=compute_dtype(v))


def _backward(cotangents, saved, inputs) -> list[Tensor] | None:
    cu_seqlens, lengths, reverse, chunk, backend = inputs[6:]
    if backend == "reference" or (backend == "triton" and not _has_work(inputs[0], inputs[2])):
        return None
    the_rows = rows_or_none("chunked_scan", inputs[2], cu_seqlens, lengths)
    if backend == "triton":
        from . import triton

        given: tuple[Any, ...] = (*cotangents, *inputs[:4], inputs[5], the_rows, reverse, chunk)
        return triton.backward(*given)

    def run(*given: Tensor) -> tuple[Tensor, Tensor]:
        it = iter(given)
        q, k, v = (next(it) for _ in range(3))
        log_decay, beta, initial_state = (None if t is None else next(it) for t in inputs[3:6])
        return chunked.chunked_scan(q, k, v, log_decay, beta, initial_state, the_rows, reverse, chunk)

    return vector_jacobian(run, [t for t in inputs[:6] if t is not None], cotangents)


register_differentiable(
    "chunked_scan",
    "Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor? beta, Tensor? initial_state, Tensor? cu_seqlens, "
    "Tensor? lengths, bool reverse, int chunk, str backend",
    "Tensor o, Tensor last_state",
    tensors=6,
    forward=_forward,
    fake=_fake,
    reference=_reference,
    backward=_backward,
)
