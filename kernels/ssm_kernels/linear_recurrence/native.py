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
    ("rows d block blocks pieces reverse constant_a threads", INTEGER),
    ("a_batch a_step b_batch b_step h_batch h_step dh_batch dh_step", INTEGER),
    ("row a b h0 h last map_a map_b dh dlast da db dh0", POINTER),
)

NARROWEST = 64  # reals in a block of channels: a few cache lines, so that memory is still read in bursts
SHORTEST = 1024  # steps for which it pays to cut a row into pieces


@functools.cache
def library(double: bool, is_complex: bool) -> ctypes.CDLL:
    """native.c for one element type, built on first use."""
    defines = ["-DSSM_DOUBLE"] * double + ["-DSSM_COMPLEX"] * is_complex
    return native_build.load(Path(__file__).with_name("native.c"), tuple(defines))


def blocks_wanted(rows: int, threads: int) -> int:
    """Into how many blocks channels are cut: as few as keep the threads busy, for whole steps stream best."""
    if rows >= 4 * threads or rows % threads == 0:
        return 1
    return 2 if rows > threads else -(-threads // rows)


def pieces_of(tasks: int, length: int, threads: int) -> int:
    """Into how many pieces rows are cut: one, unless at least half of the threads would have nothing to do."""
    spare = threads // max(tasks, 1)
    return spare + 1 if spare >= 2 and length >= SHORTEST else 1


class Call(NativeCall):
    """One call's problem: d counts reals, so a complex channel is two."""

    def __init__(self, a: Tensor, b: Tensor, initial_state: Tensor | None, rows: list[Row], reverse: bool):
        self.planes = 2 if b.is_complex() else 1
        self.lib = library(b.dtype in (torch.float64, torch.complex128), b.is_complex())
        d, threads = b.shape[2] * self.planes, torch.get_num_threads()
        p = Problem(rows=len(rows), d=d, reverse=reverse, constant_a=a.ndim == 1, threads=threads)
        super().__init__(p, rows)
        blocks = max(1, min(blocks_wanted(len(rows), threads), d // NARROWEST))
        p.block = max(16, -(-d // blocks) + 15 & ~15)
        p.blocks = -(-d // p.block)
        p.pieces = pieces_of(len(rows) * p.blocks, max((row.length for row in rows), default=0), threads)
        if a.ndim == 1:
            self.point_packed("a", a)
        else:
            self.point_steps("a", a)
        self.point_steps("b", b)
        self.point_packed("h0", initial_state)
        if p.pieces > 1:
            self.point("map_a", b.new_empty(len(rows), p.pieces, b.shape[2]))
            self.point("map_b", b.new_empty(len(rows), p.pieces, b.shape[2]))


def forward(
    a: Tensor, b: Tensor, initial_state: Tensor | None, rows: list[Row], reverse: bool
) -> tuple[Tensor, Tensor]:
    """h (b, l, d) and the last state (rows, d)."""
    call = Call(a, b, initial_state, rows, reverse)
    h, last = output_like(b, rows), b.new_empty(len(rows), b.shape[2])
    call.point_steps("h", h)
    call.point("last", last)
    call.lib.recurrence_forward(ctypes.byref(call.problem))
    return h, last


def backward(
    dh: Tensor | None,
    dlast: Tensor | None,
    h: Tensor,
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None,
    rows: list[Row],
    reverse: bool,
) -> list[Tensor]:
    """Gradients da, db and, where there is an initial state, dinitial_state."""
    call = Call(a, b, initial_state, rows, reverse)
    call.point_steps("h", h)
    call.point_steps("dh", dh)
    call.point_packed("dlast", dlast)
    db = output_like(b, rows)
    da = b.new_zeros(len(rows) * call.problem.pieces, b.shape[2]) if a.ndim == 1 else output_like(b, rows)
    call.point("da", da)
    call.point("db", db)
    grads = [da, db]
    if initial_state is not None:
        grads.append(b.new_empty(initial_state.shape))
        call.point("dh0", grads[-1])
    call.lib.recurrence_backward(ctypes.byref(call.problem))
    if a.ndim == 1:
        grads[0] = da.sum(0)
    return grads
