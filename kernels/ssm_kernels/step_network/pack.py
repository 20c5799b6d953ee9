"""Packs a network's weights into a program for native.c: one list of instructions, one block of weights.

A builder is told the layers in the order in which they run, with plain tensors; it says where each vector lies
(`scratch`) and what a stream remembers (`remember`; a `slot` is the map from a state tensor to its places there).
"""

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_choice
from ..native_call import INTEGER, POINTER, structure

Weights = Literal["float32", "bfloat16", "int8"]
"""How the weights of linear maps are stored; sums, norms and recurrences are float32 with all of them."""
Activation = Literal["none", "gelu", "glu", "added", "glu_added"]
"""What follows a linear map; `added` adds to what is there already, the residual stream."""

OPS: tuple[str, ...] = tuple(
    "embed norm linear diagonal low_rank conv scan scan_pairs add copy gate pool recall end".split()
)
FORMATS = get_args(Weights)
ACTIVATIONS = get_args(Activation)
LARGEST_BLOCK = 8
"""Vector registers of rows that a linear map computes at once."""

Instruction = structure(
    ("op n k from_ to state other activation format block jump phase", INTEGER), ("w scale bias", POINTER)
)


@dataclass(frozen=True)
class Slot:
    """Where a state tensor lies in a stream's arena."""

    path: tuple[str, ...]
    """Keys that lead to the tensor in the state."""
    place: Tensor
    """Offsets in floats of each real number, int64, shape of one item's tensor (complex numbers: a last axis of 2)."""
    factor: Tensor | None
    """What the arena's number is multiplied by to give the state's, complex; None is 1."""
    flat: bool = False
    """The state is a real tensor (d, 2 m) that holds Re and Im side by side, not a complex one (d, m)."""


