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
    """Size of the task and of its training: small solves in minutes on two cores; paper is the published protocol."""
    task_options: dict[str, Any] = field(default_factory=dict)
    """Options of the task in place of the preset's, e.g. {pairs: 8} for mqar."""
    d_model: int | None = None
    """Width of the model; this and what follows: none takes the preset's."""
    num_layers: int | None = None
    """Layers, each the mixer alone or with the channel mixer behind it."""
    channel_mixer: str | None = None
    """Also a registered channel mixer in every layer, e.g. mlp."""
    length: int | None = None
    """Length of training sequences."""
    longer: tuple[int, ...] | None = None
    """Lengths to ask about afterwards, in multiples of the training length."""
    steps: int | None = None
    """Batches at most."""
    steps_per_epoch: int | None = None
    """Batches between two looks at fresh sequences."""
    batch_size: int | None = None
    """Sequences a batch."""
    examples: int | None = None
    """Training sequences that are seen again in each epoch; without, new ones are drawn for ever."""
    fresh: int | None = None
    """Fresh sequences that a look and the last questions are about."""
    solved: float = 0.995
    """Score on fresh sequences that ends the training."""
    lr: float | None = None
    """Learning rate of AdamW."""
    weight_decay: float | None = None
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

    tasks: tuple[str, ...] = ("induction", "selective_copy", "copy")
    """Which tasks; also recall, mqar, parity, permutation, listops and regression."""
    mixers: tuple[str, ...] = (
        "attention",
        "lru",
        "mamba_s4",
        "h3",
        "gru",
        "rglru",
        "mamba",
        "mamba2",
        "gated_deltanet",
    )
    """Which mixers: registered names, or keys of `variants`."""
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: {"attention": {"num_heads": 4}})
    """Options of mixers, also under a name of their own, e.g. {gdn_negative: {name: gated_deltanet, beta_max: 2}}."""
    seeds: int = 1
    """Runs of each pair; the table shows the mean."""
    train: dict[str, Any] = field(default_factory=dict)
    """Options of `python -m apps.lab TASK` for every run, e.g. {steps: 500}."""
    each: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same for the runs of single tasks, e.g. {parity: {steps: 1000}}."""
    output: str = "runs/lab-table"
    """Folder of the table; a run that was stopped goes on there."""


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Write a data set that can be drawn anew, in the layout of the Long Range Arena archive."""

    task: tuple[str, ...] = ()
    """listops or pathfinder."""
    output: str = "runs/lra-data/drawn"
    """Folder; what is there already is left alone, so a stopped call goes on."""
    count: int = 1000
    """Images of pathfinder."""
    size: Literal[32, 64, 128, 256] = 32
    """Their height and width."""
    drawn: tuple[int, ...] = (96000, 2000, 2000)
    """Expressions in the three parts of listops."""
    seed: int = 0
    """Of the draws."""


@dataclass(frozen=True, kw_only=True)
class SpringConfig:
    """A spring-mass-damper: motion, stability, feedback, and what a record of its motion says of it."""

    m: float = 1.0
    """Mass, in kg."""
    c: float = 0.4
    """Damping, in N s / m."""
    k: float = 4.0
    """Stiffness, in N / m."""
    seconds: float = 15.0
    """How long to watch."""
    dt: float = 0.05
    """Step, in s."""
    effort: float = 0.5
    """Cost of the force in the optimal regulator, where position and velocity cost 1."""
    pole_speed: float = 2.0
    """The chosen poles are at minus this, and minus one and a half times this, per second."""
    noise: float = 0.05
    """Of the record that m, c and k are identified from, as a part of the motion's standard deviation."""
    seed: int = 0
    """Of the record."""
    output: str = "runs/spring"
    """Folder of spring.png."""


@dataclass(frozen=True, kw_only=True)
class KalmanConfig:
    """A vehicle that is seen now and then: Kalman filter and smoother, sequential, parallel and by dense algebra."""

    steps: int = 200
    """Steps."""
    dt: float = 0.1
    """Their length, in s."""
    push: float = 1.0
    """Strength of the random acceleration."""
    noise: float = 0.5
    """Standard deviation of a measurement, in m."""
    missing: float = 0.3
    """Part of the measurements that is missing, and half of that again in one stretch."""
    seed: int = 0
    """Of the motion."""
    output: str = "runs/kalman"
    """Folder of kalman.png."""
