"""A causal state-space stack over single steps: it reads a series once, from its first value on, and never again.

    m[t], v[t]   mean and variance of the observed values so far, forgetting with a time constant of `memory` steps
    e[t] = W_in ((x[t] - m[t]) / sqrt(v[t]), observed[t], inputs[t])
    features[t] = W_out stack(e)[t]             W_out starts at zero

Everything is a recurrence, so one further value costs one step of it, and gives what the whole series gives. A value
that comes `dt` steps after the one before moves the mixers, where their mathematics has steps, by that much.

    r  series (items times channels)      t  steps      o  origins      k  inputs      h  prediction_length
    e  width
"""

import torch
from torch import Tensor, nn

from ssmcore import Stack
from ssmcore.functional import linear_recurrence
from ssmcore.mixers import MixerSpec
from ssmcore.state import State

from ..config import StreamConfig
from .window import Hidden, Sizes, Window


class StreamEncoder(nn.Module):
    """Encode series of any length.

    Args:
        sizes: What the windows bring, and the horizon.
        width: Features of every step to forecast.
        mixer: Any causal mixer with a state.
        memory: Time constant of the normalisation, in steps.
        config: Sizes of the stack.
    Raises:
        ValueError: The mixer is not causal, or has no state.
    """

    def __init__(self, sizes: Sizes, width: int, mixer: MixerSpec, memory: float, config: StreamConfig):
        super().__init__()
        self.memory, self.config, self.width = float(memory), config, width
        self.horizon = sizes.prediction_length
        self.embed = nn.Linear(2 + sizes.inputs, config.d_model)
        self.stack = Stack(
            config.d_model, f"(M/glu)*{config.num_layers}", mixers={"M": mixer}, dropout=config.dropout, causal=True
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.d_model, self.horizon * width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, window: Window) -> Hidden:
        """See Hidden; the window may hold any number of steps.

        Raises:
            ValueError: Irregular steps, and a mixer whose step has no length.
        """
        return self._encode(window, keep=False)[0]

    def read(self, window: Window) -> tuple[Hidden, State]:
        """`forward`, and what `step` goes on from."""
        return self._encode(window, keep=True)

    def step(
        self, value: Tensor, inputs: Tensor, scale: Tensor, state: State, dt: Tensor | None
    ) -> tuple[Hidden, State]:
        """Take in one value of every series; the cost does not depend on how many came before.

        Args:
            value: Less the first value, NaN where missing, shape (b, c).
            inputs: Shape (b, k).
            scale: Running scale, shape (b, c).
            state: From `read` or `step`; not changed.
            dt: Shape (b,); None is 1.
        Returns:
            Features (b, c, 1, h, e) and scale (b, c, 1); the new state.
        """
        b, c = value.shape
        dt = _per_channel(dt, c)
        series, rows = value.reshape(b * c, 1), _per_channel(inputs, c)[:, None]
        tokens, local, sums = self._tokens(series, rows, None if dt is None else dt[:, None], state["sums"])
        dt = None if dt is None else dt.to(tokens.dtype)
        mixed, stack = self.stack.step(tokens[:, 0], state["stack"], dt=dt)
        features = self._read(mixed).view(b, c, 1, self.horizon, self.width)
        local = torch.maximum(local.view(b, c, 1), 0.1 * scale[..., None])
        return Hidden(features=features, scale=local), {"sums": sums, "stack": stack}

    def _encode(self, window: Window, keep: bool) -> tuple[Hidden, State]:
        b, c, t = window.target.shape
        o = window.scale.shape[-1]
        series, dt = window.target.reshape(b * c, t), _per_channel(window.dt, c)
        tokens, scale, sums = self._tokens(series, _per_channel(window.inputs, c), dt, None)
        mixed, stack = self.stack(tokens, dt=None if dt is None else dt.to(tokens.dtype), return_state=keep)
        features = self._read(mixed[:, -o:]).view(b, c, o, self.horizon, self.width)
        scale = torch.maximum(scale[:, -o:].view(b, c, o), 0.1 * window.scale)
        return Hidden(features=features, scale=scale), {"sums": sums, "stack": stack}

    def _read(self, mixed: Tensor) -> Tensor:
        return self.head(self.dropout(mixed))

    def _tokens(self, series: Tensor, inputs: Tensor, dt: Tensor | None, sums: Tensor | None):
        """Tokens (r, t, d), scale (r, t), and the sums after the last step (r, 3)."""
        observed = ~series.isnan()
        clean = torch.where(observed, series, 0.0)
        decay = torch.exp(-(torch.ones_like(series) if dt is None else dt.to(series)) / self.memory)
        drive = torch.stack([observed.to(series), clean, clean.square()], -1)
        all_sums, sums = linear_recurrence(
            decay[..., None].expand_as(drive), drive, initial_state=sums, return_last_state=True
        )
        count, total, squares = all_sums.unbind(-1)
        mean = total / count.clamp_min(1e-12)
        variance = squares / count.clamp_min(1e-12) - mean.square()
        scale = torch.maximum(variance.clamp_min(0).sqrt(), 1e-7 * mean.abs()).clamp_min(1e-30)
        x = torch.where(observed, (series - mean) / scale, 0.0)
        tokens = torch.cat([torch.stack([x, observed.to(x)], -1).to(inputs), inputs], -1)
        return self.embed(tokens.to(self.embed.weight.dtype)), scale, sums


def _per_channel(t: Tensor | None, channels: int) -> Tensor | None:
    """What an item has, for each of its channels: (b, ...) to (b * c, ...)."""
    return None if t is None else t.repeat_interleave(channels, 0)
