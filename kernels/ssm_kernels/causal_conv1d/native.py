"""Calls native.c: cuts the work into tasks, hands out its buffers, sums its partial gradients."""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from .. import native_build
from ..native_call import INTEGER, POINTER, NativeCall, output_like, structure
from ..rows import Row

Problem = structure(
    ("rows d width block blocks row_groups silu reverse threads", INTEGER),
    ("x_batch x_step y_batch y_step dy_batch dy_step dx_batch dx_step", INTEGER),
    ("row x weight bias h0 y last dy dlast dx dweight dbias dh0", POINTER),
)

NARROWEST = 32  # channels in a block, so that memory is read in whole cache lines


def widest(w: int) -> int:
    """The most channels in a block: few taps stream best in whole steps, many read the first-level cache again."""
    return 512 if w <= 8 else 128


@functools.cache
def library(double: bool) -> ctypes.CDLL:
    """native.c for one element type, built on first use."""
    return native_build.load(Path(__file__).with_name("native.c"), ("-DSSM_DOUBLE",) * double)


class Call(NativeCall):
    """One call's problem."""

    def __init__(self, x, weight, bias, initial_state, rows: list[Row], silu: bool, reverse: bool):
        self.lib = library(x.dtype == torch.float64)
        (d, w), threads = weight.shape, torch.get_num_threads()
        p = Problem(rows=len(rows), d=d, width=w, silu=silu, reverse=reverse, threads=threads)
        super().__init__(p, rows)
        p.row_groups = max(1, min(len(rows), 4 * threads))
        wanted = 1 if threads == 1 else -(-2 * threads // p.row_groups)
        blocks = max(-(-d // widest(w)), min(wanted, d // NARROWEST), 1)
        p.block = max(16, -(-d // blocks) + 15 & ~15)
        p.blocks = -(-d // p.block)
        self.point_steps("x", x)
        self.point("weight", weight.t().contiguous())
        self.point_packed("bias", bias)
        self.point_packed("h0", initial_state)


def forward(x, weight, bias, initial_state, rows: list[Row], silu: bool, reverse: bool) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last state (rows, w - 1, d)."""
    call = Call(x, weight, bias, initial_state, rows, silu, reverse)
    y, last = output_like(x, rows), x.new_empty(len(rows), weight.shape[1] - 1, x.shape[2])
    call.point_steps("y", y)
    call.point("last", last)
    call.lib.conv_forward(ctypes.byref(call.problem))
    return y, last


def backward(
    dy: Tensor | None,
    dlast: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    rows: list[Row],
    silu: bool,
    reverse: bool,
) -> list[Tensor]:
    """Gradients dx, dweight, dbias and dinitial_state; the last two where the input is given."""
    call = Call(x, weight, bias, initial_state, rows, silu, reverse)
    call.point_steps("dy", dy)
    call.point_packed("dlast", dlast)
    groups, (d, w) = call.problem.row_groups, weight.shape
    dx, dweight, dbias = output_like(x, rows), x.new_empty(groups, w, d), x.new_empty(groups, d)
    call.point_steps("dx", dx)
    call.point("dweight", dweight)
    call.point("dbias", dbias)
    dh0 = None if initial_state is None else call.point("dh0", x.new_empty(initial_state.shape))
    call.lib.conv_backward(ctypes.byref(call.problem))
    grads = (dx, dweight.sum(0).t().contiguous(), None if bias is None else dbias.sum(0), dh0)
    return [g for g in grads if g is not None]
