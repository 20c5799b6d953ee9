"""The training tasks of byte models: the next byte, and one answer of a text."""

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmcore.engine import make_optimizer
from ssmcore.engine.optim import cosine_schedule

from . import glue
from .config import Sizes
from .model import ByteModel, bits_per_byte

Batch = tuple[Tensor, Tensor, Tensor]
"""Bytes (b, l), which of them exist (b, l), answers (b,)."""


class ByteTask(pl.LightningModule):
    """Cross entropy of the next byte; logs val_bits on the head of the held-out part.

    Args:
        model: See model.py.
        how: Learning rate and decay.
        held_out: Bytes to measure on, uint8.
    """

    def __init__(self, model: ByteModel, how: Sizes, held_out: np.ndarray):
        super().__init__()
        self.model, self.how, self.held_out = model, how, held_out

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Loss of a batch, in nats per byte."""
        logits, _ = self.model(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        """Measure the held-out part as one stream; the batch only says when."""
        self.log("val_bits", bits_per_byte(self.model, self.held_out), batch_size=1)

    def configure_optimizers(self):
        """AdamW by what the modules ask for; a warm-up and a cosine."""
        optimizer = make_optimizer(self.model, self.how.lr, self.how.weight_decay, betas=(0.9, 0.95))
        schedule = cosine_schedule(optimizer, self.how.steps, self.how.steps // 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class GlueModel(nn.Module):
    """Bytes (b, l) to answers (b, classes), or (b, 1) for a number.

    Args:
        body: Its stack reads the bytes.
        classes: Kinds of answers; 0 for a number.
    """

    def __init__(self, body: ByteModel, classes: int):
        super().__init__()
        self.body, self.head = body, nn.Linear(body.embed.embedding_dim, classes or 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Answers; shapes above. Raises nothing of its own."""
        y, _ = self.body.stack(self.body.embed(x), mask=mask)
        last = mask.sum(1) - 1
        return self.head(y[torch.arange(len(y), device=y.device), last])


class GlueTask(pl.LightningModule):
    """Cross entropy or squared error; logs val_score, as the benchmark measures it.

    Args:
        model: See above.
        name: Of the task.
        lr: Largest learning rate.
        weight_decay: Of what decays.
        steps: Optimiser steps in all.
    """

    def __init__(self, model: GlueModel, name: str, lr: float, weight_decay: float, steps: int):
        super().__init__()
        self.model, self.name, self.lr, self.weight_decay, self.steps = model, name, lr, weight_decay, steps
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        x, mask, truth = batch
        answers = self.model(x, mask)
        if glue.TASKS[self.name].labels:
            return F.cross_entropy(answers, truth.long())
        return F.mse_loss(answers[:, 0], truth.float())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the answers: a score is no mean over batches."""
        self.seen.append((decided(self.model, batch, self.name), batch[2].cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log the score of all answers."""
        answers, truth = (torch.cat(parts).numpy() for parts in zip(*self.seen, strict=True))
        self.seen = []
        self.log("val_score", glue.score(self.name, answers, truth))

    def configure_optimizers(self):
        """AdamW by what the modules ask for; a warm-up and a cosine."""
        optimizer = make_optimizer(self.model, self.lr, self.weight_decay)
        schedule = cosine_schedule(optimizer, self.steps, self.steps // 10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def decided(model: GlueModel, batch: Batch, name: str) -> Tensor:
    """Classes, or numbers, (b,), on the CPU. Raises nothing of its own."""
    answers = model(batch[0], batch[1])
    return (answers.argmax(-1) if glue.TASKS[name].labels else answers[:, 0]).float().cpu()
