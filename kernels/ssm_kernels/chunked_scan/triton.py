"""Launches the Triton kernels of the matrix-valued scan: block sizes by shape, states, adjoints, partial sums."""

import functools
import os
from typing import Any

import torch
import triton
from torch import Tensor

from ..rows import Row
from ..triton_common import Pieces, launch, output, schedulers
from .triton_kernels import inputs_kernel, outputs_kernel, walk_kernel

SHORTEST, LONGEST = 16, 64  # steps of a chunk: what tensor cores take, what registers hold
MOST_KEYS, MOST_VALUES = 64, 64  # of a tile
AT_A_TIME = 16  # steps, and values, that the gradients of q and k take at a time
WARPS = 8

# How products of float32 are computed, by what torch.set_float32_matmul_precision says of torch's own: in three parts,
# right to about 21 bits, or in one of 10.
PRECISIONS = {"highest": "tf32x3", "high": "tf32", "medium": "tf32"}


def block(size: int, most: int) -> int:
    """Entries of a tile along one dimension."""
    return min(most, max(16, triton.next_power_of_2(size)))


def strides(name: str, t: Tensor | None) -> dict[str, int]:
    """Strides of batch, step and head of a (b, l, heads, width) tensor, by the kernels' names."""
    return {f"{name}_{axis}": 0 if t is None else t.stride(i) for i, axis in enumerate("bth")}


