"""The classifier of Long Range Arena: an encoder, a stack that sees both directions, the mean over tokens, a head."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmcore import Stack, create_mixer

from .config import Settings
from .data import Data

Batch = tuple[Tensor, Tensor, Tensor]
"""Sequences (b, l) or (b, l, 1), which of their tokens exist (b, l), labels (b,). Pairs: (2 b, l), the firsts first."""


class LraModel(nn.Module):
    """Sequences to answers, (b, l) or (b, l, 1) to (b, classes); pairs, (2 b, l), to (b, classes).

    Args:
        data: Says what comes in and how many answers there are.
        how: The model's settings.
    Raises:
        ValueError: A name or option is unknown.
    """

    def __init__(self, data: Data, how: Settings):
        super().__init__()
        d, self.pairs = how.d_model, data.pairs
        self.embed = nn.Embedding(data.tokens, d) if data.tokens else nn.Linear(1, d)
        spec: dict[str, Any] = {"name": how.mixer, **how.options}
        if create_mixer(how.mixer, d, **how.options).causal:
            spec = {"name": "bidirectional", "mixer": spec}
        self.stack = Stack(
            d,
            f"(M)*{how.num_layers}",
            mixers={"M": spec},
            norm=how.norm,
            placement=how.placement,
            dropout=how.dropout,
            final_norm=how.placement == "pre",
        )
        if data.pairs:
            self.head = nn.Sequential(nn.Linear(4 * d, d), nn.ReLU(), nn.Linear(d, data.classes))
        else:
            self.head = nn.Linear(d, data.classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Answers; shapes above. Raises nothing of its own."""
        h = self.embed(x)
        y, _ = self.stack(h, mask=None if mask.all() else mask)
        pooled = (y * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        if self.pairs:
            first, second = pooled.chunk(2)
            pooled = torch.cat([first, second, first * second, first - second], -1)
        return self.head(pooled)


def collate(items: Sequence[tuple[tuple[Tensor, ...], int]]) -> Batch:
    """Items of a `Data` part as a batch, padded on the right. Shapes at `Batch`, raises nothing."""
    rows = [sequences[i] for i in range(len(items[0][0])) for sequences, _ in items]
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    padded = [F.pad(row, (0, 0) * (row.ndim - 1) + (0, longest - len(row))) for row in rows]
    return torch.stack(padded), torch.arange(longest) < lengths[:, None], torch.tensor([label for _, label in items])
