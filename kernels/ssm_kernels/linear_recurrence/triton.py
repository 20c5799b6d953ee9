"""Launches the Triton kernels of the linear recurrence: one program a row and block of channels."""

from typing import Any

import torch
import triton
from torch import Tensor

from ..rows import Row
from ..triton_common import Pieces, launch, output
from .triton_kernels import backward_kernel, forward_kernel

BLOCK_D = 32
UNROLL = 8


def dense(t: Tensor) -> Tensor:
    """t (b, l, d) with its channels next to each other."""
    return t if t.stride(-1) == 1 else t.contiguous()


def planes(t: Tensor | None) -> Tensor | None:
    """A tensor of reals, in which a complex number is two."""
    return None if t is None else torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def strides(name: str, t: Tensor | None) -> dict[str, int]:
    """Batch and step strides, in numbers, by the kernels' names."""
    return {f"{name}_b": 0 if t is None else t.stride(0), f"{name}_t": 0 if t is None else t.stride(1)}


def shared_arguments(a: Tensor, b: Tensor, rows: list[Row] | None, reverse: bool) -> tuple[Pieces, dict[str, Any]]:
    """The rows and what both kernels take."""
    pieces = Pieces.cut((b.shape[0], b.shape[1]), rows, max(b.shape[1], 1), 1, reverse, b.device)
    blocks = triton.cdiv(b.shape[2], BLOCK_D)
    options = dict(BLOCK_D=BLOCK_D, UNROLL=UNROLL, REVERSE=reverse, VARIES=a.ndim == 3, COMPLEX=b.is_complex())
    return pieces, dict(a=planes(a), d=b.shape[2], blocks=blocks, **options, **pieces.named) | (
        strides("a", a if a.ndim == 3 else None)
    )


def forward(a: Tensor, b: Tensor, initial_state: Tensor | None, rows: list[Row] | None, reverse: bool):
    """h (b, l, d) and the last state (rows, d)."""
    a, b = dense(a), dense(b)
    pieces, named = shared_arguments(a, b, rows, reverse)
    h, last = output(b, rows), b.new_empty(pieces.count, b.shape[2])
    h0 = None if initial_state is None else planes(initial_state.contiguous())
    launch(
        "linear_recurrence", forward_kernel, pieces.count * named["blocks"], 1, **named, b=planes(b), h0=h0,
        h=planes(h), last=planes(last), **strides("b", b), **strides("h", h),
    )  # fmt: skip
    return h, last


def backward(dh, dlast, h, a, b, initial_state, rows: list[Row] | None, reverse: bool) -> list[Tensor]:
    """Gradients da, db and, where there is an initial state, dinitial_state."""
    a, h = dense(a), h.contiguous()
    pieces, named = shared_arguments(a, b, rows, reverse)
    dh = None if dh is None else dense(dh)
    da = output(b, rows) if a.ndim == 3 else b.new_empty(pieces.count, b.shape[2])
    db = output(b, rows)
    dh0 = None if initial_state is None else torch.empty_like(initial_state, memory_format=torch.contiguous_format)
    states = {
        name: planes(None if t is None else t.contiguous()) for name, t in (("h0", initial_state), ("dlast", dlast))
    }
    launch(
        "linear_recurrence", backward_kernel, pieces.count * named["blocks"], 1, **named, **states, h=planes(h),
        dh=planes(dh), da=planes(da), db=planes(db), dh0=planes(dh0), **strides("h", h), **strides("dh", dh),
    )  # fmt: skip
    grads = [da if a.ndim == 3 else da.sum(0), db]
    return grads if dh0 is None else [*grads, dh0]
