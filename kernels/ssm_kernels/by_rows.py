"""Rows as an operator's front and its reference see them: devices, the plain case, one reference run for each row."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import Row, rows_of


def bounds_on_device(cu_seqlens: Tensor | None, lengths: Tensor | None) -> dict[str, Tensor | None]:
    """The row bounds as `check_devices` has to see them: they may stay on the CPU, where every backend reads them.

    Args:
        cu_seqlens: Shape (r + 1,) or None.
        lengths: Shape (b,) or None.
    """
    named = {"cu_seqlens": cu_seqlens, "lengths": lengths}
    return {name: None if t is None or t.device.type == "cpu" else t for name, t in named.items()}


def rows_or_none(op: str, x: Tensor, cu_seqlens: Tensor | None, lengths: Tensor | None) -> list[Row] | None:
    """The rows of x, shape (b, l, ...); None for a plain batch, which a reference runs at once.

    Raises:
        ValueError: As `rows_of`.
    """
    if cu_seqlens is None and lengths is None:
        return None
    return rows_of(op, x.shape[0], x.shape[1], cu_seqlens, lengths)


def by_rows(
    run: Callable[..., tuple[Tensor, Tensor]],
    steps: Sequence[Tensor | None],
    initial_state: Tensor | None,
    rows: Sequence[Row],
) -> tuple[Tensor, Tensor]:
    """Apply `run` to each row alone.

    Args:
        run: From each of `steps`, cut to a row (1, row length, ...), and the row's state (1, ...) or None
            to the row's output (1, row length, ...) and last state (1, ...).
        steps: Inputs, shape (b, l, ...); the first is not None.
        initial_state: Shape (r, ...) or None.
        rows: Either the consecutive segments of one batch item, or one row from step 0 for each batch item.
    Returns:
        Output, shape (b, l, ...), zero outside every row; last states, shape (r, ...).
    """
    assert steps[0] is not None
    length = steps[0].shape[1]
    pieces, last = [], []
    for i, row in enumerate(rows):
        at = (slice(row.batch, row.batch + 1), slice(row.start, row.start + row.length))
        cut = (t if t is None else t[at] for t in steps)
        y, state = run(*cut, None if initial_state is None else initial_state[i : i + 1])
        pieces.append(y)
        last.append(state)
    if len(rows) > 1 and rows[1].batch == 0:
        y = torch.cat(pieces, 1)
    else:
        filled = [F.pad(y, (*[0, 0] * (y.ndim - 2), 0, length - y.shape[1])) for y in pieces]
        y = torch.cat(filled) if filled else torch.zeros_like(steps[0])
    return y, (torch.cat(last) if last else steps[0].new_zeros(0))
