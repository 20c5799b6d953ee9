"""SiMBA for series: Mamba over patches of a window, EinFFT across patches and channels of the model.

    e = patches(x, observed, inputs) W_in + position     patches of `patch_length` steps every `stride`
    e = e + mamba(norm e)
    e = e + einfft(norm e)                               in each of the layers; then a last norm
    features = flatten(e) W_out

The block (norm, Mamba, dropout, residual; norm, EinFFT, dropout, residual) is the paper's. It says little of how series
become tokens and published no code for them, so that part is ours: windows normalised as in window_encoder.py, channels
of the data apart, overlapping patches, learned positions, a linear map of all patches at the end.
Source: Patro & Agneeswaran 2024, SiMBA, arXiv 2403.15360, sec. 3; patches as in Nie et al. 2023, PatchTST.

    r  windows      c  channels      t  context_length      p  patches      k  inputs      h  prediction_length
    e  width
"""

import torch
from torch import Tensor, nn

from ssmcore import Stack
from ssmcore.mixers import MixerSpec

from ..config import SimbaConfig
from .patch_network import count_patches, cut_patches
from .window import Sizes
from .window_encoder import stand_alone


class Simba(nn.Module):
    """Forecast every channel of a window from its own patches.

    Args:
        sizes: What the windows bring, and the horizon.
        width: Features of every step to forecast.
        mixer: Sequence mixer over the patches, oldest first.
        context_length: Steps a window holds.
        config: Sizes.
    Raises:
        ValueError: The patches do not fit the context, or the blocks of EinFFT do not divide d_model.
    """

    def __init__(self, sizes: Sizes, width: int, mixer: MixerSpec, context_length: int, config: SimbaConfig):
        super().__init__()
        self.context_length, self.config, self.horizon = context_length, config, sizes.prediction_length
        patches = count_patches("Simba", context_length, config.patch_length, config.stride)
        self.embed = nn.Linear((2 + sizes.inputs) * config.patch_length, config.d_model)
        self.position = nn.Parameter(0.02 * torch.randn(patches, config.d_model))
        self.stack = Stack(
            config.d_model,
            f"(M/einfft)*{config.num_layers}",
            mixers={"M": mixer, "einfft": {"blocks": config.blocks, "init_std": config.einfft_std}},
            norm="layer",
            dropout=config.dropout,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(patches * config.d_model, self.horizon * width)

    def forward(self, past: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The forecast of width 1 alone: (r, c, t) and (r, k, t) to (r, c, h); raises as `stand_alone`."""
        return stand_alone(self, past, inputs)

    def encode(self, x: Tensor, observed: Tensor, inputs: Tensor) -> Tensor:
        """See window_encoder.py."""
        r, c, _ = x.shape
        patches = cut_patches(x, observed, inputs, self.config.patch_length, self.config.stride)
        mixed, _ = self.stack(self.embed(patches) + self.position)  # (r c, p, d)
        return self.head(self.dropout(mixed.flatten(1))).view(r, c, self.horizon, -1)