@dataclass
class Builder:
    """Collects instructions. Vectors are padded with zeros to `lanes`; all tensors are taken as float32."""

    lanes: int
    """Floats in a vector register."""
    weights: Weights = "float32"
    """Format of the linear maps."""
    instructions: list = field(default_factory=list)
    """The program so far."""
    tensors: list[tuple[int, str, Tensor]] = field(default_factory=list)
    """Weights with the instruction and the field that point to them."""
    slots: list[Slot] = field(default_factory=list)
    """Where the state tensors lie."""
    scratch_size: int = 0
    """Floats of scratch."""
    arena_size: int = 0
    """Floats that a stream remembers."""
    integers: int = 2
    """Integers that a stream remembers: its newest token, its position, and a count for each pool."""

    def __post_init__(self):
        check_choice("Builder", "weights", self.weights, FORMATS)

    def whole(self, n: int) -> int:
        """n, rounded up to whole vectors."""
        return -(-n // self.lanes) * self.lanes

    def scratch(self, n: int) -> int:
        """Room for a vector of n channels; returns its offset."""
        self.scratch_size += self.whole(n)
        return self.scratch_size - self.whole(n)

    def remember(self, n: int) -> int:
        """Room for n floats in every stream's arena, whole vectors; returns the offset."""
        self.arena_size += self.whole(n)
        return self.arena_size - self.whole(n)

    def slot(self, path: Sequence[str], place: Tensor, factor: Tensor | None = None, flat: bool = False) -> None:
        """Note where a state tensor lies; see Slot."""
        self.slots.append(Slot(tuple(path), place, factor, flat))

    def emit(self, op: str, *, w: Tensor | None = None, **fields: int | Tensor | None) -> int:
        """Append an instruction; returns its index."""
        numbers = {"state": -1, "other": -1, **{k: v for k, v in fields.items() if isinstance(v, int)}}
        index = len(self.instructions)
        tensors = {"w": w, **{k: v for k, v in fields.items() if isinstance(v, Tensor)}}
        self.tensors += [(index, name, t.contiguous()) for name, t in tensors.items() if t is not None]
        self.instructions.append(Instruction(op=OPS.index(op), **numbers))
        return index

    def pad(self, t: Tensor) -> Tensor:
        """The last axis with zeros up to whole vectors, float32."""
        return torch.nn.functional.pad(t.detach().float(), (0, self.whole(t.shape[-1]) - t.shape[-1]))

    def blocks(self, t: Tensor) -> Tensor:
        """Channels (d, ...) to (blocks, ..., lanes), contiguous."""
        t = self.pad(t.movedim(0, -1)).unflatten(-1, (-1, self.lanes))
        return t.movedim(-2, 0).contiguous()

    def block_places(self, offset: int, d: int, inner: int) -> Tensor:
        """Where (d, inner) numbers lie that are stored as (blocks, inner, lanes)."""
        channel = torch.arange(d)[:, None]
        return offset + (channel // self.lanes * inner + torch.arange(inner)) * self.lanes + channel % self.lanes

    # ---- layers ----

    def embed(self, table: Tensor, to: int) -> None:
        """to = table[token]; table (levels, d)."""
        self.emit("embed", n=table.shape[1], to=to, w=self.pad(table).contiguous())

    def norm(self, weight: Tensor, bias: Tensor, eps: float, source: int, to: int, shift: float = 0.0) -> None:
        """(x - mean + shift) / std * weight + bias; weight and bias (d,)."""
        self.emit(
            "norm", n=len(weight), from_=source, to=to, w=self.pad(weight), bias=self.pad(bias),
            scale=torch.tensor([eps, shift]),
        )  # fmt: skip

    def linear(
        self,
        weight: Tensor,
        bias: Tensor | None,
        source: int,
        to: int,
        activation: Activation = "none",
        *,
        exact: bool = False,
        source_state: int = -1,
        to_state: int = -1,
    ) -> None:
        """to = activation(weight source + bias), weight (n, k); gated: n / 2 outputs, the gates are the second half.

        `exact` keeps float32; `source_state` and `to_state` read and write the arena in place of scratch.
        """
        weight, (rows, k) = weight.detach().float(), weight.shape
        bias = weight.new_zeros(rows) if bias is None else bias.detach().float()
        gated = activation in ("glu", "glu_added")
        n = rows // 2 if gated else rows
        half = LARGEST_BLOCK // 2 if gated else LARGEST_BLOCK
        count = self.whole(n) // self.lanes
        R = next(r for r in (8, 4, 2, 1) if r <= half and count % r == 0)
        parts = [self._rows(weight, bias, part * n, n, R) for part in range(2 if gated else 1)]
        W = torch.cat([w for w, _ in parts], 1)  # (blocks, R, lanes, k)
        b = torch.cat([b for _, b in parts], 1)
        chosen = "float32" if exact or k % 2 else self.weights
        packed, scale = pack_matrix(W, chosen)
        self.emit(
            "linear", n=self.whole(n), k=k, from_=source, to=to, state=source_state, other=to_state, w=packed,
            bias=b.contiguous(), scale=scale, block=2 * R if gated else R, format=FORMATS.index(chosen),
            activation=ACTIVATIONS.index(activation),
        )  # fmt: skip

    def _rows(self, weight: Tensor, bias: Tensor, first: int, n: int, R: int) -> tuple[Tensor, Tensor]:
        """Rows first .. first + n as (blocks, R, lanes, k), and their biases (blocks, R, lanes)."""
        w = self.pad(weight[first : first + n].T).T.unflatten(0, (-1, R, self.lanes))
        return w, self.pad(bias[first : first + n]).unflatten(0, (-1, R, self.lanes))

    def conv(self, weight: Tensor, bias: Tensor, to: int, path: Sequence[str]) -> None:
        """Short causal convolution with silu, in place; weight (d, taps), oldest first, bias (d,)."""
        d, taps = weight.shape
        state = self.remember((taps - 1) * self.whole(d))
        self.slot(path, state + torch.arange(taps - 1)[:, None] * self.whole(d) + torch.arange(d))
        self.emit("conv", n=d, k=taps, to=to, state=state, w=self.pad(weight.T).contiguous(), bias=self.pad(bias))

    def finish(self) -> tuple[ctypes.Array, Tensor]:
        """The program, closed, and the one block of memory that holds its weights in the order of their use."""
        self.emit("end")
        program = (Instruction * len(self.instructions))(*self.instructions)
        block = on_large_pages(sum(line(t) for _, _, t in self.tensors))
        at = 0
        for index, name, t in self.tensors:
            block[at : at + t.numel() * t.element_size()] = t.flatten().view(torch.uint8)
            setattr(program[index], name, block.data_ptr() + at)
            at += line(t)
        return program, block


def pack_matrix(W: Tensor, weights: Weights) -> tuple[Tensor, Tensor | None]:
    """Rows (blocks, R, lanes, k) in the order in which native.c reads them.

    Args:
        W: float32, shape (blocks, R, lanes, k); k even unless the format is float32.
        weights: The format.
    Returns:
        float32 (blocks, k, R, lanes); pairs of bfloat16 in an int32, (blocks, k / 2, R, lanes); or int8
        (blocks, k / 2, R, lanes, 2) and the scale of each row, (blocks, R, lanes).
    Raises:
        ValueError: Unknown format.
    """
    check_choice("pack_matrix", "weights", weights, FORMATS)
    if weights == "float32":
        return W.permute(0, 3, 1, 2).contiguous(), None
    if weights == "int8":
        scale = W.abs().amax(-1).clamp(min=1e-30) / 127
        whole = (W / scale[..., None]).round().to(torch.int8).unflatten(-1, (-1, 2))
        return whole.permute(0, 3, 1, 2, 4).contiguous(), scale.contiguous()
    pairs = W.to(torch.bfloat16).view(torch.int16).to(torch.int32).permute(0, 3, 1, 2)
    return ((pairs[:, 0::2] & 0xFFFF) | (pairs[:, 1::2] << 16)).contiguous(), None


def line(t: Tensor) -> int:
    """Bytes of a tensor of any shape, in whole cache lines. Raises nothing."""
    return -(-t.numel() * t.element_size() // 64) * 64


def on_large_pages(size: int) -> Tensor:
    """`size` bytes, uint8, shape (size,), on pages of 2 MiB where the system has them: fewer misses in its tables."""
    page = 1 << 21
    room = torch.empty(size + page, dtype=torch.uint8)
    start = -room.data_ptr() % page
    if sys.platform == "linux":
        ctypes.CDLL(None).madvise(ctypes.c_void_p(room.data_ptr() + start), ctypes.c_size_t(size), 14)  # MADV_HUGEPAGE
    return room[start : start + size]
