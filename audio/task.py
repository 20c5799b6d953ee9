"""What a training step and a validation step are: of predicting samples (SaShiMi), of finding the noise (DiffWave)."""

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ssmcore.engine import cosine_schedule, make_optimizer
from ssmcore.state import State, detach

from .chunks import Batch, Windows
from .likelihood import continue_rows, score_rows
from .models.sashimi import UNKNOWN
from .train_config import OptimConfig


class SoundTask(pl.LightningModule):
    """What both have in common: hidden labels, sums over the validation part, clips after each epoch, the optimiser.

    Args:
        model: SaShiMi or DiffWave.
        config: Learning rate, schedule, decay.
        steps: Optimiser steps of the whole run, for the schedule.
        hide_labels: Share of the rows whose labels are hidden in training.
        after_epoch: Called with the model and the epoch after each validation; it must not touch the random state.
    """

    monitor: str

    def __init__(
        self,
        model: nn.Module,
        config: OptimConfig,
        steps: int,
        hide_labels: float = 0.0,
        after_epoch: Callable[[nn.Module, int], None] | None = None,
    ):
        super().__init__()
        self.model, self.config, self.steps = model, config, steps
        self.hide_labels, self.after_epoch = hide_labels, after_epoch

    def hide(self, label: Tensor) -> Tensor:
        """Labels (b, k), those of some rows hidden."""
        if not self.hide_labels:
            return label
        return label.masked_fill(torch.rand(len(label), 1, device=label.device) < self.hide_labels, UNKNOWN)

    def on_validation_epoch_start(self) -> None:
        """Sums over the part."""
        self.sums = torch.zeros(2, dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        """Log the mean, and let the caller draw samples."""
        sums = self.sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device).float(), reduce_op="sum").cpu()
        self.log(self.monitor, (sums[0] / sums[1].clamp_min(1)).float())
        if self.after_epoch and self.trainer.is_global_zero:
            self.after_epoch(self.model, self.current_epoch)

    def configure_optimizers(self) -> Any:
        """AdamW by what the modules ask for."""
        optimizer = make_optimizer(self.model, self.config.lr, self.config.weight_decay, self.config.betas)
        if self.config.schedule == "constant":
            return optimizer
        if self.config.schedule == "plateau":
            plateau = ReduceLROnPlateau(optimizer, factor=0.2, patience=20)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": self.monitor}}
        schedule = cosine_schedule(optimizer, self.steps, warmup=round(self.config.warmup * self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class SampleTask(SoundTask):
    """Train `model(inputs, state, label=) -> logits, state`; log the validation part's val_bits, in bits a sample."""

    monitor = "val_bits"
    carried: State | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean bits a sample over a batch of rows (b, l)."""
        logits, state = continue_rows(self.model, batch._replace(label=self.hide(batch.label)), self.carried)
        self.carried = None if state is None else detach(state)
        return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()) / math.log(2)

    def on_validation_epoch_start(self) -> None:
        """No state before the first batch of the part."""
        super().on_validation_epoch_start()
        self.valid_state: State | None = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up bits; rows that are not fresh go on from the batch before."""
        bits, count, self.valid_state = score_rows(self.model, batch, self.valid_state)
        self.sums += torch.tensor([bits, count], dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        """Log the mean."""
        self.valid_state = None
        super().on_validation_epoch_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The carried state belongs to the run."""
        checkpoint["carried"] = self.carried

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """From `on_save_checkpoint`."""
        self.carried = checkpoint["carried"]


class NoiseTask(SoundTask):
    """Train DiffWave's `loss(wave, label)`; log the validation part's val_noise, the squared error of the noise."""

    monitor = "val_noise"

    def training_step(self, batch: Windows, batch_idx: int) -> Tensor:
        """Mean squared error of the noise in windows (b, t), each at a noise level of its own."""
        return self.model.loss(batch.wave, self.hide(batch.label))

    def validation_step(self, batch: Windows, batch_idx: int) -> None:
        """Add up errors: the same noise every time."""
        error = self.model.loss(batch.wave, batch.label, torch.Generator().manual_seed(batch_idx))
        self.sums += torch.tensor([float(error) * len(batch.wave), len(batch.wave)], dtype=torch.float64)
