"""One byte model: trained, resumed, measured; and written with."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ssmcore.engine import RunSettings, cli, load_weights, make_loader
from ssmcore.engine.folder import BEST_FILE

from .. import running
from .config import BytesConfig, sizes
from .data import Windows, read
from .model import ByteModel, bits_per_byte
from .task import ByteTask


@dataclass(frozen=True, kw_only=True)
class BytesResult:
    """How a run ended."""

    mixer: str
    parameters: int
    """All of them; the embedding is also the answers' matrix."""
    steps: int
    train_bytes: int
    """Bytes that were learned from, repeats counted."""
    cpu_seconds: float
    """Process time of this session's training."""
    val_bits: float
    """Bits per byte, the best over the run."""
    test_bits: float
    """Of those weights, on the part that nothing was chosen by."""


def build(config: BytesConfig) -> ByteModel:
    """The model of a run. No shapes.

    Args:
        config: The run's.
    Raises:
        ValueError: A name or option is unknown.
        Unsupported: The mixer looks ahead, or has no state.
    """
    how = sizes(config)
    torch.manual_seed(config.seed)
    return ByteModel(
        how.mixer,
        config.options,
        d_model=how.d_model,
        num_layers=how.num_layers,
        channel_mixer=how.channel_mixer,
    )


def run(config: BytesConfig, silent: bool = False) -> BytesResult:
    """Train, or go on, and measure.

    Args:
        config: What to do.
        silent: Print nothing.
    Returns:
        The result, which also lies in the run folder. No shapes.
    Raises:
        ValueError: A name, an option or the text is not what it should be.
        Unsupported: The mixer looks ahead, or has no state.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
        NonFiniteError: NaN or infinity came up.
    """
    how = sizes(config)
    running.check_sizes("bytes", how, "d_model", "num_layers", "length", "batch_size", "steps")
    running.check_sizes("bytes", config, "steps_per_epoch", "measure_bytes", "max_bytes")
    model = build(config)
    corpus = read(config.data, how.length, config.max_bytes)
    folder = running.opened(config, f"bytes-{how.mixer}")
    epochs = -(-how.steps // config.steps_per_epoch)
    per_epoch = min(config.steps_per_epoch, how.steps)
    windows = Windows(corpus.train, how.length, per_epoch * how.batch_size, config.seed)
    loader = make_loader(windows, how.batch_size, seed=config.seed, keyed=True)
    once = make_loader(Windows(corpus.val, 1, 1, 0), 1, seed=0, shuffle=False)
    task = ByteTask(model, how, corpus.val[: config.measure_bytes])
    plan = RunSettings(
        epochs=epochs,
        seed=config.seed,
        monitor="val_bits",
        accelerator=config.accelerator,
        precision=config.precision,
        silent=silent,
    )
    done = running.trained(task, loader, once, plan, folder)
    steps = done.outcome.epochs * per_epoch
    result = BytesResult(
        mixer=how.mixer,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=steps,
        train_bytes=steps * how.batch_size * how.length,
        cpu_seconds=done.cpu_seconds,
        val_bits=round(done.outcome.best_score, 4),
        test_bits=round(bits_per_byte(model, corpus.test[: config.measure_bytes]), 4),
    )
    return running.kept(folder, result)


def trained(folder: Path) -> ByteModel:
    """The best weights of a run, in evaluation mode. No shapes.

    Args:
        folder: Of the run.
    Raises:
        ValueError: It holds none.
    """
    config_file, weights_file = folder / cli.CONFIG_FILE, folder / BEST_FILE
    if not (config_file.is_file() and weights_file.is_file()):
        raise ValueError(f"generate: {folder} is no run folder of a byte model: no {BEST_FILE} or {cli.CONFIG_FILE}")
    config = cli.parse(BytesConfig, ["--config", str(config_file)], prog="generate")
    model = build(config)
    weights, _ = load_weights(weights_file)
    model.load_state_dict(weights)
    return model.eval()
