"""What the Trainer needs to resume exactly, to stop cleanly and to refuse NaN."""

import math
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor
from tqdm import tqdm

from .errors import Interrupted, NonFiniteError
from .folder import BEST_FILE, LAST_FILE, STATE_FILE
from .loader import _mix, _rank
from .weights import save_weights


class Reseed(Callback):
    """Every training step draws its noise from (seed, step, rank), so that a resumed step equals the uninterrupted one.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """The step is counted in batches, so that accumulated batches differ too."""
        key = _mix(self.seed, trainer.current_epoch, batch_idx, _rank()[0])
        if module.device.type == "cpu":
            torch.default_generator.manual_seed(key)
        else:  # every kind of device that is there; each costs the trace of a stack where it was never used
            torch.manual_seed(key)
        np.random.seed(key % 2**32)  # noqa: NPY002
        random.seed(key)


class NonFiniteGuard(Callback):
    """Stop before the optimiser takes a step from a loss or a gradient that is not finite."""

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        """Check the loss, and find out where a bad one comes from."""
        if torch.isfinite(loss).all():
            return
        culprit = _first_bad("parameter", dict(module.named_parameters())) or self._first_bad_output(module)
        source = _first_bad("batch", self._batch)
        if culprit and source:
            culprit += f" (and {source}, from which it was computed)"
        culprit = culprit or source or "the loss"
        raise NonFiniteError(self._sentence(trainer, culprit))

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch for a post-mortem."""
        self._batch, self._batch_idx = batch, batch_idx

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        """Check the gradients; a loss scaler skips overflowing steps by itself."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if grads and not torch.nn.utils.get_total_norm(grads).isfinite():
            named = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
            raise NonFiniteError(self._sentence(trainer, _first_bad("gradient of", named) or "the gradients"))

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never write a checkpoint with a bad weight over a good one."""
        if culprit := _first_bad("parameter", dict(module.named_parameters())):
            raise NonFiniteError(self._sentence(trainer, culprit))

    def _first_bad_output(self, module: pl.LightningModule) -> str | None:
        """Run the step once more and watch the outputs go by."""
        found: list[str] = []

        def watch(name: str):
            def hook(_module: torch.nn.Module, _args: Any, output: Any) -> None:
                if not found and _first_bad("", output):
                    found.append(f"output of {name}")

            return hook

        handles = [m.register_forward_hook(watch(name)) for name, m in module.named_modules() if name]
        try:
            with torch.no_grad():
                module.training_step(self._batch, self._batch_idx)
        except Exception:  # the post-mortem must not hide the finding
            return found[0] if found else None
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else None

    @staticmethod
    def _sentence(trainer: pl.Trainer, culprit: str) -> str:
        return (
            f"training stopped at epoch {trainer.current_epoch}, step {trainer.global_step}: {culprit} holds NaN or "
            "infinity; the last good checkpoint is kept; lower the learning rate or look at the data"
        )


class Checkpoints(Checkpoint):
    """Write last.ckpt (everything, to resume), last.safetensors and best.safetensors; stop on SIGINT or SIGTERM.

    Args:
        run_dir: Where.
        monitor: Logged metric that says which weights are best.
        mode: `min` or `max`.
        every: Also save after so many batches; None for epoch ends only.
        note: Stored beside the weights, to build the model again.
    """

    def __init__(self, run_dir: Path, monitor: str, mode: str, every: int | None, note: dict[str, Any]):
        self.run_dir, self.monitor, self.mode, self.every, self.note = run_dir, monitor, mode, every, note
        self.best_score = math.inf if mode == "min" else -math.inf
        self.best_epoch = -1
        self.asked: int | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """A first signal asks to stop after the optimiser's step; a second one is obeyed at once.

        Lightning has set its own handler by now, which would end the loop in the middle of a step.
        """
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Mid-epoch saves; the epoch's last batch leaves it to the epoch's end, after the validation."""
        done, window = batch_idx + 1, trainer.accumulate_grad_batches
        # Between two optimiser steps there are gradients that no checkpoint holds.
        if done == trainer.num_training_batches or done % window:
            return
        stop = self._stop_wanted(trainer)
        if stop or (self.every and done // self.every > (done - window) // self.every):
            self._save(trainer)
        if stop:
            raise Interrupted(self.asked or signal.SIGTERM)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Compare, save, and stop if asked to."""
        score = trainer.callback_metrics.get(self.monitor)
        if score is not None and self._better(float(score)):
            self.best_score, self.best_epoch = float(score), trainer.current_epoch
            self._export(trainer, BEST_FILE)
        self._save(trainer)
        if self._stop_wanted(trainer):
            raise Interrupted(self.asked or signal.SIGTERM)

    def state_dict(self) -> dict[str, Any]:
        """Travels in last.ckpt."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From last.ckpt."""
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]

    def _better(self, score: float) -> bool:
        return score < self.best_score if self.mode == "min" else score > self.best_score

    def _ask(self, signum: int, _frame: Any) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signum
        print("\nstopping after this batch; once more to stop at once", file=sys.stderr)

    def _stop_wanted(self, trainer: pl.Trainer) -> bool:
        asked = self.asked is not None
        return asked if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(asked, all=False)

    def _save(self, trainer: pl.Trainer) -> None:
        part, last = self.run_dir / (STATE_FILE + ".part"), self.run_dir / STATE_FILE
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            if last.is_dir():  # a sharded checkpoint is a folder
                shutil.rmtree(last)
            part.replace(last)
        self._export(trainer, LAST_FILE)

    def _export(self, trainer: pl.Trainer, name: str) -> None:
        tensors = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            prefix = getattr(trainer.lightning_module, "weights_prefix", "model.")
            model = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            save_weights(self.run_dir / name, model, self.note)


class EpochLine(Callback):
    """Log the mean training loss of an epoch, also of one that was interrupted, and print one line.

    Args:
        silent: Print nothing.
    """

    def __init__(self, silent: bool = False):
        self.total, self.batches, self.silent = 0.0, 0, silent

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up here: Lightning's own means forget the part before a resume."""
        self.total += float(outputs["loss"])
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        """Travels in last.ckpt."""
        return {"total": self.total, "batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From last.ckpt."""
        self.total, self.batches = state["total"], state["batches"]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Print what was logged."""
        loss = self.total / max(1, self.batches)
        self.total, self.batches = 0.0, 0
        module.log("train_loss", loss, sync_dist=trainer.world_size > 1, logger=False)
        # Written at once: a run stopped at the end of this epoch has no later moment.
        for logger in trainer.loggers:
            logger.log_metrics({"train_loss": loss}, trainer.global_step - 1)
            logger.save()
        seconds, self._start = time.monotonic() - self._start, time.monotonic()
        if self.silent or not trainer.is_global_zero:
            return
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if not k.endswith("_step")}
        text = "  ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
        tqdm.write(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}  {seconds:.1f} s")


def _first_bad(prefix: str, value: Any, path: str = "") -> str | None:
    """Path of the first floating tensor in nested containers that holds NaN or infinity."""
    if isinstance(value, Tensor):
        inexact = value.is_floating_point() or value.is_complex()
        return f"{prefix} {path}".strip() or "value" if inexact and not value.isfinite().all() else None
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return None
    for key, item in items:
        if found := _first_bad(prefix, item, f"{path}.{key}" if path else str(key)):
            return found
    return None
