"""What the byte-model commands can be told. Importing this file imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ssmcore.registry import resolve


@dataclass(frozen=True, kw_only=True)
class BytesConfig:
    """Train a language model on the bytes of text files, and measure bits per byte on bytes it has not seen."""

    data: tuple[str, ...] = ()
    """Files and folders of text: plain, .gz, .jsonl (the field text), .jsonl.gz, .jsonl.zst. Folders with parts of
    their own (WikiText, the Pile) keep them; from others the last tenth is held out."""
    preset: str = "small"
    """Sizes: small, or mambabyte_353m and mambabyte_972m as published."""
    mixer: str | None = None
    """Registered causal mixer with a state; this and what follows: none takes the preset's."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the mixer."""
    channel_mixer: str | None = None
    """Also a registered channel mixer in every layer, e.g. glu."""
    d_model: int | None = None
    """Width."""
    num_layers: int | None = None
    """Layers."""
    length: int | None = None
    """Bytes of a training sequence."""
    batch_size: int | None = None
    """Sequences a batch."""
    steps: int | None = None
    """Batches in all."""
    lr: float | None = None
    """Largest learning rate; it rises for a twentieth of the steps, then falls along a cosine."""
    weight_decay: float | None = None
    """Of the parameters that decay."""
    steps_per_epoch: int = 100
    """Batches between two measurements of bits per byte."""
    measure_bytes: int = 65536
    """Bytes of the held-out part that such a measurement reads; the last one reads twice the half of it that is new."""
    max_bytes: int = 4_000_000_000
    """Bytes of a part that are kept in memory at most."""
    seed: int = 0
    """Of the weights and the places that sequences are taken from."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    precision: str = "32-true"
    """Lightning's precision."""
    output: str = "runs/bytes"
    """Folder in which the run folder is made."""
    resume: str | None = None
    """Run folder of an interrupted run, to go on with."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Go on with a text, byte by byte; memory does not grow with the length."""

    run: tuple[str, ...] = ()
    """Run folder of a trained byte model."""
    prompt: str = "\n"
    """Text to go on with."""
    count: int = 400
    """Bytes to write."""
    temperature: float = 0.8
    """0 takes the likeliest byte; 1 draws as the model says."""
    top_p: float = 1.0
    """Draw among the likeliest bytes that have this probability together."""
    seed: int = 0
    """Of the draws."""


@dataclass(frozen=True, kw_only=True)
class GlueConfig:
    """Fine-tune a byte model on a task of GLUE, from local files, and score its dev part."""

    task: tuple[str, ...] = ()
    """CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE or WNLI."""
    data_dir: str | None = None
    """Folder of the task's files, as the GLUE download makes it: train.tsv, dev.tsv."""
    start: str | None = None
    """Run folder of `python -m apps.lab bytes` whose weights to start from; without, new ones."""
    mixer: str = "mamba"
    """Mixer of a new model; this and the next two do not count with --start."""
    d_model: int = 64
    """Its width."""
    num_layers: int = 4
    """Its layers."""
    length: int = 512
    """Bytes of a sentence or pair at most."""
    batch_size: int = 16
    """Items a batch."""
    epochs: int = 5
    """Passes over the training part."""
    lr: float = 1e-3
    """Largest learning rate; it rises for a tenth of the steps, then falls along a cosine."""
    weight_decay: float = 0.01
    """Of the parameters that decay."""
    seed: int = 0
    """Of the weights and the order."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    output: str = "runs/glue"
    """Folder in which the run folder is made."""
    resume: str | None = None
    """Run folder of an interrupted run, to go on with."""


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """Train the same model in four sizes, and fit a power law of the loss in the training's operations."""

    data: tuple[str, ...] = ()
    """As `python -m apps.lab bytes` takes it."""
    sizes: tuple[tuple[int, int], ...] = ((2, 32), (4, 48), (4, 64), (6, 96))
    """Layers and width of each; the published ones are (24, 768), (48, 1024), (48, 1536), (48, 2048)."""
    bytes_per_parameter: float = 20.0
    """Training bytes for each parameter of a size."""
    train: dict[str, Any] = field(default_factory=dict)
    """Further options of `python -m apps.lab bytes` for every run, e.g. {mixer: mamba2, length: 256}."""
    output: str = "runs/scaling"
    """Folder of the fit; a run that was stopped goes on there."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A model and its training."""

    mixer: str = "mamba"
    """Registered name."""
    channel_mixer: str | None = None
    """Behind the mixer in each layer."""
    d_model: int = 64
    """Width."""
    num_layers: int = 4
    """Layers."""
    length: int = 256
    """Bytes of a training sequence."""
    batch_size: int = 8
    """Sequences a batch."""
    steps: int = 1000
    """Batches in all."""
    lr: float = 3e-3
    """Largest learning rate."""
    weight_decay: float = 0.1
    """Of the parameters that decay."""


# Wang et al. 2024, MambaByte, section 4: sequences of 8192 bytes, 48 a batch. The shapes give its parameter counts.
PRESETS = {
    "small": Sizes(),
    "mambabyte_353m": Sizes(d_model=1024, num_layers=53, length=8192, batch_size=48, steps=80_000, lr=4e-4),
    "mambabyte_972m": Sizes(d_model=1792, num_layers=48, length=8192, batch_size=48, steps=80_000, lr=4e-4),
}
"""Name -> sizes."""


def sizes(config: BytesConfig) -> Sizes:
    """The preset's sizes, and what the config says otherwise.

    Args:
        config: The run's. No shapes.
    Raises:
        ValueError: No such preset.
    """
    found: Mapping[str, Any] = {f.name: getattr(config, f.name) for f in fields(Sizes)}
    preset = resolve(config.preset, PRESETS, "preset")
    return replace(preset, **{key: value for key, value in found.items() if value is not None})
