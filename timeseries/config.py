"""What `python -m timeseries.train` can be told. Plain dataclasses: importing this file imports no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

ModelName = Literal["linear_ssm", "s4d", "mamba", "s_mamba", "time_machine", "simba"]


@dataclass(frozen=True, kw_only=True)
class LinearSSMConfig:
    """The fixed-pole state-space model with a closed-form read-out."""

    time_constants: tuple[float, ...] | None = None
    """Memory of the poles, in steps; None derives them from the step (2 hours to a month for hourly data)."""
    daily_harmonics: int = 12
    """Harmonics of the first seasonal period (a day, for data finer than a day); each gets a pole a time constant."""
    weekly_harmonics: int = 3
    """The same for the second seasonal period (a week, for data finer than a day)."""
    ridge: tuple[float, ...] | None = None
    """Ridge strengths tried on the validation part, relative to the features' variance; None is a half-decade grid."""
    folds: int = 4
    """Stretches of the training part that choose the ridge strength together with the validation part, by squared error
    of forecasts that have not seen them; 0 leaves the choice to the validation part and `select`."""
    select: Literal["mae", "mse"] = "mae"
    """Validation score that chooses the strength without folds, and whether a cycle and covariates are taken. The
    absolute error is less swayed by a few wild days."""
    median: bool = True
    """Try a read-out of least absolute errors too, by gradient from the ridge solution."""
    own: bool = True
    """Try one more that each series has for itself and that moves with the hour, from that of least absolute errors;
    for at most 32 series. The mean of those read-outs is taken that is best on the validation part (timeseries.train).
    """
    mean_by: Literal["both", "mae", "mse"] = "both"
    """What is best there; both is the product of squared and absolute error, as tables show the two."""


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """The gradient-trained forecaster: a residual on top of LinearSSM, read from patches of the standardised past."""

    patch_length: int = 16
    """Steps in a patch."""
    stride: int = 8
    """Steps from one patch to the next."""
    d_model: int = 32
    """Width of the mixer stack."""
    num_layers: int = 2
    """Bidirectional mixer layers, each followed by a gated channel mixer."""
    d_state: int = 16
    """State size of each mixer channel."""
    dropout: float = 0.3
    """Dropout before the read-out."""


@dataclass(frozen=True, kw_only=True)
class SMambaConfig:
    """S-Mamba: a token for each channel, read in both directions. The published sizes of the ETT sets."""

    d_model: int = 256
    """Width of a token."""
    num_layers: int = 2
    """Layers, each of two scans and a small network."""
    d_ff: int = 256
    """Hidden width of the small network."""
    dropout: float = 0.1
    """Dropout of tokens and in the small network."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Of the small network."""


@dataclass(frozen=True, kw_only=True)
class TimeMachineConfig:
    """TimeMachine: four Mambas at two resolutions. The published sizes of ETTh1."""

    n1: int = 512
    """Numbers that a window becomes at the finer resolution."""
    n2: int = 128
    """The same at the coarser one."""
    dropout: float = 0.7
    """Dropout after both maps."""
    channels: Literal["apart", "together"] = "apart"
    """apart: each channel of the data by itself. together: the channels are the tokens of all four scans."""


