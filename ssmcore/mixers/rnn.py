"""The plain RNN, h = tanh(W x + U h + b), and what it shares with the other recurrent cells of torch: one layer, its
state in float32, resets and padding as rows.

Source: Elman 1990, Finding structure in time.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..array_types import Tokens
from ..functional import Rows
from ..mixer import Context, Mixer
from ..state import State


class RecurrentCell(Mixer):
    """A torch.nn recurrent layer `cell` of d_model units, (b, l, d) to (b, l, d). Raises nothing of its own."""

    state_names: tuple[str, ...] = ("h",)
    """The parts of the state, in torch's order, each (b, d)."""
    cell: nn.RNNBase

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros, (b, d) each. Raises nothing."""
        return {name: self._zeros(batch, self.d_model, device=device, dtype=dtype) for name in self.state_names}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """Run the cell over x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        weight = self.cell.weight_ih_l0
        assert isinstance(weight, Tensor)
        with torch.autocast(x.device.type, enabled=False):
            inputs = x.to(weight.dtype)
            if state is None:
                state = self.init_state(x.shape[0] if ctx.rows is None else ctx.rows.count, device=x.device)
            if ctx.rows is None:
                y, new = self._run(inputs, state)
            else:
                y, new = self._run_rows(inputs, state, ctx.rows)
        return y.to(x.dtype), new

    def _run(self, x, state: State) -> tuple[Any, State]:
        """The cell on a batch, or on one of torch's packed sequences."""
        dtype = self.cell.weight_ih_l0.dtype
        parts = [state[name].to(dtype)[None].contiguous() for name in self.state_names]
        y, last = self.cell(x, parts[0] if len(parts) == 1 else tuple(parts))
        last = (last,) if isinstance(last, Tensor) else last
        return y, {name: h[0].to(state[name].dtype) for name, h in zip(self.state_names, last, strict=True)}

    def _run_rows(self, x: Tokens, state: State, rows: Rows) -> tuple[Tensor, State]:
        """The cell on packed rows. torch refuses empty rows: they keep their state."""
        some = (rows.lengths > 0).nonzero().squeeze(1)
        padded = rows.to_padded(x)
        packed = pack_padded_sequence(padded[some], rows.lengths[some].cpu(), batch_first=True, enforce_sorted=False)
        y, left = self._run(packed, {name: h[some] for name, h in state.items()})
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=padded.shape[1])
        y = y.new_zeros(rows.count, *y.shape[1:]).index_copy(0, some, y)
        return rows.from_padded(y), {name: h.index_copy(0, some, left[name]) for name, h in state.items()}


class Rnn(RecurrentCell):
    """One tanh layer of d_model units, (b, l, d) to (b, l, d). State: h (b, d). Raises nothing of its own."""

    title = "Plain recurrent network (Elman), tanh"
    operator = "torch"
    selective = True

    def __init__(self, d_model: int, config=None):
        super().__init__(d_model, config)
        self.cell = nn.RNN(d_model, d_model, batch_first=True)
