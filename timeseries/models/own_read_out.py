"""A read-out that is each series' own and moves with the calendar, on the poles and features that all series share.

    y[t+1 .. t+H] = x[t] + V[c, t] u + b[c, t]        V[c, t] = V[c] + sum over m of clock[t, m] U[m]

u are the features of LinearSSM in its units, the clock is sine and cosine of the day's first harmonics: how soon a load
goes back to its habit depends on the hour, and on which load it is. Fitted from a read-out that all series share, to
the absolute error, so that little is made up where there is little to learn from. A linear system whose output matrix
is periodic: its state is the same, and so is the cost of an update.

    c  series      t  time steps      m  clock      f  features      o  origins      h  prediction_length
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .linear_ssm import LinearSSM
from .median import BATCH, WhiteRows, descend

RATE = 1e-3
MOST_SERIES = 32
"""With more series than these, read-outs of their own are not tried: they are as many tables of f x h numbers."""


class OwnReadOut(nn.Module):
    """LinearSSM with a read-out for each of c series, and m more for the clock. float64.

    Args:
        linear: Gives the poles, the features and their units.
        series: c.
        clock: m.
    """

    def __init__(self, linear: LinearSSM, series: int, clock: int):
        super().__init__()
        self.linear = linear
        self.register_buffer("own", linear.weight.expand(series, -1, -1).clone())
        self.register_buffer("own_bias", linear.bias.expand(series, -1).clone())
        self.register_buffer("moving", linear.weight.new_zeros(clock, *linear.weight.shape))
        self.register_buffer("moving_bias", linear.bias.new_zeros(clock, len(linear.bias)))

    def from_origins(self, values: Tensor, clock: Tensor) -> Callable[[Tensor], Tensor]:
        """Forecasts by origin.

        Args:
            values: All series, NaN where missing, shape (c, t).
            clock: Of every step, shape (t, m).
        Returns:
            A function of origins (o,) that gives forecasts (c, o, h).
        """
        features, last, _ = self.linear.features(values)
        features = (features - self.linear.feature_mean) / self.linear.feature_scale
        moving, bias = self.moving.movedim(0, 1).flatten(1), self.moving_bias

        def forecast(origins: Tensor) -> Tensor:
            here, now = features[:, origins], clock[origins]
            made = torch.baddbmm(self.own_bias[:, None], here, self.own) + last[:, origins, None]
            if len(bias):
                turns = (here @ moving).unflatten(-1, (len(bias), -1))  # (c, o, m, h)
                made = made + torch.einsum("om,comh->coh", now, turns) + now @ bias
            return made

        return forecast


def fit_own_read_out(linear: LinearSSM, rows: WhiteRows, clock: Tensor) -> OwnReadOut:
    """From a read-out that all series share.

    Args:
        linear: With that read-out.
        rows: Its training rows.
        clock: Of every step, shape (t, m).
    """
    c, r, _ = rows.white.shape
    model, shared = OwnReadOut(linear, c, clock.shape[1]), rows.rotated(linear.weight)
    own = shared.expand(c, -1, -1).clone().requires_grad_()
    moving = shared.new_zeros(clock.shape[1], *shared.shape).requires_grad_()
    biases = [table.float().clone().requires_grad_() for table in (model.own_bias, model.moving_bias)]
    turns = clock[rows.origins].float()

    def error(picked: Tensor) -> Tensor:
        here, now = rows.white[:, picked], turns[picked]
        made = torch.baddbmm(biases[0][:, None], here, own) + now @ biases[1]
        for wave, table in zip(now.T, moving, strict=True):
            made = made + (wave[:, None] * here) @ table
        return made - rows.targets(slice(None), picked)

    descend([own, moving, *biases], error, r, max(BATCH // c, 1), RATE)
    for name, table in (("own", own), ("moving", moving)):
        getattr(model, name).copy_(rows.rotate @ table.detach().double())
    model.own_bias.copy_(biases[0].detach().double())
    model.moving_bias.copy_(biases[1].detach().double())
    return model


def average(members: Sequence[LinearSSM | OwnReadOut]) -> LinearSSM | OwnReadOut:
    """The forecaster whose forecasts are the mean of several, which read the same features.

    Args:
        members: At least one, with the same poles and units; they are not changed.
    """
    from copy import deepcopy

    made = deepcopy(next((member for member in members if isinstance(member, OwnReadOut)), members[0]))
    if isinstance(made, LinearSSM):
        for name in ("weight", "bias"):
            getattr(made, name).copy_(torch.stack([getattr(member, name) for member in members]).mean(0))
        return made
    c, m = len(made.own), len(made.moving)
    wide = [member if isinstance(member, OwnReadOut) else OwnReadOut(member, c, m) for member in members]
    for name in ("own", "own_bias", "moving", "moving_bias"):
        getattr(made, name).copy_(torch.stack([getattr(member, name) for member in wide]).mean(0))
    return made
