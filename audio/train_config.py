"""What `python -m audio.train` can be told. Plain dataclasses: importing this file imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from .config import QuantizerKind, SaShiMiConfig
from .presets import preset


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which recordings, and how they become levels."""

    layout: Literal["auto", "fsdd", "sc09", "youtubemix", "beethoven", "folder"] = "auto"
    """How the folder is laid out, which decides its parts; `auto` knows FSDD and Speech Commands by their names."""
    leave_out: str | None = None
    """A speaker whose recordings, all and only they, are the test part."""
    sample_rate: int | None = None
    """In Hz; recordings of another rate are resampled. None keeps the rate of the first recording."""
    normalize: bool = True
    """Scale every recording so that its largest sample is 1. Bits with and without it are not comparable."""
    quantizer: QuantizerKind = "mu-law"
    """Spacing of the levels."""
    bits: int = 8
    """log2 of the number of levels."""
    condition: Literal["nothing", "label", "speaker", "both"] = "nothing"
    """What the model is told of a recording."""
    hide_labels: float = 0.0
    """Share of the training recordings whose labels are hidden, so that the model can do without them too."""
    chunk_seconds: float = 4.0
    """Longest piece that is trained on at once; shorter recordings are taken whole."""
    carry: bool = False
    """Go through the recordings in order, and start each piece from the state that the one before left behind."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights are learned."""

    lr: float = 4e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of the parameters that want it."""
    schedule: Literal["cosine", "plateau"] = "cosine"
    """Half a cosine to zero; or a fifth of the rate after 20 epochs without a better validation score."""
    warmup: float = 0.02
    """Share of the steps in which the rate rises (cosine)."""
    smooth_start: bool = True
    """Start embedding and head as smooth functions of the level; false starts them at random, as the papers do."""
    clip: float | None = 1.0
    """Largest norm of the gradient of the bits a sample; null for any."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train SaShiMi on recordings and score it, in bits a sample, beside counted and linear baselines."""

    data: str = ""
    """Folder of WAV, FLAC, OGG or MP3 files, a tar archive of FSDD, one recording, or `plucked`: generated melodies."""
    recordings: DataConfig = field(default_factory=DataConfig)
    """How they are read."""
    model: SaShiMiConfig = field(default_factory=lambda: preset("fsdd_small"))
    """The network; its levels and labels follow from the recordings."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """How it learns."""
    epochs: int = 10
    """Passes over the recordings."""
    batch_size: int = 8
    """Pieces a batch."""
    steps_per_epoch: int | None = None
    """Batches an epoch; None is every piece once."""
    patience: int | None = None
    """Epochs without a better validation score before the run ends."""
    save_every: int | None = None
    """Also keep a checkpoint every so many batches, for machines that may vanish; None: once an epoch."""
    samples: int = 2
    """Clips drawn and written after each epoch; 0 for none."""
    sample_seconds: float = 0.5
    """Length of these."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    devices: int | Literal["auto"] = 1
    """Devices to train on."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic of the training steps."""
    seed: int = 0
    """Seed of the weights, the order of the pieces and the dropout."""
    output: str = "runs"
    """Folder that gets the run folder."""
    resume: str | None = None
    """A run folder: read its config.yaml and go on where it stopped; other options given beside it win."""