@dataclass(frozen=True, kw_only=True)
class SimbaConfig:
    """SiMBA: Mamba over patches, EinFFT across patches and channels."""

    patch_length: int = 16
    """Steps in a patch."""
    stride: int = 8
    """Steps from one patch to the next."""
    d_model: int = 64
    """Width of the blocks."""
    num_layers: int = 2
    """Blocks."""
    blocks: int = 4
    """Blocks of channels in EinFFT, a divisor of d_model."""
    einfft_std: float = 0.1
    """Standard deviation of EinFFT's initial weights; the published 0.02 is for hundreds of channels."""
    dropout: float = 0.2
    """Dropout on every branch and before the read-out."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """The gradient-trained forecaster that reads one value after the other: a residual on top of LinearSSM."""

    d_model: int = 32
    """Width of the mixer stack."""
    num_layers: int = 2
    """Causal mixer layers, each followed by a gated channel mixer."""
    dropout: float = 0.1
    """Dropout in the stack and before the read-out."""
    origins: int = 32
    """Forecasts that one training window is asked for, after each of its last steps."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a GluonTS estimator is fitted: what is held out, and the part that has no closed form."""

    epochs: int = 10
    """Passes over the training windows."""
    steps_per_epoch: int = 50
    """Batches an epoch."""
    batch_size: int = 32
    """Windows a batch."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; it falls to zero along a half cosine."""
    weight_decay: float = 1e-2
    """Weight decay of the parameters that want it."""
    patience: int | None = 3
    """Epochs without a better validation loss before the training ends; None for never."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    validation_share: float = 0.2
    """Last part of every series that chooses and calibrates, where no validation data are given."""
    memory: int = 2000
    """Errors of the latest forecasts, a step ahead, that the conformal intervals of a series are made of."""
    gain: float = 0.0
    """How fast the widths of conformal intervals follow what they have covered, in horizons; 3 for long horizons, where
    the latest errors are too few to go by; 0 for quantiles of the latest errors. Reads the whole history."""
    seed: int = 0
    """Seed of the weights, the order of the windows and the dropout."""

    def __post_init__(self):
        if not 0 < self.validation_share < 1 or self.memory < 1 or not 0 <= self.gain < float("inf"):
            raise ValueError(
                f"FitConfig: validation_share={self.validation_share}, memory={self.memory}, gain={self.gain}, "
                "expected a share between 0 and 1, at least one error, and a gain of 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class StructuralConfig:
    """A classical structural model: trend, seasons and noise, fitted to each series by maximum likelihood."""

    trend: Literal["level", "linear", "smooth"] = "level"
    """level: a random walk. linear: with a slope that is one too. smooth: only the slope is random."""
    damping: float = 1.0
    """What is left of the slope after a step; below 1 long forecasts level off."""
    seasons: tuple[int, ...] = ()
    """Seasonal periods, in steps, each at least 2."""
    harmonics: int | None = None
    """Harmonics of each season; None allows any pattern, with one state fewer than the period."""

    def __post_init__(self):
        if any(period < 2 for period in self.seasons):
            raise ValueError(f"StructuralConfig: seasons={self.seasons}, expected periods of at least 2 steps")
        if not 0 < self.damping <= 1:
            raise ValueError(f"StructuralConfig: damping={self.damping}, expected above 0 and at most 1")
        if self.harmonics is not None and self.harmonics < 1:
            raise ValueError(f"StructuralConfig: harmonics={self.harmonics}, expected at least 1, or None")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a forecaster on a CSV file and score it on the held-out part beside the naive forecasts."""

    data: str = ""
    """CSV file (.csv, .csv.gz) with a header, a date column and one column a series; empty cells are missing values."""
    prediction_length: int = 96
    """Steps to forecast."""
    context_length: int | Literal["free"] | None = None
    """Past steps a forecast may use: a number, or `free` for everything since the first row (linear_ssm only).
    Left out, it is `free` for linear_ssm and 336 for the others."""
    model: ModelName = "linear_ssm"
    """linear_ssm is fitted in closed form, in seconds; the others are networks that are trained by gradient."""
    base: Literal["linear_ssm", "none"] = "linear_ssm"
    """What a network is added to: linear_ssm, from which it then starts; or none, the network as published, which sees
    the series themselves, without a cycle taken off."""
    columns: tuple[str, ...] | None = None
    """Value columns to use; None takes all of them that are no covariates."""
    known: tuple[str, ...] = ()
    """Columns that are known for the future, such as a temperature forecast; they are not forecast themselves."""
    past: tuple[str, ...] = ()
    """Columns of which only the past is known, for networks to read; they are not forecast."""
    cycle: tuple[int, ...] = (24,)
    """Harmonics of each season, shortest first, of a learned cycle that is taken off every series if that helps on the
    validation part; [] or 0 for none."""
    split: str = "auto"
    """Train/validation/test part: `70/10/20` are percent, other sums are months of 30 days (`12/4/4`);
    `auto` is 12/4/4 for the ETT files, recognised by columns and step, and 70/10/20 for any other."""
    linear: LinearSSMConfig = field(default_factory=LinearSSMConfig)
    """Options of linear_ssm, and of the base of networks."""
    patch: PatchConfig = field(default_factory=PatchConfig)
    """Options of s4d and mamba."""
    s_mamba: SMambaConfig = field(default_factory=SMambaConfig)
    """Options of s_mamba."""
    time_machine: TimeMachineConfig = field(default_factory=TimeMachineConfig)
    """Options of time_machine."""
    simba: SimbaConfig = field(default_factory=SimbaConfig)
    """Options of simba."""
    loss: Literal["mae", "mse", "huber"] = "mae"
    """Training loss of networks, on standardised values."""
    epochs: int = 10
    """Passes over the training windows (networks)."""
    batch_size: int = 32
    """Windows a batch; every window brings all its columns (networks)."""
    lr: float = 3e-5
    """Peak learning rate of AdamW; it falls to zero along a half cosine (networks)."""
    weight_decay: float = 1e-2
    """Weight decay of the parameters that want it (networks)."""
    patience: int = 3
    """Epochs without a better validation score before the run ends (networks)."""
    steps_per_epoch: int | None = None
    """Batches an epoch; None is every training window once (networks)."""
    save_every: int | None = None
    """Also keep a checkpoint every so many batches, for machines that may vanish; None: once an epoch (networks)."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    devices: int | Literal["auto"] = 1
    """Devices to train on."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic of the training steps."""
    num_workers: int = 0
    """Processes that load data."""
    seed: int = 0
    """Seed of the weights, the order of the windows and the dropout."""
    output: str = "runs"
    """Folder that gets the run folder."""
    resume: str | None = None
    """A run folder: read its config.yaml and go on where it stopped; other options given beside it win."""


@dataclass(frozen=True, kw_only=True)
class LtsfConfig:
    """Make the long-term-forecasting tables: MSE and MAE on every test window, beside naive and ridge forecasts."""

    data_dir: str = ""
    """Folder with the CSV files of the literature: ETTh1.csv (or .csv.gz), exchange_rate.csv (or .txt), weather.csv"""
    output: str = "runs/ltsf"
    """Folder of the tables; a run that was stopped goes on there."""
    datasets: tuple[str, ...] | None = None
    """Which data sets; None takes those whose files are there."""
    lookbacks: tuple[Literal["short", "free"], ...] = ("short", "free")
    """short: the 96 values (36 for ILI) that papers fix. free: everything since the first row, or 336 values."""
    horizons: tuple[int, ...] | None = None
    """Steps to forecast; None takes the four of each data set."""
    models: tuple[str, ...] = ("linear_ssm",)
    """As --model of timeseries.train, e.g. [linear_ssm, s_mamba]; s_mamba-alone is the network without linear_ssm."""
    known: tuple[str, ...] = ()
    """Columns that are known for the future, as of timeseries.train; all models of the table forecast the others."""
    past: tuple[str, ...] = ()
    """Columns of the past alone; they are not forecast either."""
    seeds: int = 3
    """Runs of each model that has something random in it."""
    train: dict[str, Any] = field(default_factory=dict)
    """Further options of timeseries.train for the models, e.g. {epochs: 3, s_mamba: {d_model: 128}}."""
