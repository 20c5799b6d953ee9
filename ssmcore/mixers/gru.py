"""GRU: one gate mixes the old state with a candidate, another says how much of the old the candidate sees.

    r, z = sigmoid(W x + U h + b),   n = tanh(W x + b + r (U h + b)),   h = (1 - z) n + z h

The reset gate r stands outside the product U h, as in torch and cuDNN, which compute it; Cho et al. have it inside.
Source: Cho et al. 2014.
"""

from torch import nn

from .rnn import RecurrentCell


class Gru(RecurrentCell):
    """One GRU layer of d_model units, (b, l, d) to (b, l, d). State: h (b, d). Raises nothing of its own."""

    title = "Gated recurrent unit"
    operator = "torch"
    selective = True

    def __init__(self, d_model: int, config=None):
        super().__init__(d_model, config)
        self.cell = nn.GRU(d_model, d_model, batch_first=True)
