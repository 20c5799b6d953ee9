"""How likely a model finds recordings: bits a sample, with carried state where one is too long for a batch."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ssmcore.state import State, where

from .chunks import Batch, Pieces, Streams


def continue_rows(model: nn.Module, batch: Batch, state: State | None) -> tuple[Tensor, State | None]:
    """Logits of a batch, from the state that the batch before left in the rows that are not fresh.

    Args:
        model: SaShiMi.
        batch: Rows (b, l).
        state: What the batch before left; None where all rows are fresh.
    Returns:
        logits, shape (b, l, levels), and the state after the batch, or None where none is wanted.
    """
    if state is None or bool(batch.fresh.all()):
        return model(batch.inputs, label=batch.label, return_state=batch.goes_on)
    if bool(batch.fresh.any()):
        state = where(~batch.fresh, state, model.init_state(len(batch.inputs), label=batch.label))
    return model(batch.inputs, state)


@torch.no_grad()
def score_rows(model: nn.Module, batch: Batch, state: State | None = None) -> tuple[float, int, State | None]:
    """Bits of the samples of a batch.

    Args:
        model: SaShiMi.
        batch: Rows (b, l).
        state: What the batch before left; None where all rows are fresh.
    Returns:
        The sum of bits, the number of samples, and the state after the batch, or None where none is wanted.
    """
    logits, state = continue_rows(model, batch, state)
    nats = F.cross_entropy(logits.flatten(0, 1).double(), batch.targets.flatten(), reduction="sum")
    return float(nats) / math.log(2), int((batch.targets != -100).sum()), state


def whole_recordings(
    tokens: Sequence[Tensor], labels: Tensor, *, length: int, batch_size: int, silence: int
) -> Dataset:
    """Batches that cover each recording from its first sample with its whole past.

    Args:
        tokens: Levels of each recording, shape (t,).
        labels: Of each recording, int64, shape (n, k).
        length: Most samples a row; a multiple of the model's pooling.
        batch_size: Rows.
        silence: The level before a recording.
    Returns:
        Pieces where every recording fits in a row, else Streams; both to be read in order.
    """
    kind = Pieces if max(map(len, tokens)) <= length else Streams
    return kind(tokens, labels, length=length, batch_size=batch_size, silence=silence)


def bits_per_sample(model: nn.Module, batches: Dataset) -> float:
    """Mean over all samples of a part.

    Args:
        model: SaShiMi.
        batches: From `whole_recordings`.
    """
    training, total, count, state = model.training, 0.0, 0, None
    device = next(model.parameters()).device
    model.eval()
    for index in range(len(batches)):
        batch = Batch(*(t.to(device) if isinstance(t, Tensor) else t for t in batches[index]))
        bits, samples, state = score_rows(model, batch, state)
        total, count = total + bits, count + samples
    model.train(training)
    return total / max(1, count)
