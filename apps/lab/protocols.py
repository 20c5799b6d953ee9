"""Every task at two sizes: small ones that two cores solve in minutes, and the published ones with their training.

A published protocol is what the paper or its repository trains: lengths, vocabulary, model width and depth, batch,
steps, learning rate, decay. Where a paper trains several lengths or sizes, the preset is one of them, and
`--task-options`, `--length` and `--d-model` give the others.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from ssmcore.registry import resolve

from . import tasks
from .listops import listops
from .regression import regression
from .tasks import Drawn


@dataclass(frozen=True, kw_only=True)
class Training:
    """The model around the mixer, and how it is trained."""

    d_model: int = 32
    """Width."""
    num_layers: int = 2
    """Layers."""
    channel_mixer: str | None = None
    """Behind the mixer in each layer."""
    batch_size: int = 32
    """Sequences a batch."""
    steps: int = 2000
    """Batches at most."""
    steps_per_epoch: int = 100
    """Batches between two looks at fresh sequences."""
    examples: int | None = None
    """Training sequences, seen again in each epoch; None draws new ones for ever."""
    fresh: int = 256
    """Sequences of a look."""
    lr: float = 3e-3
    """Learning rate."""
    weight_decay: float = 0.01
    """Of what decays."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate goes on after its rise: linearly to zero by batches, or along a half cosine by epochs."""
    warmup: float = 0.0
    """Part of all batches in which the rate rises."""
    embed_dropout: float = 0.0
    """Rate behind the embedding."""
    longer: tuple[int, ...] = (1, 2, 4)
    """Lengths that are asked about afterwards, in multiples of the training length."""

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch. No shapes, raises nothing."""
        return self.steps_per_epoch if self.examples is None else -(-self.examples // self.batch_size)

    def pace(self, step: int) -> float:
        """Factor on the learning rate at a batch, counted from 0. No shapes, raises nothing."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        if self.schedule == "cosine":
            epochs = -(-self.steps // self.per_epoch)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, step // self.per_epoch / epochs)))
        return max(0.0, 1 - (step - rising) / max(1, self.steps - rising)) if self.schedule == "linear" else 1.0


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A size that grows while training: from `start` by `by` every `every` batches, up to `end`."""

    start: int
    """At the first batch."""
    end: int
    """At most."""
    by: int
    """Each rise."""
    every: int
    """Batches from one rise to the next."""

    def at(self, step: int) -> int:
        """The size at a batch, counted from 0. No shapes, raises nothing."""
        return min(self.end, self.start + self.by * (step // self.every))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task and its sizes."""

    draw: Callable[..., Drawn]
    """See tasks.py."""
    tokens: int
    """Kinds of input tokens; or the width of input vectors."""
    classes: int
    """Kinds of answers; 0 for a number."""
    length: int
    """Of training sequences, as `draw` counts it."""
    about: str
    """What it asks for, in one line."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `draw`."""
    kind: Literal["classes", "number"] = "classes"
    """What is asked for."""
    training: Training = Training()
    """How it is trained."""
    growing: Mapping[str, Ramp] = field(default_factory=dict)
    """Options of `draw`, or "length", that grow while training."""

    def __call__(self, batch: int, length: int, seed: int, step: int | None = None) -> Drawn:
        """A batch, by its seed; shapes as `draw` says.

        Args:
            batch: b.
            length: l; a growing one takes its place at a training step.
            seed: Of the draws.
            step: Training step, for what grows; None asks at full size.
        Raises:
            ValueError: The length is too short for the task.
        """
        grown = {} if step is None else {name: ramp.at(step) for name, ramp in self.growing.items()}
        length = grown.pop("length", length)
        return self.draw(batch, length, torch.Generator().manual_seed(seed), **{**self.options, **grown})


def task(name: str, preset: str = "small", options: Mapping[str, Any] | None = None) -> Task:
    """A task in the size of a preset.

    Args:
        name: A key of TASKS.
        preset: "small" (minutes on two cores) or "paper" (as published). No shapes.
        options: Of the draw, in place of the preset's; vocabulary sizes follow them.
    Raises:
        ValueError: No such task, preset or option; gives the near misses.
    """
    found = resolve(preset, resolve(name, TASKS, "task"), "preset")
    known = dict.fromkeys([*found.options, *(found.draw.__kwdefaults__ or {})])
    for option in options or {}:
        resolve(option, known, f"option of {name}")
    merged = {**found.options, **(options or {})}
    sizes = {"tokens": merged["vocab"], "classes": merged["vocab"]} if "vocab" in (options or {}) else {}
    if "dims" in (options or {}):
        sizes = {"tokens": merged["dims"] + 1}
    return replace(found, options=merged, **sizes)


def _task(draw: Callable[..., Drawn], vocab: int, length: int, about: str, **rest: Any) -> Task:
    return Task(draw=draw, tokens=vocab, classes=vocab, length=length, about=about, **rest)


def _pair(small: Task, **paper: Any) -> dict[str, Task]:
    return {"small": small, "paper": replace(small, **paper)}


# Gu & Dao 2023, appendix E.1 and E.2 (Mamba's settings; 25 epochs of 8192 steps; Adam without decay).
_COPY = Training(d_model=64, batch_size=64, steps=400_000, steps_per_epoch=4000, lr=1e-4, weight_decay=0.0)
_HEADS = Training(
    d_model=64,
    batch_size=8,
    steps=25 * 8192,
    steps_per_epoch=8192,
    lr=1e-3,
    weight_decay=0.0,
    longer=(1, 2, 4, 16, 64, 4096),
)
# Fu et al. 2023, appendix, and its repository: 5000 sequences, 200 epochs at a vocabulary of 10, an MLP four times as
# wide, a rate that rises for a tenth of the epochs and falls linearly.
_H3 = Training(
    channel_mixer="mlp",
    examples=5000,
    steps=200 * 157,
    fresh=500,
    lr=5e-4,
    weight_decay=0.1,
    schedule="linear",
    warmup=0.1,
    embed_dropout=0.1,
    longer=(1, 2, 4),
)
# Arora et al. 2023, appendix E and its repository: 64 epochs of 100,000 sequences, a cosine; the rate is the best of
# four. It stops at .99, for which there is --solved.
_ZOO = Training(
    d_model=64,
    batch_size=128,
    examples=100_000,
    steps=64 * 782,
    fresh=3000,
    lr=2.15e-3,
    weight_decay=0.1,
    schedule="cosine",
    longer=(1, 2),
)
# Park et al. 2024, section 3 and its repository; Adam without decay, dimensions and points by a curriculum.
_ICL = Training(
    d_model=128, num_layers=4, batch_size=64, steps=500_000, steps_per_epoch=5000, fresh=1280, lr=1e-4, weight_decay=0.0
)
_GROWING = {"active": Ramp(start=5, end=20, by=1, every=2000), "length": Ramp(start=11, end=41, by=2, every=2000)}

TASKS: dict[str, dict[str, Task]] = {
    "induction": _pair(
        _task(tasks.induction, 16, 32, "what followed the trigger the first time?", training=Training(steps=3000)),
        length=256,
        training=_HEADS,
    ),
    "selective_copy": _pair(
        _task(tasks.selective_copy, 16, 32, "say data again that stood among noise", options={"items": 4}),
        length=4096,
        options={"items": 16},
        training=_COPY,
    ),
    "copy": _pair(
        _task(
            tasks.selective_copy,
            16,
            32,
            "say data again that stood first",
            options={"items": 4, "plain": True},
        ),
        length=4096,
        options={"items": 16, "plain": True},
        training=_COPY,
    ),
    "recall": _pair(_task(tasks.recall, 10, 21, "one key, its value"), training=_H3),
    "mqar": _pair(
        _task(
            tasks.mqar,
            64,
            64,
            "several keys, their values",
            options={"pairs": 4, "vocab": 64},
            training=Training(d_model=64, longer=(1, 2, 4)),
        ),
        tokens=8192,
        classes=8192,
        length=512,
        options={"pairs": 64, "vocab": 8192, "filler": False},
        training=_ZOO,
    ),
    "parity": _pair(
        _task(tasks.parity, 2, 16, "is the number of ones odd?"),
        length=40,
        training=Training(d_model=128, batch_size=256, steps=100_000, steps_per_epoch=1000, lr=1e-3),
    ),
    "permutation": _pair(
        _task(tasks.permutation, 6, 12, "permutations one after the other", options={"size": 3}),
        tokens=120,
        classes=120,
        length=20,
        options={"size": 5},
        training=Training(d_model=512, num_layers=1, batch_size=256, steps=100_000, steps_per_epoch=1000, lr=1e-4),
    ),
    "listops": {
        "small": Task(draw=listops, tokens=18, classes=10, length=96, about="the value of nested lists"),
        "paper": Task(draw=listops, tokens=18, classes=10, length=2000, about="the value of nested lists"),
    },
    "regression": _pair(
        Task(
            draw=regression,
            tokens=6,
            classes=0,
            length=11,
            kind="number",
            about="a function from its values",
            options={"dims": 5, "scale": 5**-0.5},
        ),
        tokens=21,
        length=41,
        options={"dims": 20},
        training=_ICL,
        growing=_GROWING,
    ),
}
"""Name -> preset -> task."""
