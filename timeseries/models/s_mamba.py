"""S-Mamba: each channel's window is one token, and a Mamba reads the channels in both directions.

    e = W_e x + b_e                                 a token (d) of each channel's whole window, inputs as further tokens
    e = norm1(e + mamba(e) + flip(mamba_r(flip e)))
    e = norm2(e + W2 f(W1 e))                       in each of the layers; then a last norm
    features = W_p e + b_p

Order matters to a scan: channels are read as the data have them. Names of parameters are those of the published code
(enc_embedding.value_embedding, encoder.attn_layers.0.attention, conv1, ...), and so are their shapes where the mixer is
Mamba, so that its checkpoints load. With `width` 1 the forecast of `forward` is the paper's.
Differences: the scale of a window is cut off below at 1e-3 where the published code adds 1e-5 to the variance; a
missing value counts as the window's mean; dropout has no fixed rate (the paper's is 0.1). As an encoder of
SMambaForecaster what it forecasts is added to LinearSSM.
Source: Wang et al. 2024, Is Mamba effective for time series forecasting?, arXiv 2403.11144, sec. 4.

    r  windows      c  channels      t  context_length      k  inputs      h  prediction_length      e  width
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmcore.mixers import MixerSpec, build_mixer

from ..config import SMambaConfig
from .window import Sizes
from .window_encoder import check_sizes, stand_alone

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


class SMamba(nn.Module):
    """Forecast all channels of a window together.

    Args:
        sizes: What the windows bring, and the horizon.
        width: Features of every step to forecast.
        mixer: Sequence mixer over the channels, one for each direction; a causal one.
        context_length: Steps a window holds.
        config: Sizes.
    Raises:
        ValueError: A size is below 1, or the mixer is unknown.
    """

    def __init__(self, sizes: Sizes, width: int, mixer: MixerSpec, context_length: int, config: SMambaConfig):
        super().__init__()
        check_sizes("SMamba", context_length=context_length, num_layers=config.num_layers, d_ff=config.d_ff)
        self.context_length, self.config, self.horizon = context_length, config, sizes.prediction_length
        d = config.d_model
        self.enc_embedding = nn.ModuleDict({"value_embedding": nn.Linear(context_length, d)})
        self.dropout = nn.Dropout(config.dropout)
        layers = nn.ModuleList(SMambaLayer(mixer, config) for _ in range(config.num_layers))
        self.encoder = nn.ModuleDict({"attn_layers": layers, "norm": nn.LayerNorm(d)})
        self.projector = nn.Linear(d, self.horizon * width)

    @property
    def head(self) -> nn.Linear:
        """The map from a token to its forecast."""
        return self.projector

    def forward(self, past: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The forecast of width 1 alone: (r, c, t) and (r, k, t) to (r, c, h); raises as `stand_alone`."""
        return stand_alone(self, past, inputs)

    def encode(self, x: Tensor, observed: Tensor, inputs: Tensor) -> Tensor:
        """See window_encoder.py."""
        tokens = self.dropout(self.enc_embedding["value_embedding"](torch.cat([x, inputs], 1)))  # (r, c + k, d)
        for layer in self.encoder["attn_layers"]:
            tokens = layer(tokens)
        tokens = self.encoder["norm"](tokens[:, : x.shape[1]])
        return self.projector(tokens).unflatten(-1, (self.horizon, -1))


class SMambaLayer(nn.Module):
    """Two scans over the tokens, one from each end, and a small network on each token: (r, c, d) to (r, c, d).

    Args:
        mixer: Of both scans.
        config: Sizes.
    """

    def __init__(self, mixer: MixerSpec, config: SMambaConfig):
        super().__init__()
        d = config.d_model
        self.attention, self.attention_r = build_mixer(mixer, d), build_mixer(mixer, d)
        self.conv1, self.conv2 = nn.Conv1d(d, config.d_ff, 1), nn.Conv1d(config.d_ff, d, 1)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout, self.activation = nn.Dropout(config.dropout), ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels, then each channel by itself; shape (r, c, d)."""
        ahead, back = self.attention(x)[0], self.attention_r(x.flip(1))[0].flip(1)
        x = self.norm1(x + ahead + back)
        y = self.dropout(self.activation(self.conv1(x.mT)))
        return self.norm2(x + self.dropout(self.conv2(y)).mT)
