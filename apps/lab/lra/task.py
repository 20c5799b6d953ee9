"""The training task of Long Range Arena: cross entropy of one answer a sequence."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F

from ssmcore.engine import make_optimizer
from ssmcore.engine.optim import cosine_schedule

from .config import Settings
from .model import Batch, LraModel


class LraTask(pl.LightningModule):
    """Cross entropy; logs val_accuracy.

    Args:
        model: See model.py.
        how: Learning rate, decay, warm-up.
        steps: Optimiser steps in all.
    """

    def __init__(self, model: LraModel, how: Settings, steps: int):
        super().__init__()
        self.model, self.how, self.steps = model, how, steps

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss of a batch."""
        x, mask, labels = batch
        return F.cross_entropy(self.model(x, mask), labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy."""
        x, mask, labels = batch
        answers = self.model(x, mask)
        right = (answers.argmax(-1) == labels).float().mean()
        self.log_dict({"val_loss": F.cross_entropy(answers, labels), "val_accuracy": right}, batch_size=len(labels))

    def configure_optimizers(self):
        """AdamW by what the modules ask for; a warm-up and a cosine, by steps."""
        optimizer = make_optimizer(self.model, self.how.lr, self.how.weight_decay)
        schedule = cosine_schedule(optimizer, self.steps, round(self.how.warmup * self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
