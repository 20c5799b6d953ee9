"""A training run: its folder, its Trainer, and going on where it stopped.

run_dir/  config.yaml  metrics.csv  tensorboard/  best.safetensors  last.safetensors  last.ckpt  finished.json
"""

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from .callbacks import Checkpoints, EpochLine, NonFiniteGuard, Reseed
from .folder import FINISHED_FILE, STATE_FILE
from .loader import _mix
from .logger import MetricsCsv


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every domain's trainer needs to know, besides its task and its data."""

    epochs: int
    """Passes over the training loader."""
    seed: int
    """Of everything random but the weights, which the caller makes."""
    monitor: str
    """Logged metric that says which weights are best."""
    mode: Literal["min", "max"] = "min"
    """Whether a small or a large `monitor` is good."""
    patience: int | None = None
    """Epochs without a better `monitor` before the run ends; None for never."""
    save_every: int | None = None
    """Also save the state after so many batches; None for epoch ends only."""
    clip: float | None = 1.0
    """Largest norm of the gradient; None for any."""
    accumulate: int = 1
    """Batches an optimiser step."""
    accelerator: str = "auto"
    """As in Lightning."""
    devices: int | str = 1
    """As in Lightning."""
    precision: Any = "32-true"
    """As in Lightning."""
    strategy: str = "auto"
    """As in Lightning: auto, ddp, fsdp, ..."""
    num_nodes: int = 1
    """Machines."""
    sync_batchnorm: bool = False
    """Whether batch statistics are taken over all devices."""
    validate_every: int = 1
    """Epochs from one validation to the next."""
    note: dict[str, Any] = field(default_factory=dict)
    """Stored in the safetensors files, to build the model again."""
    silent: bool = False
    """Print no lines; a terminal still gets the progress bar while it lasts."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a fit ended."""

    epochs: int
    """Epochs done, over all sessions of the run."""
    best_score: float
    """Best value of the monitored metric."""
    best_epoch: int
    """Epoch of it, from 0; -1 if the metric never came."""


class _Rewind(Callback):
    """Drop logged rows that the resumed run will write again."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.forget_from(trainer.global_step)


def make_trainer(settings: RunSettings, run_dir: Path, callbacks: Sequence[Callback] = ()) -> pl.Trainer:
    """A Trainer with the house's callbacks and loggers.

    Args:
        settings: See RunSettings.
        run_dir: Everything the Trainer writes goes here.
        callbacks: More of them.
    """
    own: list[Callback] = [Reseed(settings.seed), NonFiniteGuard(), _Rewind(), EpochLine(settings.silent)]
    if settings.patience is not None:
        own.append(EarlyStopping(settings.monitor, patience=settings.patience, mode=settings.mode, check_finite=False))
    bar = sys.stderr.isatty()
    if bar:
        own.append(TQDMProgressBar(leave=False))
    own.append(Checkpoints(run_dir, settings.monitor, settings.mode, settings.save_every, settings.note))
    return pl.Trainer(
        default_root_dir=run_dir,
        max_epochs=settings.epochs,
        accelerator=settings.accelerator,
        devices=settings.devices,
        precision=settings.precision,
        strategy=settings.strategy,
        num_nodes=settings.num_nodes,
        sync_batchnorm=settings.sync_batchnorm,
        check_val_every_n_epoch=settings.validate_every,
        gradient_clip_val=settings.clip,
        accumulate_grad_batches=settings.accumulate,
        callbacks=[*callbacks, *own],
        logger=[MetricsCsv(run_dir), TensorBoardLogger(run_dir, name="tensorboard", version="")],
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # EpochSampler shares the indices out itself
    )


def fit(
    task: pl.LightningModule,
    train: Any,
    validation: Any,
    settings: RunSettings,
    run_dir: Path,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Train, or go on if run_dir holds the state of an earlier session.

    Args:
        task: Its network is the attribute `model`; that is what the safetensors files hold, unless the task says by an
            attribute `weights_prefix` that they shall hold another one (averaged weights).
        train: From `make_loader`.
        validation: Any loader, or None.
        settings: See RunSettings.
        run_dir: From `make_run_dir`.
        callbacks: More of them.
    Returns:
        How it ended; a run that had finished its epochs before returns at once.
    Raises:
        Interrupted: SIGINT or SIGTERM came; the state is saved, call again to go on.
        NonFiniteError: NaN or infinity came up.
    """
    finished = run_dir / FINISHED_FILE
    if finished.is_file():
        past = json.loads(finished.read_text())
        if past.pop("planned") >= settings.epochs:
            return Outcome(**past)
        finished.unlink()
    with _quiet():
        pl.seed_everything(_mix(settings.seed, 0) % 2**32, verbose=False)
        trainer = make_trainer(settings, run_dir, callbacks)
        last = run_dir / STATE_FILE
        trainer.fit(task, train, validation, ckpt_path=last if last.exists() else None, weights_only=True)
    saved = next(c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints))
    outcome = Outcome(epochs=trainer.current_epoch, best_score=saved.best_score, best_epoch=saved.best_epoch)
    if trainer.is_global_zero:
        finished.write_text(json.dumps({"planned": settings.epochs, **asdict(outcome)}))
    return outcome


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice about hardware and workers is not for the people who type our commands."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for module in (r"lightning\.", r"torchdata\.", r"torch\.utils\.data"):
            warnings.filterwarnings("ignore", module=module)
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
