"""TimeMachine: four Mambas at two resolutions of a window.

    u1 = W1 x + b1             (n1)         v1 = drop(u1)       outer pair:  o = M3(v1) + M4(v1, along the window)
    u2 = W2 v1 + b2            (n2)         v2 = drop(u2)       inner pair:  i = M2(v2) + M1(v2, along the window) + u2
    features = W4 [W3 i + b3 + u1, o] + b4

Channels apart, a window is a sequence of one token: M2 and M3 see all n2 or n1 numbers as its channels, M1 and M4 see
them one after another, as n2 or n1 tokens of one channel (over a single token the decay of a scan has no part: M2 and
M3 are gated maps then). Channels together, a window is a sequence of c tokens and all
four run over those; then every series must have the same channels. Names of parameters are the published ones (lin1,
mamba1, ...). With `width` 1 and `channels` given, the forecast of `forward` is the paper's.
Differences: the scale of a window is cut off below at 1e-3 where the published code adds 1e-5 to the variance; missing
values count as the window's mean; inputs, of which the paper has none, are further numbers of the window. As an encoder
of TimeMachineForecaster what it forecasts is added to LinearSSM, and the normalisation has no affine map.
Source: Ahamed & Cheng 2024, TimeMachine: a time series is worth 4 Mambas for long-term forecasting, arXiv 2403.09898.

    r  windows      c  channels      t  context_length      k  inputs      h  prediction_length      e  width
"""

import torch
from torch import Tensor, nn

from ssmcore.mixers import MixerSpec, build_mixer

from ..config import TimeMachineConfig
from .window import Sizes
from .window_encoder import check_sizes, stand_alone


class TimeMachine(nn.Module):
    """Forecast windows at two resolutions.

    Args:
        sizes: What the windows bring, and the horizon.
        width: Features of every step to forecast.
        mixer: Sequence mixer, four of them; a causal one.
        context_length: Steps a window holds.
        config: Sizes.
        channels: Of the windows, for an affine map of each after the normalisation; None for no map.
    Raises:
        ValueError: A size is below 1, or the mixer is unknown.
    """

    def __init__(
        self,
        sizes: Sizes,
        width: int,
        mixer: MixerSpec,
        context_length: int,
        config: TimeMachineConfig,
        channels: int | None = None,
    ):
        super().__init__()
        n1, n2 = config.n1, config.n2
        check_sizes("TimeMachine", context_length=context_length, n1=n1, n2=n2)
        self.context_length, self.config, self.horizon = context_length, config, sizes.prediction_length
        apart = config.channels == "apart"
        self.revin_layer = None if channels is None else Affine(channels)
        self.lin1, self.dropout1 = nn.Linear((1 + sizes.inputs) * context_length, n1), nn.Dropout(config.dropout)
        self.lin2, self.dropout2 = nn.Linear(n1, n2), nn.Dropout(config.dropout)
        self.mamba1 = build_mixer(mixer, 1 if apart else n2)
        self.mamba2 = build_mixer(mixer, n2)
        self.mamba3 = build_mixer(mixer, n1)
        self.mamba4 = build_mixer(mixer, 1 if apart else n1)
        self.lin3, self.lin4 = nn.Linear(n2, n1), nn.Linear(2 * n1, self.horizon * width)

    @property
    def head(self) -> nn.Linear:
        """The last linear map."""
        return self.lin4

    def forward(self, past: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The forecast of width 1 alone: (r, c, t) and (r, k, t) to (r, c, h); raises as `stand_alone`."""
        return stand_alone(self, past, inputs)

    def encode(self, x: Tensor, observed: Tensor, inputs: Tensor) -> Tensor:
        """See window_encoder.py."""
        r, c, _ = x.shape
        if self.revin_layer is not None:
            x = self.revin_layer(x)
        x = torch.cat([x, inputs.flatten(1)[:, None].expand(-1, c, -1)], -1)
        if self.config.channels == "apart":
            x = x.reshape(r * c, 1, -1)
        first = self.lin1(x)
        outer = self.dropout1(first)
        second = self.lin2(outer)
        inner = self.dropout2(second)
        low = self._pair(inner, self.mamba2, self.mamba1) + second
        high = self._pair(outer, self.mamba3, self.mamba4)
        features = self.lin4(torch.cat([self.lin3(low) + first, high], -1)).view(r, c, self.horizon, -1)
        return features if self.revin_layer is None else self.revin_layer.back(features)

    def _pair(self, x: Tensor, whole: nn.Module, along: nn.Module) -> Tensor:
        """Two mixers on the same tokens, shape (r, tokens, n)."""
        if self.config.channels == "together":
            return whole(x)[0] + along(x)[0]
        return whole(x)[0] + along(x.mT)[0].mT


class Affine(nn.Module):
    """RevIN's affine map of every channel, after the normalisation, and back before it is undone.

    Args:
        channels: c.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.affine_weight, self.affine_bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (r, c, t)."""
        return x * self.affine_weight[:, None] + self.affine_bias[:, None]

    def back(self, y: Tensor) -> Tensor:
        """Shape (r, c, h, e)."""
        return (y - self.affine_bias[:, None, None]) / (self.affine_weight[:, None, None] + 1e-10)
