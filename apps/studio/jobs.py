"""What one browser may ask for, the line in which requests wait, and a clip while it is made."""

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audio.errors import AudioError
from audio.generation import Draw

from .library import Model

MOST_SECONDS, MOST_PROMPT_SECONDS = 60.0, 30.0
MOST_WAITING, MOST_KEPT = 8, 16
CHUNK_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Request:
    """A clip that somebody wants. Checked when it is made."""

    model: int
    """Place in the library."""
    seed: int
    """0 to 2^53 - 1, which JavaScript can count."""
    seconds: float
    """Length, the prompt not counted."""
    temperature: float
    """0 to 3."""
    top_p: float
    """Above 0, to 1."""
    label: tuple[str | None, ...] = ()
    """A name of each kind of label; None is any."""
    prompt: str | None = None
    """Id of an uploaded prompt."""

    @classmethod
    def parse(cls, given: Any) -> "Request":
        """From what a browser sent.

        Raises:
            AudioError: A value is missing, of the wrong type or out of bounds.
        """
        if not isinstance(given, dict):
            raise AudioError("a request is a JSON object")
        numbers = {"model": (0, 1000), "seed": (0, 2**53 - 1), "seconds": (0.05, MOST_SECONDS), "temperature": (0, 3),
                   "top_p": (0.01, 1)}  # fmt: skip
        values: dict[str, Any] = {}
        for name, (low, high) in numbers.items():
            value = given.get(name)
            whole = name in ("model", "seed")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise AudioError(f"{name} must be a {'whole ' if whole else ''}number")
            if not low <= value <= high:
                raise AudioError(f"{name} is {value}; expected {low} to {high}")
            values[name] = value if whole else float(value)
        label, prompt = given.get("label", []), given.get("prompt")
        names = isinstance(label, list) and len(label) <= 8 and all(n is None or isinstance(n, str) for n in label)
        if not names or not (prompt is None or isinstance(prompt, str)):
            raise AudioError("label must be a list of names, and prompt the id of an uploaded recording")
        return cls(**values, label=tuple(label), prompt=prompt)


class Line:
    """One works, the others wait in order; a place in the line is given up when its holder leaves."""

    def __init__(self):
        self.tickets: list[asyncio.Event] = []

    @asynccontextmanager
    async def turn(self) -> AsyncIterator["Turn"]:
        """A place in the line.

        Raises:
            AudioError: Too many wait already.
        """
        if len(self.tickets) > MOST_WAITING:
            raise AudioError(f"{MOST_WAITING} requests wait already; try again in a while")
        mine = asyncio.Event()
        self.tickets.append(mine)
        self._wake()
        try:
            yield Turn(self, mine)
        finally:
            self.tickets.remove(mine)
            self._wake()

    def _wake(self) -> None:
        if self.tickets:
            self.tickets[0].set()


@dataclass(frozen=True)
class Turn:
    """A place in a line."""

    line: Line
    ticket: asyncio.Event

    @property
    def ahead(self) -> int:
        """How many come before."""
        return self.line.tickets.index(self.ticket)


@dataclass
class Clip:
    """A clip and what is known of it."""

    request: Request
    model: Model
    prompt: Tensor | None = None
    """Levels of the prompt, int64, shape (t,)."""
    chunks: list[Tensor] = field(default_factory=list)
    """Waveforms, float32, shape (n,), as they are made."""
    bits: float = 0.0
    seconds_used: float = 0.0
    stopped: bool = False

    @property
    def wave(self) -> Tensor:
        """All that is made so far, float32, shape (t,)."""
        return torch.cat(self.chunks) if self.chunks else torch.zeros(0)

    async def make(self) -> AsyncIterator[Tensor]:
        """Make the clip, chunk by chunk, in a thread beside the server."""
        request, generator = self.request, self.model.generator
        label = self.model.checkpoint.label(*request.label)
        draw = Draw(temperature=request.temperature, top_p=request.top_p)
        rate = generator.sample_rate
        left, step = max(1, round(request.seconds * rate)), max(1, round(CHUNK_SECONDS * rate))
        options = {"label": label if label.numel() else None, "prompt": self.prompt}
        session = await asyncio.to_thread(generator.start, [request.seed], **options)
        while left and not self.stopped:
            begun = time.perf_counter()
            made = await asyncio.to_thread(session.advance, min(step, left), draw)
            self.seconds_used += time.perf_counter() - begun
            left -= made.tokens.shape[1]
            self.bits -= float(made.log_likelihood.sum()) / 0.6931471805599453
            self.chunks.append(generator.quantizer.decode(made.tokens)[0])
            yield self.chunks[-1]

    def facts(self) -> dict[str, Any]:
        """What goes beside the sound, enough to make it again."""
        samples, rate = len(self.wave), self.model.checkpoint.sample_rate
        r = self.request
        return {
            "model": self.model.name,
            "checkpoint_sha256": self.model.checkpoint.sha256,
            "backend": self.model.generator.backend,
            "label": list(r.label),
            "seed": r.seed,
            "temperature": r.temperature,
            "top_p": r.top_p,
            "seconds": samples / rate,
            "samples": samples,
            "sample_rate": rate,
            "prompt_samples": 0 if self.prompt is None else len(self.prompt),
            "bits_per_sample": self.bits / max(1, samples),
            "real_time_factor": samples / rate / max(1e-9, self.seconds_used),
            "samples_sha256": hashlib.sha256(self.wave.numpy().tobytes()).hexdigest(),
            "stopped_early": self.stopped,
        }


class Shelf(OrderedDict[str, Any]):
    """The newest things by random ids; the oldest fall off."""

    def keep(self, thing: Any) -> str:
        """Put a thing on the shelf and get its id."""
        name = secrets.token_urlsafe(12)
        self[name] = thing
        while len(self) > MOST_KEPT:
            self.popitem(last=False)
        return name
