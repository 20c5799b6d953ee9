"""Batches of samples for training: pieces of recordings in any order, or long recordings in order with carried state.

Pieces and Streams are of levels, for SaShiMi; WaveWindows is of waveforms, for DiffWave. All are datasets whose items
are whole batches, so that one loader serves them and every batch has rows of like length. Targets of a piece are its
samples; inputs are the samples one earlier, silence before the first of a recording.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Batch(NamedTuple):
    """Rows of samples, padded at the end."""

    inputs: Tensor
    """Levels one sample earlier, int64, shape (b, l)."""
    targets: Tensor
    """Levels, int64, shape (b, l); -100 in the padding."""
    label: Tensor
    """Labels, int64, shape (b, k); -1 where unknown."""
    fresh: Tensor
    """Rows that start from an empty state; the others go on from the batch before. bool, shape (b,)."""
    goes_on: bool
    """Whether a row of the next batch goes on from this one."""


class Pieces(Dataset):
    """Every recording in pieces of at most `length` samples, each from an empty state; an item is a batch of them.

    Rows of a batch are drawn at random among pieces of like length, once for the whole run.

    Args:
        tokens: Levels of each recording, shape (t,).
        labels: Of each recording, int64, shape (n, k).
        length: Most samples a piece.
        batch_size: Pieces a batch.
        silence: The level before a recording.
        multiple: Batches are padded to a multiple of it.
        seed: Of the draw.
    """

    def __init__(
        self,
        tokens: Sequence[Tensor],
        labels: Tensor,
        *,
        length: int,
        batch_size: int,
        silence: int,
        multiple: int = 16,
        seed: int = 0,
    ):
        self.tokens, self.labels, self.silence, self.multiple = tokens, labels, silence, multiple
        pieces = [
            (row, start, min(length, len(t) - start))
            for row, t in enumerate(tokens)
            for start in range(0, len(t), length)
        ]
        order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed)).tolist()
        pieces = sorted((pieces[i] for i in order), key=lambda piece: piece[2] // (8 * multiple))
        self.batches = [pieces[i : i + batch_size] for i in range(0, len(pieces), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        rows = self.batches[index]
        length = -(-max(size for _, _, size in rows) // self.multiple) * self.multiple
        parts = [_cut(self.tokens[row], start, size, length, self.silence) for row, start, size in rows]
        labels = self.labels[[row for row, _, _ in rows]]
        return Batch(*_stack(parts), labels, torch.ones(len(rows), dtype=torch.bool), goes_on=False)


class Streams(Dataset):
    """Recordings one after another in `batch_size` rows; item k goes on where item k - 1 stopped.

    A row that starts a recording is `fresh`. To be read in order: the task carries the state from batch to batch, and
    cuts its gradient (truncated back-propagation through time).

    Args:
        tokens: Levels of each recording, shape (t,).
        labels: Of each recording, int64, shape (n, k).
        length: Samples a batch has in each row; a multiple of the model's pooling.
        batch_size: Rows.
        silence: The level before a recording.
    """

    def __init__(self, tokens: Sequence[Tensor], labels: Tensor, *, length: int, batch_size: int, silence: int):
        self.tokens, self.labels, self.length, self.silence = tokens, labels, length, silence
        self.rows: list[list[tuple[int, int]]] = [[] for _ in range(min(batch_size, len(tokens)))]
        for number in sorted(range(len(tokens)), key=lambda i: -len(tokens[i])):
            shortest = min(self.rows, key=len)
            shortest += [(number, start) for start in range(0, len(tokens[number]), length)]

    def __len__(self) -> int:
        return max(map(len, self.rows))

    def __getitem__(self, index: int) -> Batch:
        parts, labels, fresh = [], [], []
        for row in self.rows:
            if index < len(row):
                number, start = row[index]
                size = min(self.length, len(self.tokens[number]) - start)
                parts.append(_cut(self.tokens[number], start, size, self.length, self.silence))
                labels.append(self.labels[number])
                fresh.append(start == 0)
            else:  # this row has come to its end: padding, from an empty state
                parts.append(_cut(torch.empty(0), 0, 0, self.length, self.silence))
                labels.append(torch.full_like(self.labels[0], -1))
                fresh.append(True)
        goes_on = any(index + 1 < len(row) and row[index + 1][1] for row in self.rows)
        return Batch(*_stack(parts), torch.stack(labels), torch.tensor(fresh), goes_on)


class Windows(NamedTuple):
    """Rows of samples of a waveform, silence after those that are shorter."""

    wave: Tensor
    """float32, shape (b, t)."""
    label: Tensor
    """Labels, int64, shape (b, k); -1 where unknown."""


class WaveWindows(Dataset):
    """Every recording in windows of `length` samples, the last one filled up with silence; an item is a batch of them.

    Args:
        waves: float32, shape (t,) each.
        labels: Of each recording, int64, shape (n, k).
        length: Samples of a window.
        batch_size: Windows a batch.
        seed: Of the draw of the rows that share a batch, once for the whole run; None keeps the order.
    """

    def __init__(
        self, waves: Sequence[Tensor], labels: Tensor, *, length: int, batch_size: int, seed: int | None = None
    ):
        self.waves, self.labels, self.length = waves, labels, length
        windows = [(row, start) for row, wave in enumerate(waves) for start in range(0, len(wave), length)]
        if seed is not None:
            order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).tolist()
            windows = [windows[i] for i in order]
        self.batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Windows:
        rows = self.batches[index]
        cut = [self.waves[row][start : start + self.length] for row, start in rows]
        wave = torch.stack([torch.nn.functional.pad(part, (0, self.length - len(part))) for part in cut])
        return Windows(wave, self.labels[[row for row, _ in rows]])


def _cut(tokens: Tensor, start: int, size: int, length: int, silence: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one piece, padded to `length`, int64, shape (length,)."""
    inputs = torch.full((length,), silence)
    targets = torch.full((length,), -100)
    inputs[1:size] = tokens[start : start + size - 1].long() if size else 0
    if start:
        inputs[0] = int(tokens[start - 1])
    targets[:size] = tokens[start : start + size].long()
    return inputs, targets


def _stack(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([inputs for inputs, _ in parts]), torch.stack([targets for _, targets in parts])


def first(batches: list[Any]) -> Any:
    """Collate a list of the one batch that an item is. Raises nothing."""
    return batches[0]
