"""Vim (Vision Mamba): image patches as one sequence, scanned from both ends, with the class token in its middle.

    tokens = patches of the image, row by row, with cls inserted at position m = number // 2, plus positions
    24 x   tokens = tokens + mixer(rms_norm(tokens))
    logits = head(rms_norm(tokens)[m])

The mixer is `RoutedMamba` along "raster" and "raster_reversed"; `mixer=` puts any other in its place. Positions of
upstream's trained "+" models (stride 8) were resampled once with the class token taken for the first one; the published
weights already contain it.

b batch, l = h w + 1 tokens, d = embed_dim, h and w the grid of patches.
Source: Zhu et al. 2024, Vision Mamba, sec. 3; the two gated passes are averaged, as in the released models.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ssmcore import Bidirectional, build_mixer
from ssmcore.blocks import RMSNorm
from ssmcore.mixer import Mixer
from ssmcore.mixers import MixerSpec
from ssmcore.mixers.routed_mamba import RoutedMamba
from ssmcore.wrappers import BidirectionalConfig

from .blocks import TokenBlock
from .checkpoint import unwrap
from .factory import build
from .tokens import Grid, PatchEmbed, TokenModel, fit_positions


class Vim(TokenModel):
    """Vision Mamba: images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        img_size: Height and width that the position embeddings are made for; other images resample them.
        patch_size: Side of a patch, in pixels.
        stride: Step between patches, in pixels; None is patch_size.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none, which makes the pooled features the output.
        global_pool: "token" (the class token), "avg" (mean of the patches) or "" (all tokens).
        embed_dim: Channels of a token, d.
        depth: Number of blocks.
        mixer: What mixes the tokens, as `ssmcore.build_mixer` takes it; None is Vim's own. One that looks back only
            runs in both directions, the mean of the two.
        drop_rate: Dropout of the embedded tokens and before the head.
        drop_path_rate: Stochastic depth of the last block; rises evenly from 0 at the first.
        device: Where to make the parameters.
        dtype: Type of the parameters.
    Raises:
        ValueError: global_pool is unknown, or the mixer is unknown or needs to know the grid.
    """

    def __init__(
        self,
        img_size: int | Grid = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 192,
        depth: int = 24,
        mixer: MixerSpec | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        with torch.device(device or torch.get_default_device()):
            rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
            super().__init__(
                PatchEmbed(img_size, patch_size, stride or patch_size, in_chans, embed_dim),
                [TokenBlock(two_way(mixer, embed_dim), norm="rms", drop_path=rate) for rate in rates],
                RMSNorm(embed_dim),
                in_chans=in_chans,
                num_classes=num_classes,
                global_pool=global_pool,
                drop_rate=drop_rate,
            )
        self.to(device, dtype)


def two_way(spec: MixerSpec | None, d: int, on_grid: bool = False) -> Mixer:
    """The mixer of a block, (b, l, d) to (b, l, d); one that is causal runs both ways, and None is Vim's own.

    Args:
        spec: As `ssmcore.build_mixer` takes it.
        d: Channels.
        on_grid: Whether the tokens are a grid and nothing else.
    Raises:
        ValueError: The mixer needs to know the grid, and a class token stands in it.
    """
    if spec is None:
        return RoutedMamba(d)
    mixer = build_mixer(spec, d)
    if mixer.needs and not on_grid:
        raise ValueError(
            f"Vim: mixer {type(mixer).__name__} needs {sorted(mixer.needs)}, but tokens with cls are no grid"
        )
    return Bidirectional(d, BidirectionalConfig(mixer=spec, combine="mean")) if mixer.causal else mixer


_WEIGHTS = {
    r"layers\.(\d+)\.mixer\.conv1d(_b)?\.": r"blocks.\1.mixer.convs.{way}.",
    r"layers\.(\d+)\.mixer\.(x_proj|dt_proj)(_b)?\.": r"blocks.\1.mixer.scans.{way}.\2.",
    r"layers\.(\d+)\.mixer\.A(_b)?_log$": r"blocks.\1.mixer.scans.{way}.A_log",
    r"layers\.(\d+)\.mixer\.D(_b)?$": r"blocks.\1.mixer.scans.{way}.D",
    r"layers\.(\d+)\.": r"blocks.\1.",
    r"norm_f\.": "norm.",
}
"""Upstream's names to ours; {way} is 1 where upstream says _b (the reversed direction), else 0."""


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights by this module's names from what upstream, or this package, saved.

    Args:
        state_dict: Upstream's checkpoint or the weights in it. `layers.*.mixer` has the reversed direction under "_b".
        model: The Vim that will hold them; positions are resampled to its grid, from a square one.
    Returns:
        Tensors by name.
    Raises:
        ValueError: It holds no tensors.
    """
    weights = {}
    for name, value in unwrap(state_dict).items():
        for pattern, ours in _WEIGHTS.items():
            if match := re.match(pattern, name):
                way = str(int("_b" in match.groups()))
                name = match.expand(ours.replace("{way}", way)) + name[match.end() :]
                break
        weights[name] = value
    return fit_positions(weights, model)


def _cfg(**overrides: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_name": "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
        "paper_ids": "arXiv:2401.09417",
        "origin_url": "https://github.com/hustvl/Vim",
        **overrides,
    }


def _hub(size: str, filename: str) -> dict[str, Any]:
    return _cfg(hf_hub_id=f"hustvl/Vim-{size}-midclstok", hf_hub_filename=filename)


default_cfgs = generate_default_cfgs(
    {
        "vim_tiny_patch16_224.in1k": _hub("tiny", "vim_t_midclstok_76p1acc.pth"),
        "vim_small_patch16_224.in1k": _hub("small", "vim_s_midclstok_80p5acc.pth"),
        "vim_base_patch16_224.in1k": _hub("base", "vim_b_midclstok_81p9acc.pth"),
        "vim_tiny_patch16_stride8_224.in1k": _hub("tiny", "vim_t_midclstok_ft_78p3acc.pth"),
        "vim_small_patch16_stride8_224.in1k": _hub("small", "vim_s_midclstok_ft_81p6acc.pth"),
        "vim_base_patch16_stride8_224.untrained": _cfg(),
    }
)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti: 7 M parameters, 197 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return build(Vim, "vim_tiny_patch16_224", pretrained, kwargs, embed_dim=192)


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S: 26 M parameters, 197 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return build(Vim, "vim_small_patch16_224", pretrained, kwargs, embed_dim=384)


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B: 98 M parameters, 197 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return build(Vim, "vim_base_patch16_224", pretrained, kwargs, embed_dim=768)


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti+: overlapping patches, 730 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return build(Vim, "vim_tiny_patch16_stride8_224", pretrained, kwargs, embed_dim=192, stride=8)


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S+: overlapping patches, 730 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return build(Vim, "vim_small_patch16_stride8_224", pretrained, kwargs, embed_dim=384, stride=8)


@register_model
def vim_base_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B with overlapping patches, 730 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return build(Vim, "vim_base_patch16_stride8_224", pretrained, kwargs, embed_dim=768, stride=8)
