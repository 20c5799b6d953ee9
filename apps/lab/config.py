"""What `python -m apps.lab` can be told. Plain dataclasses: importing this file imports no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class LabConfig:
    """Train one mixer on one task until it solves it, then ask it about longer sequences."""

    task: tuple[str, ...] = ()
    """Which task: induction, selective_copy, copy, recall, mqar, parity, permutation, listops or regression."""
    mixer: str = "mamba2"
    """Registered mixer, e.g. mamba, s4d, attention (`python -m ssmcore.table` lists them)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the mixer, e.g. {d_state: 8}."""
    preset: Literal["small", "paper"] = "small"
    """Size of the task: small solves in minutes on two cores; paper is the published protocol's."""
    d_model: int = 32
    """Width of the model."""
    num_layers: int = 2
    """Layers, each the mixer alone or with the channel mixer behind it."""
    channel_mixer: str | None = None
    """Also a registered channel mixer in every layer, e.g. mlp."""
    length: int | None = None
    """Length of training sequences; None takes the preset's."""
    longer: tuple[int, ...] = (1, 2, 4)
    """Lengths to ask about afterwards, in multiples of the training length."""
    steps: int = 2000
    """Batches at most."""
    steps_per_epoch: int = 100
    """Batches between two looks at fresh sequences."""
    batch_size: int = 32
    """Sequences a batch."""
    fresh: int = 256
    """Fresh sequences that a look and the last questions are about."""
    solved: float = 0.995
    """Accuracy on fresh sequences that ends the training."""
    lr: float = 3e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.01
    """Of the parameters that decay."""
    seed: int = 0
    """Of the weights and the data."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    output: str = "runs/lab"
    """Folder in which the run folder is made."""
    resume: str | None = None
    """Run folder of an interrupted run, to go on with."""


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Train several mixers on several tasks, and print and plot who solves what, also beyond the trained length."""

    tasks: tuple[str, ...] = ("induction", "selective_copy", "copy", "mqar", "parity")
    """Which tasks."""
    mixers: tuple[str, ...] = ("attention", "s4d", "lru", "h3", "rglru", "mamba", "mamba2", "gated_deltanet")
    """Which mixers."""
    seeds: int = 1
    """Runs of each pair; the table shows the mean."""
    train: dict[str, Any] = field(default_factory=dict)
    """Options of `python -m apps.lab TASK` for every run, e.g. {steps: 500}."""
    output: str = "runs/lab-table"
    """Folder of the table; a run that was stopped goes on there."""
