"""What all Triton kernels share: pieces of rows, functions that Triton lacks, launch limits. Imports triton.

A piece is a run of time steps that one program walks through: a row (see rows.py), or a part of one where a long row is
cut so that every multiprocessor has work. Pieces of a row stand in scan order. A plain batch needs no table of them:
its pieces follow from the program's index; packed and padded rows come with a table on the device.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rows import Row

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MOST = 2**31 - 1
"""Programs of one launch, and entries along one dimension: what a 32-bit index can hold."""


@dataclass(frozen=True)
class Pieces:
    """How the rows of a (b, l, ...) input are cut.

    A piece's entry in the table is its batch item, first time step, number of steps and first boundary slot.
    """

    count: int
    rows: int
    table: Tensor | None
    """int64, shape (count, 4); None for a plain batch."""
    first: tuple[int, ...] | None
    """The first piece of each row and, last, the number of pieces; None where every row has `per_row`."""
    length: int
    per_row: int
    steps: int
    """Steps in a piece of a plain batch, a multiple of `every`, except in a row's last."""
    every: int
    """Steps between two boundaries."""

    @classmethod
    def cut(cls, shape: tuple[int, int], rows: list[Row] | None, steps: int, every: int, reverse: bool, device):
        """Cut rows into pieces of at most `steps`.

        Args:
            shape: (b, l) of the input.
            rows: None for a plain batch.
            steps: Most steps in a piece, a multiple of `every`.
            every: Steps between two boundaries.
            reverse: Whether the scan runs from the last step to the first.
            device: Where the kernels run.
        """
        b, l = shape
        if rows is None:
            per_row = max(1, -(-l // steps))
            return cls(b * per_row, b, None, None, l, per_row, steps, every)
        entries, first, slot = [], [0], 0
        for row in rows:
            for at in range(0, max(row.length, 1), steps):
                part = min(steps, row.length - at)
                start = row.start + (row.length - at - part if reverse else at)
                entries.append((row.batch, start, part, slot + at // every))
            first.append(len(entries))
            slot += -(-row.length // every)
        table = torch.tensor(entries, dtype=torch.int64).view(-1, 4).to(device)
        return cls(len(entries), len(rows), table, tuple(first), l, 1, steps, every)

    @property
    def whole_rows(self) -> bool:
        """Whether no row is cut."""
        return self.count == self.rows

    @property
    def named(self) -> dict[str, Tensor | int | None]:
        """What `piece_at` takes after the piece's index, by the kernels' names."""
        return dict(
            table=self.table, length=self.length, per_row=self.per_row, piece_steps=self.steps,
            row_slots=-(-self.length // self.every), pieces=self.count,
        )  # fmt: skip


@functools.cache
def schedulers(device: torch.device) -> int:
    """How many warps the device can issue from at once; 0 where work need not be cut to fill it."""
    if device.type != "cuda":
        return 0
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


def output(t: Tensor, rows: list[Row] | None, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous output of t's shape (..., b, l, d); zeros where rows leave steps out."""
    whole = rows is None or sum(row.length for row in rows) == t.shape[-3] * t.shape[-2]
    return (torch.empty if whole else torch.zeros)(t.shape, dtype=dtype or t.dtype, device=t.device)


def launch(op: str, kernel: Any, programs: int, warps: int, **named: Any) -> None:
    """Run a kernel, on the device of its tensors.

    Args:
        op: Operator name, for messages.
        kernel: What triton.jit made.
        programs: How many of it.
        warps: Warps of a program.
        named: The kernel's arguments.
    Raises:
        ValueError: More programs or steps than a device can index.
    """
    if named.get("length", 0) > MOST:
        raise ValueError(f"{op}: the input has {named['length']} steps, the Triton kernels count up to {MOST}")
    if programs > MOST:
        raise ValueError(f"{op}: the problem needs {programs} Triton programs in one launch, expected at most {MOST}")
    if programs > 0:
        kernel[(programs,)](**named, num_warps=warps)


@triton.jit
def wide(i):
    """i in 64 bits, for a product with a stride; in the interpreter the variable of a loop may be a plain number."""
    return tl.full((), i, tl.int64)


@triton.jit
def piece_at(p, table, length, per_row, steps, row_slots, EVERY: tl.constexpr, REVERSE: tl.constexpr):
    """Piece p: batch item (int64), first time step, number of steps (int32), first boundary slot (int64)."""
    if table is None:
        batch = (p // per_row).to(tl.int64)
        at = p % per_row * steps
        count = tl.minimum(at + steps, length) - at
        start = at
        if REVERSE:
            start = length - at - count
        slot = batch * row_slots + at // EVERY
    else:
        entry = table + p.to(tl.int64) * 4
        batch = tl.load(entry)
        start = tl.load(entry + 1).to(tl.int32)
        count = tl.load(entry + 2).to(tl.int32)
        slot = tl.load(entry + 3)
    return batch, start, count, slot


@triton.jit
def tokens_at(s, start, count, order, UNROLL: tl.constexpr, REVERSE: tl.constexpr, CLAMP: tl.constexpr = False):
    """The tokens (int64) at places s .. s + UNROLL - 1 of a piece in scan order, a tuple.

    Args: order gives the token of a time step, shape (l,), or None where it is the same. CLAMP takes the last token
    again beyond the piece's end; without it there must be none.
    """
    tokens = ()
    for i in tl.static_range(UNROLL):
        place = s + i
        if CLAMP:
            place = tl.minimum(place, count - 1)
        t = start + place
        if REVERSE:
            t = start + count - 1 - place
        if order is not None:
            t = tl.load(order + t)
        tokens = tokens + (t.to(tl.int64),)
    return tokens


@triton.jit
def rows_at(tokens, X, X_t, columns, mask):
    """Rows of X, one for each token, a tuple; empty where X is None. mask None reads whole rows.

    Columns are added first: a lane's address is then made once, and a token's row costs one product and one sum.
    """
    rows = ()
    if X is not None:
        for i in tl.static_range(len(tokens)):
            if mask is None:
                rows = rows + (tl.load((X + columns) + tokens[i] * X_t),)
            else:
                rows = rows + (tl.load((X + columns) + tokens[i] * X_t, mask=mask, other=0),)
    return rows


@triton.jit
def sigmoid(v):
    """1 / (1 + e^-v)."""
    return 1 / (1 + tl.exp2(-v * LOG2E))


@triton.jit
def softplus(v, DOUBLE: tl.constexpr):
    """log(1 + e^v) to the last digits also where it is tiny, and its derivative.

    log1p(e) = 2 artanh(e / (2 + e)): Triton has no log1p, and the logarithm of a rounded sum is wrong for small steps.
    """
    e = tl.exp2(-tl.abs(v) * LOG2E)
    s = e / (2 + e)
    square = s * s
    terms: tl.constexpr = 17 if DOUBLE else 7
    series = 1.0 / (2 * terms + 1) + 0 * s
    for k in tl.static_range(terms):
        series = series * square + 1.0 / (2 * (terms - 1 - k) + 1)
    return tl.maximum(v, 0) + 2 * s * series, tl.where(v < 0, e, 1.0) / (1 + e)
