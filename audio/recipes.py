"""Named configurations. The published ones carry the papers' settings; the small ones state what they measured here."""

from dataclasses import replace

from .config import DiffWaveConfig
from .presets import preset
from .train_config import DataConfig, OptimConfig, TrainConfig

PLATEAU = OptimConfig(lr=4e-3, schedule="plateau", warmup=0.0, smooth_start=False)
MAMBA_OPTIM = OptimConfig(lr=2e-3, weight_decay=0.1, betas=(0.9, 0.95), warmup=0.1, clip=0.14, smooth_start=False)
"""The Mamba paper clips the gradient of nats at 0.1; ours is of bits."""


def sc09_sashimi() -> TrainConfig:
    """SaShiMi on SC09, 1.1M steps of 32 clips on a GPU. Published: 1.891 bits (4.1M, as here); 1.873 as a U-Net."""
    data = DataConfig(layout="sc09", sample_rate=16_000, chunk_seconds=1.0)
    optim = replace(PLATEAU, lr=1e-3)
    return TrainConfig(recordings=data, model=preset("sashimi_8"), optim=optim, batch_size=32, epochs=1_140)


def sc09_mamba() -> TrainConfig:
    """The Mamba U-Net on SC09, 200K steps of 16 clips on a GPU. Published: 1.852 bits (6.1M)."""
    data = DataConfig(layout="sc09", sample_rate=16_000, chunk_seconds=1.0)
    return TrainConfig(recordings=data, model=preset("mamba_sc09"), optim=MAMBA_OPTIM, batch_size=16, epochs=104)


def sc09_mamba_large() -> TrainConfig:
    """The large Mamba U-Net on SC09, settings as `sc09_mamba`. Published: 1.860 bits (24.3M), and the best samples."""
    return replace(sc09_mamba(), model=preset("mamba_sc09_large"))


def youtubemix_sashimi() -> TrainConfig:
    """SaShiMi on YouTubeMix, pieces of 8 s, 600K steps on a GPU. Published: 1.294 bits."""
    data = DataConfig(layout="youtubemix", sample_rate=16_000, chunk_seconds=8.192)
    return TrainConfig(recordings=data, model=preset("sashimi_8"), optim=PLATEAU, batch_size=1, epochs=386)


def youtubemix_mamba() -> TrainConfig:
    """The Mamba U-Net with pools of 16 on YouTubeMix, pieces of a minute; 200K steps on a GPU. 3.5M published."""
    data = DataConfig(layout="youtubemix", sample_rate=16_000, chunk_seconds=59.904)
    return TrainConfig(recordings=data, model=preset("mamba_youtubemix"), optim=MAMBA_OPTIM, batch_size=1, epochs=900)


def beethoven_sashimi() -> TrainConfig:
    """SaShiMi on Beethoven, linear levels, pieces of 8 s, 1M steps on a GPU. Published: 0.946 bits."""
    data = DataConfig(layout="beethoven", sample_rate=16_000, quantizer="linear", chunk_seconds=8.0)
    return TrainConfig(recordings=data, model=preset("sashimi_8"), optim=PLATEAU, batch_size=1, epochs=250)


def fsdd_small() -> TrainConfig:
    """Spoken digits at 8 kHz, told digit and speaker: half an hour on two busy CPU cores, below 6 bits in minutes."""
    data = DataConfig(layout="fsdd", condition="both", hide_labels=0.25, chunk_seconds=2.5)
    return TrainConfig(recordings=data, model=preset("fsdd_small"), epochs=4, batch_size=4, steps_per_epoch=320)


def fsdd_quick() -> TrainConfig:
    """`fsdd_small` for a few minutes: a quarter of the steps."""
    return replace(fsdd_small(), epochs=2, steps_per_epoch=200)


def plucked() -> TrainConfig:
    """Generated melodies of plucked strings in three registers: no data needed, about a minute on two CPU cores."""
    data = DataConfig(condition="label", chunk_seconds=0.5)
    model, optim = preset("fsdd_small", layers=1), OptimConfig(lr=6e-3)
    return TrainConfig(
        data="plucked", recordings=data, model=model, optim=optim, epochs=6, batch_size=2, steps_per_epoch=150
    )


def diffwave_sc09() -> TrainConfig:
    """DiffWave on a SaShiMi U-Net, SC09, 500K steps of 16 clips on GPUs; 23.0M. Published (800K steps): FID 1.42."""
    data = DataConfig(layout="sc09", sample_rate=16_000, normalize=False, chunk_seconds=1.0)
    optim = OptimConfig(lr=2e-4, schedule="constant", clip=None)
    network = DiffWaveConfig(d_model=128)
    return TrainConfig(
        recordings=data, network="diffwave", diffwave=network, optim=optim, batch_size=16, epochs=259, samples=4
    )


def diffwave_plucked() -> TrainConfig:
    """DiffWave on generated melodies: no data needed, 480 steps, about three minutes of processor time."""
    data = DataConfig(condition="label", hide_labels=0.25, chunk_seconds=0.25)
    network = DiffWaveConfig(d_model=16, layers=1, d_state=16, d_step=64, steps=50, beta_max=0.05)
    return TrainConfig(
        data="plucked", recordings=data, network="diffwave", diffwave=network, optim=OptimConfig(lr=3e-3), epochs=4,
        batch_size=4,
    )  # fmt: skip


RECIPES = {
    "plucked": plucked,
    "fsdd_small": fsdd_small,
    "fsdd_quick": fsdd_quick,
    "sc09_sashimi": sc09_sashimi,
    "sc09_mamba": sc09_mamba,
    "sc09_mamba_large": sc09_mamba_large,
    "youtubemix_sashimi": youtubemix_sashimi,
    "youtubemix_mamba": youtubemix_mamba,
    "beethoven_sashimi": beethoven_sashimi,
    "diffwave_sc09": diffwave_sc09,
    "diffwave_plucked": diffwave_plucked,
}
