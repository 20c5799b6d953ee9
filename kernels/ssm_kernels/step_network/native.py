"""Runs a packed network: streams with a memory of their own, many tokens a call."""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import native_build
from ..native_call import INTEGER, POINTER, structure
from .pack import OPS, Builder, Slot, line
from .reference import Draw

Problem = structure(
    ("streams count threads levels arena scratch integers logits together sampled top_k", INTEGER),
    ("temperature top_p", ctypes.c_double),
    ("program arenas registers seeds given drawn log_likelihood logits_out", POINTER),
)

TOGETHER = {"float32": 8, "bfloat16": 8, "int8": 1}
"""Streams that step side by side on a thread, by the format of the weights. Few bytes come from afar with int8 anyway:
there the streams' own memories, which push one another out of the near cache, cost more than sharing saves."""


@functools.cache
def library() -> ctypes.CDLL:
    """native.c, built on first use."""
    return native_build.load(Path(__file__).with_name("native.c"))


def lanes() -> int:
    """Floats in a vector register of this machine's build."""
    return int(library().step_network_lanes())


@dataclass
class Streams:
    """What the streams of a batch remember between calls. Plain data: copy, save and restore the tensors."""

    arenas: Tensor
    """float32, shape (b, floats)."""
    registers: Tensor
    """int64, shape (b, integers): newest token, its position, and how many tokens wait in each pool."""


@dataclass
class Made:
    """What a call gave."""

    tokens: Tensor
    """int64, shape (b, l): drawn, or those given."""
    log_likelihood: Tensor
    """Natural logarithm of each token's chance at temperature 1, float32, shape (b, l)."""
    logits: Tensor | None
    """float32, shape (b, l, levels), where asked for."""


class Network:
    """A program with its weights.

    Args:
        builder: What was packed.
        logits: Offset in scratch of the last map's output.
        levels: Number of tokens to choose from.
    """

    def __init__(self, builder: Builder, logits: int, levels: int):
        self.program, self.weights = builder.finish()
        self.lanes, self.together = builder.lanes, TOGETHER[builder.weights]
        self.slots = builder.slots
        self.bytes_of: dict[int, int] = {}
        for index, _, t in builder.tensors:
            self.bytes_of[index] = self.bytes_of.get(index, 0) + line(t)
        self.sizes = {"levels": levels, "arena": builder.arena_size, "scratch": builder.scratch_size}
        self.sizes |= {"integers": builder.integers, "logits": logits}

    def streams(self, batch: int, first: int) -> Streams:
        """b streams that remember nothing and whose newest token is `first`."""
        registers = torch.zeros(batch, self.sizes["integers"], dtype=torch.int64)
        registers[:, 0] = first
        return Streams(torch.zeros(batch, self.sizes["arena"]), registers)

    def run(
        self,
        streams: Streams,
        count: int,
        *,
        seeds: Sequence[int] = (),
        draw: Draw | None = None,
        given: Tensor | None = None,
        keep_logits: bool = False,
        threads: int = 1,
    ) -> Made:
        """Feed each stream its newest token, and get the next one, `count` times. Changes the streams in place.

        Args:
            streams: b of them.
            count: Tokens a stream, l.
            seeds: A number a stream, for `draw`.
            draw: How tokens are drawn; or
            given: the tokens themselves, int64, shape (b, l).
            keep_logits: Return the logits.
            threads: Streams side by side; on each thread some share a reading of the weights, see TOGETHER.
        """
        b = len(streams.arenas)
        tokens = torch.zeros(b, count, dtype=torch.int64)
        likelihood = torch.zeros(b, count)
        logits = torch.zeros(b, count, self.sizes["levels"]) if keep_logits else None
        numbers = torch.tensor([s & (2**63 - 1) for s in seeds] or [0] * b, dtype=torch.int64)
        draw = draw or Draw()
        tensors = {
            "arenas": streams.arenas, "registers": streams.registers, "seeds": numbers, "drawn": tokens,
            "log_likelihood": likelihood, "logits_out": logits,
            "given": None if given is None else given.contiguous(),
        }  # fmt: skip
        problem = Problem(
            streams=b, count=count, threads=threads, together=min(self.together, -(-b // threads)),
            sampled=given is None, top_k=draw.top_k,
            temperature=draw.temperature, top_p=draw.top_p, program=ctypes.addressof(self.program),
            **self.sizes, **{name: t.data_ptr() for name, t in tensors.items() if t is not None},
        )  # fmt: skip
        library().step_network_run(ctypes.byref(problem))
        return Made(tokens, likelihood, logits)

    def read(self, streams: Streams, slot: Slot) -> Tensor:
        """A state tensor (b, ...) out of the arenas; complex where its numbers come in pairs."""
        values = streams.arenas[:, slot.place.flatten()].view(-1, *slot.place.shape)
        if slot.factor is None:
            return values
        if not slot.factor.is_complex():
            return values * slot.factor
        value = torch.view_as_complex(values.contiguous()) * slot.factor
        return torch.view_as_real(value).flatten(-2) if slot.flat else value

    def write(self, streams: Streams, slot: Slot, value: Tensor) -> None:
        """Put a state tensor (b, ...) into the arenas."""
        if slot.flat:
            value = torch.view_as_complex(value.unflatten(-1, (-1, 2)).contiguous())
        if slot.factor is not None:
            value = value / slot.factor
        if value.is_complex():
            value = torch.view_as_real(value.resolve_conj())
        streams.arenas[:, slot.place.flatten()] = value.reshape(len(value), -1).float()

    def regions(self) -> list[tuple[int, int, int]]:
        """What a token reads of the weights: offset and bytes in the block, and how many tokens share one reading.

        Of the embedding, one row.
        """
        found, periods, at = [], [(len(self.program), 1)], 0
        for index, i in enumerate(self.program):
            while periods[-1][0] <= index and len(periods) > 1:
                periods.pop()
            size = self.bytes_of.get(index, 0)
            if size:
                read = size if i.op != OPS.index("embed") else size // self.sizes["levels"]
                found.append((at, read, periods[-1][1]))
                at += size
            if i.op == OPS.index("pool"):
                periods.append((i.jump, periods[-1][1] * i.k))
        return found

    def traffic(self) -> float:
        """Bytes of weights and coefficients that a token reads, on average over the pools."""
        return sum(size / period for _, size, period in self.regions())


__all__ = ["Made", "Network", "Streams", "lanes", "library"]
