"""Packed sequences as these packages write them, a number for each token (`seq_idx`), as the suite's rows."""

import torch
from torch import Tensor

from ..functional import Rows


def rows_of_index(op: str, seq_idx: Tensor, batch: int, length: int) -> Rows:
    """The rows between two changes of seq_idx.

    Args:
        op: The function that was called, for messages.
        seq_idx: The sequence that each token is of, rising along an item, integers, shape (b, l).
        batch: b.
        length: l.
    Raises:
        ValueError: The shape or dtype is another.
    """
    if seq_idx.shape != (batch, length) or seq_idx.is_floating_point():
        came = f"shape {tuple(seq_idx.shape)} and dtype {str(seq_idx.dtype).removeprefix('torch.')}"
        raise ValueError(f"{op}: seq_idx has {came}, expected integers ({batch}, {length})")
    reset = torch.zeros_like(seq_idx, dtype=torch.bool)
    reset[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    return Rows.of(reset, None)


def check_slots(op: str, name: str, indices: Tensor, slots: int) -> None:
    """Raise a ValueError unless indices, shape (b,), are integers below `slots`; on a GPU values are not read.

    Raises:
        ValueError: They are of another dtype, or point beyond the states.
    """
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"{op}: {name} has dtype {str(indices.dtype).removeprefix('torch.')}, expected integers")
    if indices.device.type == "cpu" and indices.numel() and int(indices.max()) >= slots:
        raise ValueError(f"{op}: {name} points at state {int(indices.max())}, expected less than {slots}")
