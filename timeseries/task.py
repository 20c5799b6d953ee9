"""The forecasting task: what a training step and a validation step of a window forecaster are."""

from typing import Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ssmcore.engine import cosine_schedule, make_optimizer

LOSSES = {"mae": F.l1_loss, "mse": F.mse_loss, "huber": F.huber_loss}


class Windows(Dataset):
    """(past, inputs, future) of all series around one origin: shapes (c, t), (k, t), (c, h), NaN where missing.

    Args:
        values: All series in standard units, float32, shape (c, rows).
        inputs: Covariates, float32, shape (rows, k).
        origins: Last rows seen.
        context_length: t.
        prediction_length: h.
    """

    def __init__(self, values: Tensor, inputs: Tensor, origins: range, context_length: int, prediction_length: int):
        self.values, self.inputs, self.origins = values, inputs, origins
        self.context_length, self.prediction_length = context_length, prediction_length

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        now = self.origins[index] + 1
        seen = slice(now - self.context_length, now)
        return self.values[:, seen], self.inputs[seen].T, self.values[:, now : now + self.prediction_length]


class ForecastTask(pl.LightningModule):
    """Train `model(past, inputs) -> future` on windows; log val_mse and val_mae over all observed values.

    Args:
        model: (b, c, t) and (b, k, t) to (b, c, h).
        loss: Name of the loss on the observed values.
        lr: Peak learning rate.
        weight_decay: Of the parameters that decay.
        steps: Optimiser steps of the whole run, for the schedule.
    """

    def __init__(
        self, model: nn.Module, loss: Literal["mae", "mse", "huber"], lr: float, weight_decay: float, steps: int
    ):
        super().__init__()
        self.model, self.loss = model, LOSSES[loss]
        self.lr, self.weight_decay, self.steps = lr, weight_decay, steps

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over the observed targets, shapes (b, c, t), (b, k, t) and (b, c, h)."""
        past, inputs, future = batch
        forecast, present = self.model(past, inputs), ~future.isnan()
        # Where a target is missing the forecast stands in for it: no loss, no gradient, no data-dependent shape.
        error = self.loss(forecast, torch.where(present, future, forecast.detach()), reduction="sum")
        return error / present.sum().clamp_min(1)

    def on_validation_epoch_start(self) -> None:
        """Sums over the part, so that the last, smaller batch weighs no more than it should."""
        self.sums = torch.zeros(3, dtype=torch.float64)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Add up squared and absolute errors."""
        past, inputs, future = batch
        present = ~future.isnan()
        error = torch.where(present, self.model(past, inputs) - future, 0.0)
        self.sums += torch.stack([error.square().sum(), error.abs().sum(), present.sum()]).double().cpu()

    def on_validation_epoch_end(self) -> None:
        """Log the means."""
        sums = self.sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device).float(), reduce_op="sum").cpu()
        self.log_dict({"val_mse": sums[0] / sums[2].clamp_min(1), "val_mae": sums[1] / sums[2].clamp_min(1)})

    def configure_optimizers(self) -> dict:
        """AdamW by what the modules ask for, half a cosine."""
        optimizer = make_optimizer(self.model, self.lr, self.weight_decay)
        schedule = cosine_schedule(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class NetworkTask(pl.LightningModule):
    """Train a Network, which has its own loss, on pairs of windows and futures; log val_loss.

    Args:
        model: `loss(window, future)` is a scalar.
        lr: Peak learning rate.
        weight_decay: Of the parameters that decay.
        steps: Optimiser steps of the whole run, for the schedule.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, steps: int):
        super().__init__()
        self.model, self.lr, self.weight_decay, self.steps = model, lr, weight_decay, steps

    def transfer_batch_to_device(self, batch: tuple, device: torch.device, dataloader_idx: int) -> tuple:
        """A window is no plain tensor; shapes as before."""
        return tuple(part.to(device) for part in batch)

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        """The network's loss."""
        return self.model.loss(*batch)

    def validation_step(self, batch: tuple, batch_idx: int) -> None:
        """The same without a gradient, averaged over the part."""
        self.log("val_loss", self.model.loss(*batch), batch_size=len(batch[1]), on_epoch=True)

    configure_optimizers = ForecastTask.configure_optimizers
