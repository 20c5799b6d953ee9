"""The training task of the lab: the loss on what is asked, and how much of fresh sequences is answered right."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset

from ssmcore.engine import make_optimizer

from .protocols import Task, Training
from .tasks import NOTHING


class Batches(Dataset):
    """Item i is a batch, drawn from a seed that i and `seed` give: (inputs, targets).

    Args:
        task: What to draw.
        length: Of the sequences.
        batch_size: Sequences.
        count: Batches.
        seed: Of all of them; batches of another seed are other ones.
        asking: At the task's full size; else what grows has the size of the step that is the index.
    """

    def __init__(self, task: Task, length: int, batch_size: int, count: int, seed: int, asking: bool = False):
        self.task, self.length, self.batch_size, self.count, self.seed = task, length, batch_size, count, seed
        self.asking = asking

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        seed = (self.seed + 1) * 1_000_003 * 10_000 + index
        return self.task(self.batch_size, self.length, seed, None if self.asking else index)


def whole(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A loader's list of one batch is that batch; shapes as drawn."""
    return items[0]


def measure(answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and score of what is asked: cross entropy and accuracy, or squared error and the part that is explained.

    Args:
        answers: (b, l, classes), or numbers (b, l).
        targets: (b, l).
    """
    if answers.ndim == 3:
        asked = targets != NOTHING
        loss = F.cross_entropy(answers[asked].float(), targets[asked])
        return loss, (answers[asked].argmax(-1) == targets[asked]).float().mean()
    asked = ~targets.isnan()
    error = (answers[asked].float() - targets[asked]).square().mean()
    return error, 1 - error / targets[asked].square().mean()


class LabTask(pl.LightningModule):
    """Train a LabModel; logs val_score, the accuracy (or the explained part of the variance) on fresh
    sequences.

    Args:
        model: See model.py.
        how: Learning rate, its course and decay.
    """

    def __init__(self, model: nn.Module, how: Training):
        super().__init__()
        self.model, self.how = model, how

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        loss, _ = measure(self.model(batch[0]), batch[1])
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and score."""
        loss, score = measure(self.model(batch[0]), batch[1])
        self.log_dict({"val_loss": loss, "val_score": score}, batch_size=len(batch[0]))

    def configure_optimizers(self):
        """AdamW by what the modules ask for; the rate by batches."""
        optimizer = make_optimizer(self.model, self.how.lr, self.how.weight_decay)
        course = torch.optim.lr_scheduler.LambdaLR(optimizer, self.how.pace)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": course, "interval": "step"}}


class Solved(Callback):
    """End the training when fresh sequences are answered right."""

    def __init__(self, score: float):
        self.score = score

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Look at val_score."""
        if float(trainer.callback_metrics.get("val_score", -torch.inf)) >= self.score:
            trainer.should_stop = True
