"""A bidirectional state-space stack over patches of each window, channels independent.

    e = patches(x, observed, inputs) W_in       patches of `patch_length` steps every `stride`
    features = flatten(stack(e)) W_out

Source: patches as in Nie et al. 2023, PatchTST; a bidirectional Mamba on patches Liang et al. 2024, Bi-Mamba+.

    r  windows      c  channels      t  context_length      p  patches      k  inputs      h  prediction_length
    e  width
"""

import torch
from torch import Tensor, nn

from ssmcore import Stack
from ssmcore.mixers import MixerSpec

from ..config import PatchConfig
from .window import Sizes
from .window_encoder import stand_alone


class PatchNetwork(nn.Module):
    """Read windows of `context_length` values in patches.

    Args:
        sizes: What the windows bring, and the horizon.
        width: Features of every step to forecast.
        mixer: Sequence mixer that is run both ways; a bare name gets the `d_state` of the configuration.
        context_length: Steps a window holds.
        config: Sizes of the stack.
    Raises:
        ValueError: The patches do not fit the context.
    """

    def __init__(self, sizes: Sizes, width: int, mixer: MixerSpec, context_length: int, config: PatchConfig):
        super().__init__()
        self.context_length, self.config, self.horizon = context_length, config, sizes.prediction_length
        patches = count_patches("PatchNetwork", context_length, config.patch_length, config.stride)
        self.embed = nn.Linear((2 + sizes.inputs) * config.patch_length, config.d_model)
        inner = {"name": mixer, "d_state": config.d_state} if isinstance(mixer, str) else mixer
        self.stack = Stack(
            config.d_model,
            f"(M/glu)*{config.num_layers}",
            mixers={"M": {"name": "bidirectional", "mixer": inner}},
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
        mixed, _ = self.stack(self.embed(patches))  # (r c, p, d)
        return self.head(self.dropout(mixed.flatten(1))).view(r, c, self.horizon, -1)


def count_patches(name: str, context_length: int, patch_length: int, stride: int) -> int:
    """Patches of a window; no shapes.

    Raises:
        ValueError: They do not fit the context.
    """
    if not 1 <= patch_length <= context_length or stride < 1:
        raise ValueError(
            f"{name}: patch_length={patch_length}, stride={stride}, expected "
            f"1 <= patch_length <= context_length={context_length} and stride >= 1"
        )
    return (context_length - patch_length) // stride + 1


def cut_patches(x: Tensor, observed: Tensor, inputs: Tensor, patch_length: int, stride: int) -> Tensor:
    """Patches of every channel with what was observed of it and all inputs, side by side.

    Args:
        x, observed: Shape (r, c, t).
        inputs: Shape (r, k, t).
        patch_length, stride: In steps.
    Returns:
        Shape (r c, p, (2 + k) patch_length).
    """
    (r, c, t), k = x.shape, inputs.shape[1]
    # The newest value must be in a patch, so what does not fit is cut off at the old end.
    used = (t - patch_length) // stride * stride + patch_length
    shared = inputs[:, None].expand(-1, c, -1, -1)
    tokens = torch.cat([x[:, :, None], observed[:, :, None].to(x), shared], 2).view(r * c, 2 + k, t)
    return tokens[..., -used:].unfold(-1, patch_length, stride).transpose(1, 2).flatten(2)
