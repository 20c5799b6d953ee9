"""Named configurations. Each states its cost on two CPU cores and the score to expect (MSE / MAE, standardised)."""

from .config import TrainConfig


def linear_free() -> TrainConfig:
    """LinearSSM with unlimited memory. ETTh1, 96 steps, all 2,785 windows: 0.346 / 0.378 in seconds."""
    return TrainConfig(model="linear_ssm", context_length="free")


def linear_96() -> TrainConfig:
    """LinearSSM that sees the last 96 values only. ETTh1, 96 steps, all 2,785 windows: 0.366 / 0.383 in seconds."""
    return TrainConfig(model="linear_ssm", context_length=96)


def s4d_small() -> TrainConfig:
    """Bidirectional S4D on patches over LinearSSM, 336 values. ETTh1, 96 steps: 0.363 / 0.386 (seed 0), 2 minutes."""
    return TrainConfig(model="s4d", context_length=336, epochs=3, steps_per_epoch=60)


def mamba_small() -> TrainConfig:
    """Bidirectional Mamba on patches over LinearSSM, 336 values. ETTh1, 96 steps: 0.363 / 0.387 (seed 0), 2 minutes."""
    return TrainConfig(model="mamba", context_length=336, epochs=3, steps_per_epoch=60)


def s_mamba() -> TrainConfig:
    """S-Mamba alone with its published settings of ETTh1, 96 values (0.386 / 0.405 in its paper); minutes."""
    return TrainConfig(model="s_mamba", base="none", context_length=96, lr=7e-5, loss="mse", epochs=10)


def time_machine() -> TrainConfig:
    """TimeMachine alone with its published settings of ETTh1, 96 values; an hour, four state spaces of 256."""
    return TrainConfig(
        model="time_machine", base="none", context_length=96, lr=1e-3, loss="mse", epochs=10, batch_size=512
    )


RECIPES = {
    "linear_free": linear_free,
    "linear_96": linear_96,
    "s4d_small": s4d_small,
    "mamba_small": mamba_small,
    "s_mamba": s_mamba,
    "time_machine": time_machine,
}
