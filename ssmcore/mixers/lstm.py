"""LSTM: gates decide what a memory cell keeps, takes in and shows. Computed by torch (cuDNN on GPUs).

    i, f, o = sigmoid(W x + U h + b),  g = tanh(W x + U h + b),   c = f c + i g,   h = o tanh c

Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000 (forget gate); Jozefowicz et al. 2015 (its bias).
"""

from dataclasses import dataclass

import torch
from torch import nn

from .rnn import RecurrentCell


@dataclass(frozen=True, kw_only=True)
class LstmConfig:
    """Options of the LSTM."""

    forget_bias: float = 1.0
    """Initial bias of the forget gate."""


class Lstm(RecurrentCell):
    """One LSTM layer of d_model units, (b, l, d) to (b, l, d). State: h, c (b, d). Raises nothing of its own."""

    title = "Long short-term memory"
    operator = "torch"
    selective = True
    Config = LstmConfig
    state_names = ("h", "c")

    def __init__(self, d_model: int, config: LstmConfig | None = None):
        super().__init__(d_model, config)
        self.cell = nn.LSTM(d_model, d_model, batch_first=True)
        with torch.no_grad():  # torch adds two biases, and orders the gates i, f, g, o
            for name, value in (("bias_ih_l0", self.config.forget_bias), ("bias_hh_l0", 0.0)):
                self.cell.get_parameter(name)[d_model : 2 * d_model] = value