def dense(t: Tensor) -> Tensor:
    """t with its last dimension contiguous."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


class Call:
    """What the launches of one call share."""

    def __init__(self, q, k, v, log_decay, rows: list[Row] | None, reverse: bool, chunk: int):
        (self.b, self.l, self.h, self.p), (self.g, self.n) = v.shape, q.shape[2:]
        self.q, self.k, self.v, self.rows = dense(q), dense(k), dense(v), rows
        self.log_decay = None if log_decay is None else dense(log_decay)
        longest = self.l if rows is None else max((row.length for row in rows), default=0)
        self.steps = max(SHORTEST, min(chunk, LONGEST, triton.next_power_of_2(max(longest, 1))))
        self.pieces = Pieces.cut((self.b, self.l), rows, self.steps, self.steps, reverse, v.device)
        self.wide = torch.float64 if v.dtype == torch.float64 else torch.float32
        self.block_n, self.block_p = block(self.n, MOST_KEYS), block(self.p, MOST_VALUES)
        self.n_blocks, self.p_blocks = triton.cdiv(self.n, self.block_n), triton.cdiv(self.p, self.block_p)
        decay = self.log_decay
        self.named: dict[str, Any] = dict(
            log_decay=decay, n=self.n, p=self.p, a_group=self.h // self.g,
            decay_b=0 if decay is None else decay.stride(0), decay_t=0 if decay is None else decay.stride(1),
            T=self.steps, BLOCK_N=self.block_n, BLOCK_P=self.block_p, DOUBLE=v.dtype == torch.float64,
            PRECISION=PRECISIONS[torch.get_float32_matmul_precision()],
            HALVES=os.environ.get("TRITON_INTERPRET") != "1",  # the interpreter takes bfloat16's bits for integers
            REVERSE=reverse, **self.pieces.named,
        )  # fmt: skip

    @functools.cached_property
    def bounds(self) -> Tensor | None:
        """The first chunk of each row, and the number of chunks; None where every row has the same number."""
        first = self.pieces.first
        return None if first is None else torch.tensor(first, dtype=torch.int32).to(self.v.device)

    def walk(self, k: Tensor, v: Tensor, first: Tensor | None, adjoint: bool) -> tuple[Tensor, Tensor]:
        """States before every chunk (pieces, h, n, p), or adjoints after it, and the last (rows, h, n, p)."""
        before = v.new_empty(self.pieces.count, self.h, self.n, self.p, dtype=self.wide)
        last = v.new_empty(self.pieces.rows, self.h, self.n, self.p, dtype=self.wide)
        launch(
            "chunked_scan", walk_kernel, self.pieces.rows * self.h * self.n_blocks * self.p_blocks, 4, **self.named,
            k=k, v=v, first=None if first is None else first.contiguous(), before=before, last=last,
            bounds=self.bounds, chunks=self.pieces.per_row, heads=self.h, n_blocks=self.n_blocks,
            p_blocks=self.p_blocks, ADJOINT=adjoint, **strides("k", k), **strides("v", v),
        )  # fmt: skip
        return before, last

    def outputs(self, v: Tensor, states: Tensor, adjoint: bool) -> Tensor:
        """o, or with `adjoint`, of v = do and the adjoints, dv; shape (b, l, h, p)."""
        o = output(self.v.flatten(-2), self.rows).view(self.v.shape)
        launch(
            "chunked_scan", outputs_kernel, self.pieces.count * self.h * self.p_blocks, WARPS, **self.named, q=self.q,
            k=self.k, v=v, states=states, o=o, heads=self.h, p_blocks=self.p_blocks, ADJOINT=adjoint,
            **strides("q", self.q), **strides("k", self.k), **strides("v", v), **strides("o", o),
        )  # fmt: skip
        return o

    @property
    def splits(self) -> int:
        """Into how many shares the heads of a group are cut: one, unless that leaves half of the device idle."""
        programs = max(1, self.pieces.count * self.g * self.n_blocks)
        return max(1, min(self.h // self.g, schedulers(self.v.device) // 4 // programs))

    def inputs(self, do: Tensor, states: Tensor, adjoints: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """dq, dk (b, l, g, n) and the gradient of the log decay (b, l, h)."""
        dq, from_q = self.gradient_of(self.q, self.k, do, self.v, states, None)
        dk, from_k = self.gradient_of(self.k, self.q, self.v, do, adjoints, states)
        return dq, dk, None if from_q is None or from_k is None else from_q + from_k

    def gradient_of(self, own, other, left, right, states, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """dq, or with the states before each chunk dk, and its share of the gradient of the log decay."""
        e, splits, decay = self.h // self.g, self.splits, None
        make = self.q.new_empty((), dtype=self.wide)
        parts = output(make.expand(splits, self.b, self.l, self.g * self.n), self.rows)
        if self.log_decay is not None:
            decay = output(make.expand(self.n_blocks, self.b, self.l, self.h), self.rows)
        narrow = {**self.named, "BLOCK_P": min(AT_A_TIME, self.block_p), "J": min(AT_A_TIME, self.steps)}
        launch(
            "chunked_scan", inputs_kernel, self.pieces.count * self.g * splits * self.n_blocks, WARPS, **narrow,
            own=own, other=other, left=left, right=right, states=states, before=None if decay is None else before,
            gradient=parts, ddecay=decay, groups=self.g, splits=splits, a_split=triton.cdiv(e, splits),
            n_blocks=self.n_blocks, tokens=self.b * self.l, KEYS=before is not None, **strides("own", own),
            **strides("other", other), **strides("left", left), **strides("right", right),
        )  # fmt: skip
        grad = parts.sum(0).view(self.q.shape).to(own.dtype)
        return grad, None if decay is None else decay.sum(0)


def forward(q, k, v, log_decay, initial_state, rows, reverse: bool, chunk: int) -> tuple[Tensor, Tensor]:
    """o (b, l, h, p) in the dtype of v and the last state (rows, h, n, p)."""
    call = Call(q, k, v, log_decay, rows, reverse, chunk)
    states, last = call.walk(call.k, call.v, initial_state, False)
    return call.outputs(call.v, states, False), last


def backward(do, dlast, q, k, v, log_decay, initial_state, rows, reverse: bool, chunk: int) -> list[Tensor]:
    """Gradients dq, dk, dv, dlog_decay and dinitial_state, the last two where the input is given."""
    call = Call(q, k, v, log_decay, rows, reverse, chunk)
    do = v.new_zeros(v.shape) if do is None else dense(do)
    states, _ = call.walk(call.k, call.v, initial_state, False)  # once more, rather than kept: n / chunk of v each
    adjoints, first = call.walk(call.q, do, dlast, True)
    dq, dk, decay = call.inputs(do, states, adjoints)
    grads = (dq, dk, call.outputs(do, adjoints, True), decay, None if initial_state is None else first)
    return [g for g in grads if g is not None]
