"""Rows: the independent runs of time steps that an operator works on.

A plain batch is one row a batch item; right-padded items (`lengths`) are shorter rows; packed sequences (`cu_seqlens`)
are consecutive rows of batch item 0. Every backend loops over rows and needs to know nothing else, so resets are exact:
no state can pass from one row to the next.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import Shapes

INTS = (torch.int32, torch.int64)


class Row(NamedTuple):
    """Time steps [start, start + length) of one batch item."""

    batch: int
    start: int
    length: int


def check_rows(shapes: Shapes, cu_seqlens: Tensor | None, lengths: Tensor | None) -> int:
    """Check the shapes and dtypes of the two row arguments (their values are checked by `rows_of`).

    Args:
        shapes: Has the letters b (batch) and l (length) bound already.
        cu_seqlens: Segment bounds, int32 or int64, shape (r + 1,), or None. Needs b = 1.
        lengths: Valid steps of each batch item, int32 or int64, shape (b,), or None.
    Returns:
        The number of rows, which is the batch size of the states.
    Raises:
        ValueError: Both are given, or a shape, dtype or the batch size is wrong.
    """
    op = shapes.op
    if cu_seqlens is not None and lengths is not None:
        raise ValueError(f"{op}: give cu_seqlens or lengths, not both")
    for name, t in (("cu_seqlens", cu_seqlens), ("lengths", lengths)):
        if t is None:
            continue
        shapes.check(name, t, "r+1" if name == "cu_seqlens" else "b")
        if t.dtype not in INTS:
            raise ValueError(f"{op}: {name} has dtype {str(t.dtype).removeprefix('torch.')}, expected int32 or int64")
    if cu_seqlens is None:
        return shapes.sizes["b"]
    if shapes.sizes["b"] != 1:
        raise ValueError(f"{op}: packed input (cu_seqlens) needs batch size 1, got {shapes.sizes['b']}")
    if cu_seqlens.shape[0] < 2:
        raise ValueError(f"{op}: cu_seqlens needs at least two entries, got {cu_seqlens.shape[0]}")
    return cu_seqlens.shape[0] - 1


def rows_of(op: str, batch: int, length: int, cu_seqlens: Tensor | None, lengths: Tensor | None) -> list[Row]:
    """The rows of a (b, l, ...) input.

    Raises:
        ValueError: cu_seqlens does not rise from 0 to l, or a length lies outside 0..l.
    """
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        if bounds[0] != 0 or bounds[-1] != length:
            raise ValueError(
                f"{op}: cu_seqlens must start at 0 and end at l={length}, got {bounds[0]} and {bounds[-1]}"
            )
        for i, (a, b) in enumerate(pairwise(bounds)):
            if b < a:
                raise ValueError(f"{op}: cu_seqlens must not fall, got {a} then {b} at entry {i + 1}")
        return [Row(0, a, b - a) for a, b in pairwise(bounds)]
    if lengths is not None:
        valid = lengths.tolist()
        for i, n in enumerate(valid):
            if not 0 <= n <= length:
                raise ValueError(f"{op}: lengths[{i}]={n}, expected 0..{length} (l)")
        return [Row(i, 0, n) for i, n in enumerate(valid)]
    return [Row(i, 0, length) for i in range(batch)]
