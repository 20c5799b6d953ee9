"""What `python -m audio.train` can be told. Plain dataclasses: importing this file imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from .config import DiffWaveConfig, Network, QuantizerKind, SaShiMiConfig
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
    betas: tuple[float, float] = (0.9, 0.999)
    """How much AdamW keeps of its averages of the gradient and of its square."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """Half a cosine to zero; a fifth of the rate after 20 epochs without a better validation score; or one rate."""
    warmup: float = 0.02
    """Share of the steps in which the rate rises (cosine)."""
    smooth_start: bool = True
    """Start SaShiMi's embedding and head as smooth functions of the level; false: at random, as the papers do."""
    clip: float | None = 1.0
    """Largest norm of the gradient of the loss (bits a sample, or squared error of the noise); null for any."""

    def __post_init__(self):
        if not (self.lr > 0 and self.weight_decay >= 0 and all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError(
                f"OptimConfig: lr={self.lr}, weight_decay={self.weight_decay}, betas={self.betas}, expected lr above "
                "0, weight_decay of at least 0 and both betas in [0, 1)"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train SaShiMi on recordings and score it, in bits a sample, beside counted and linear baselines.

    Or DiffWave, with --network diffwave or a recipe of its own, scored by the noise that it leaves in a recording.
    """

    data: str = ""
    """Folder of WAV, FLAC, OGG or MP3 files, a tar archive of FSDD, one recording, or `plucked`: generated melodies."""
    recordings: DataConfig = field(default_factory=DataConfig)
    """How they are read."""
    network: Network = "sashimi"
    """sashimi: one sample after another. diffwave: all samples at once, out of noise."""
    model: SaShiMiConfig = field(default_factory=lambda: preset("fsdd_small"))
    """SaShiMi's sizes; its levels and labels follow from the recordings."""
    diffwave: DiffWaveConfig = field(default_factory=DiffWaveConfig)
    """DiffWave's sizes; its labels follow from the recordings."""
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
