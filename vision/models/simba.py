"""SiMBA: a pyramid whose blocks are a plain Mamba in raster order and a channel mixer, EinFFT or an MLP.

    block    x = x + mamba(norm(x));   x = x + channel_mixer(norm(x));   a norm after each stage but the last
    logits   head(norm(c)) + max over the map of aux(norm(x)) / 2,   c = block(mean of the map), a sequence of one

The channel mixers: "mlp" has a depthwise convolution between its maps, "einfft" is a small complex network on the
Fourier transform over tokens (ssmcore/channels/einfft.py), "monarch" the MLP of two block-diagonal factors. The sources
give the structure of the first two, and the models have their parameter counts to the printed digit. Of the third they
give counts only (18.5, 26.9 and 42 M); ours have 17.7, 26.5 and 43.1 M. Written from the paper and from WaveViT, whose
stem, stages and head SiMBA keeps: upstream has neither a licence nor published weights, and was not read.

The auxiliary head is trained by token labels (`forward_token_labels`); without them it learns through the maximum.

b batch, h and w the sides of a map, d channels.
Source: Patro & Agneeswaran 2024, SiMBA, arXiv 2403.15360; Yao et al. 2022, Wave-ViT; Jiang et al. 2021, Token labeling.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from ssm_kernels.checks import check_choice
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ssmcore import build_mixer
from ssmcore.array_types import Float, Tokens
from ssmcore.blocks import LayerNorm
from ssmcore.channels.einfft import EinFFT
from ssmcore.channels.mlp import Mlp, MlpConfig
from ssmcore.channels.monarch import MonarchMlp, MonarchMlpConfig
from ssmcore.mixer import Context, Mixer
from ssmcore.mixers import MixerSpec
from ssmcore.mixers.mamba import Mamba, MambaConfig
from ssmcore.state import State

from .blocks import Map, MapBlock
from .checkpoint import unwrap
from .factory import build
from .pyramid import Pyramid, Stage
from .vmamba import ConvNorm

ChannelMixer = Literal["mlp", "einfft", "monarch"]
"""What mixes the channels of a block."""


@dataclass(frozen=True, kw_only=True)
class ConvMlpConfig:
    """Options of the MLP with a convolution."""

    expand: float = 4.0
    """Hidden channels, in multiples of d_model."""


class ConvMlp(Mixer):
    """out_proj gelu(conv(in_proj x)) with a depthwise 3 x 3 convolution, (b, h w, d) to (b, h w, d).

    Needs shared["grid"]. Raises nothing of its own.
    """

    Config = ConvMlpConfig
    causal = recurrent = takes_rows = False
    needs = frozenset({"grid"})

    def __init__(self, d_model: int, config: ConvMlpConfig | None = None):
        super().__init__(d_model, config)
        hidden = int(self.config.expand * d_model)
        self.in_proj = nn.Linear(d_model, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.out_proj = nn.Linear(hidden, d_model)

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """Mix, (b, h w, d); see Mixer.mix. Raises KeyError without a grid."""
        grid = tuple((ctx.shared or {})["grid"])
        y = self.in_proj(x).unflatten(1, grid).permute(0, 3, 1, 2)
        return self.out_proj(F.gelu(self.conv(y)).permute(0, 2, 3, 1).flatten(1, 2)), None


class SimbaStem(nn.Module):
    """Images, channel-last, to a map of a quarter of their sides, (b, height, width, c) to (b, h, w, d).

    Raises nothing.
    """

    def __init__(self, in_chans: int, hidden: int, d: int):
        super().__init__()
        layers: list[nn.Module] = []
        for chans, side, stride in ((in_chans, 7, 2), (hidden, 3, 1), (hidden, 3, 1)):
            layers += [nn.Conv2d(chans, hidden, side, stride, side // 2, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
        self.convs = nn.Sequential(*layers)
        self.proj = ConvNorm(hidden, d, 3, 2, 1)

    def forward(self, x: Map) -> Map:
        """Embed. Raises nothing."""
        return self.proj(self.convs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class NormStage(Stage):
    """A stage and a norm after its blocks, (b, h, w, d) to (b, h', w', d'). Raises nothing."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], d: int):
        super().__init__(downsample, blocks)
        self.norm = LayerNorm(d, eps=1e-6)

    def forward(self, x: Map) -> Map:
        """Run the stage. Raises nothing."""
        return self.norm(super().forward(x))


class TokenHead(nn.Module):
    """A class token made of the map's mean, and its logits and those of the map's cells, (b, h, w, d) to (b, classes).

    Args:
        block: What the class token runs through, as a map of one cell.
        d: Channels.
        num_classes: Classes; 0 for none, which makes the class token the output.
        global_pool: "token", "avg" (mean of the map, without the block) or "" (the map itself).
        drop_rate: Dropout before the heads.
    Raises:
        ValueError: global_pool is unknown.
    """

    def __init__(self, block: nn.Module, d: int, num_classes: int, global_pool: str, drop_rate: float):
        super().__init__()
        self.d, self.block, self.norm = d, block, LayerNorm(d, eps=1e-6)
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        """New heads: classes (0 for none), and how to pool. No shapes.

        Raises:
            ValueError: global_pool is unknown.
        """
        if global_pool is not None:
            check_choice("TokenHead", "global_pool", global_pool, ("token", "avg", ""))
            self.global_pool = global_pool
        self.fc = nn.Linear(self.d, num_classes) if num_classes else nn.Identity()
        # Only the class token has an auxiliary voice of the cells beside it.
        voices = bool(num_classes) and self.global_pool == "token"
        self.aux = nn.Linear(self.d, num_classes) if voices else None
        for linear in (self.fc, self.aux):
            if isinstance(linear, nn.Linear):
                trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Map, pre_logits: bool = False) -> Tensor:
        """Logits (b, classes), or with pre_logits what is classified. Raises nothing."""
        if self.global_pool == "token":
            pooled = self.token(x)
        else:
            pooled = self.norm(x).mean((1, 2)) if self.global_pool == "avg" else x
        pooled = self.drop(pooled)
        if pre_logits:
            return pooled
        logits = self.fc(pooled)
        return logits if self.aux is None else logits + 0.5 * self.aux(self.norm(x)).amax((1, 2))

    def token(self, x: Map) -> Float[Tensor, "b d"]:
        """The class token after its block and norm, shape (b, d). Raises nothing."""
        return self.norm(self.block(x.mean((1, 2), keepdim=True)))[:, 0, 0]


class SiMBA(Pyramid):
    """SiMBA: images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none, which makes the class token the output.
        global_pool: "token" (class token and auxiliary head), "avg" or "" (the map).
        depths: Blocks of each stage.
        dims: Channels of each stage.
        stem_dim: Channels inside the stem.
        channel_mixer: What mixes the channels.
        mlp_ratios: Hidden channels of an MLP in multiples of the stage's, a stage.
        mixer: What mixes the tokens, as `ssmcore.build_mixer` takes it, in raster order; None is Mamba with 64 states.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last block; rises evenly from 0 at the first.
        device: Where to make the parameters.
        dtype: Type of the parameters.
    Raises:
        ValueError: channel_mixer, global_pool or the mixer is unknown.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        depths: Sequence[int] = (3, 4, 6, 3),
        dims: Sequence[int] = (64, 128, 320, 448),
        stem_dim: int = 32,
        channel_mixer: ChannelMixer = "einfft",
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        mixer: MixerSpec | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_choice("SiMBA", "channel_mixer", channel_mixer, get_args(ChannelMixer))
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        with torch.device(device or torch.get_default_device()):
            stages = []
            for s, (depth, d, ratio) in enumerate(zip(depths, dims, mlp_ratios, strict=True)):
                made = [_branches(d, mixer, _channel_mixer(channel_mixer, d, ratio), next(rates)) for _ in range(depth)]
                down = ConvNorm(dims[s - 1], d, 3, 2, 1) if s else nn.Identity()
                last = s == len(depths) - 1  # whose norm is the head's, after the class token is made
                stages.append(Stage(down, made) if last else NormStage(down, made, d))
            d = dims[-1]
            # A sequence of one has no neighbours: its MLP needs no convolution.
            alone = Mlp(d, MlpConfig(expand=4.0)) if channel_mixer == "mlp" else _channel_mixer(channel_mixer, d, 4.0)
            head = TokenHead(_branches(d, mixer, alone, 0.0), d, num_classes, global_pool, drop_rate)
            super().__init__(
                SimbaStem(in_chans, stem_dim, dims[0]),
                stages,
                dims,
                nn.Identity(),
                in_chans=in_chans,
                num_classes=num_classes,
                global_pool=global_pool,
                drop_rate=drop_rate,
                head=head,
            )
        self.to(device, dtype)

    def forward_token_labels(self, x: Float[Tensor, "b c height width"]) -> tuple[Tensor, Tensor]:
        """Logits of the class token, (b, classes), and of every cell of the last map, (b, h, w, classes).

        Raises:
            ValueError: The model has no auxiliary head.
        """
        if self.head.aux is None:
            raise ValueError('forward_token_labels: the model has no auxiliary head, expected global_pool="token"')
        x = self.forward_features(x)
        return self.head.fc(self.head.token(x)), self.head.aux(self.head.norm(x))


def _branches(d: int, mixer: MixerSpec | None, channels: Mixer, drop_path: float) -> nn.Sequential:
    tokens = Mamba(d, MambaConfig(d_state=64)) if mixer is None else build_mixer(mixer, d)
    branches = nn.Sequential(*(MapBlock(part, norm="layer", drop_path=drop_path) for part in (tokens, channels)))
    branches[1].norm.eps = 1e-6
    return branches


def _channel_mixer(name: ChannelMixer, d: int, ratio: float) -> Mixer:
    if name == "mlp":
        return ConvMlp(d, ConvMlpConfig(expand=ratio))
    return EinFFT(d) if name == "einfft" else MonarchMlp(d, MonarchMlpConfig(expand=ratio))


_NAMES = {
    r"patch_embed1\.conv\.": "patch_embed.convs.",
    r"patch_embed1\.proj\.": "patch_embed.proj.conv.",
    r"patch_embed1\.norm\.": "patch_embed.proj.norm.",
    r"patch_embed(\d)\.proj\.": "stages.{}.downsample.conv.",
    r"patch_embed(\d)\.norm\.": "stages.{}.downsample.norm.",
    r"block(\d)\.": "stages.{}.blocks.",
    r"norm([123])\.": "stages.{}.norm.",
    r"norm4\.": "head.norm.",
    r"post_network\.0\.": "head.block.",
    r"head\.(?=weight|bias)": "head.fc.",
    r"aux_head\.": "head.aux.",
}
_BRANCHES = {
    ".attn.norm.": ".0.norm.",
    ".attn.mamba.": ".0.mixer.",
    ".norm2.": ".1.norm.",
    ".mlp.fc1.": ".1.mixer.in_proj.",
    ".mlp.fc2.": ".1.mixer.out_proj.",
    ".mlp.dwconv.dwconv.": ".1.mixer.conv.",
    ".mlp.complex_": ".1.mixer.complex_",
}
"""Names of WaveViT, with a Mamba in a layer with its own norm, to ours; {} is the stage, counted from 0."""


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights by this module's names from what this package, or code with WaveViT's names, saved.

    Args:
        state_dict: A checkpoint or the weights in it.
        model: The SiMBA that will hold them.
    Returns:
        Tensors by name.
    Raises:
        ValueError: It holds no tensors.
    """
    weights = {}
    for name, value in unwrap(state_dict).items():
        for pattern, ours in _NAMES.items():
            if match := re.match(pattern, name):
                stage = int(match[1]) - 1 if match.groups() else ""
                name = ours.format(stage) + name[match.end() :]
                break
        for theirs, ours in _BRANCHES.items():
            name = name.replace(theirs, ours)
        weights[name] = value
    return weights


def _cfg(**overrides: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.convs.0",
        "classifier": ("head.fc", "head.aux"),
        "license": "apache-2.0",
        "paper_name": "SiMBA: Simplified Mamba-Based Architecture for Vision and Multivariate Time Series",
        "paper_ids": "arXiv:2403.15360",
        **overrides,
    }


SIZES: dict[str, dict[str, Any]] = {
    "small": {"dims": (64, 128, 320, 448), "depths": (3, 4, 6, 3), "stem_dim": 32},
    "base": {"dims": (64, 128, 320, 512), "depths": (3, 4, 12, 3), "stem_dim": 64},
    "large": {"dims": (96, 192, 384, 512), "depths": (3, 6, 18, 3), "stem_dim": 64},
}
default_cfgs = generate_default_cfgs(
    {f"simba_{size}_{mixer}.untrained": _cfg() for size in SIZES for mixer in get_args(ChannelMixer)}
)


def _create(size: str, mixer: ChannelMixer, pretrained: bool, options: Any) -> nn.Module:
    return build(SiMBA, f"simba_{size}_{mixer}", pretrained, options, **SIZES[size], channel_mixer=mixer)


@register_model
def simba_small_mlp(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-S with MLPs: 27 M parameters, 84.0 % as published. Images (b, 3, height, width); raises TypeError."""
    return _create("small", "mlp", pretrained, kwargs)


@register_model
def simba_small_einfft(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-S with EinFFT: 15 M parameters, 81.7 %. Images (b, 3, height, width); raises TypeError."""
    return _create("small", "einfft", pretrained, kwargs)


@register_model
def simba_small_monarch(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-S with Monarch maps: 18 M parameters. Images (b, 3, height, width); raises TypeError."""
    return _create("small", "monarch", pretrained, kwargs)


@register_model
def simba_base_mlp(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-B with MLPs: 40 M parameters, 84.7 %. Images (b, 3, height, width); raises TypeError."""
    return _create("base", "mlp", pretrained, kwargs)


@register_model
def simba_base_einfft(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-B with EinFFT: 23 M parameters, 83.5 %. Images (b, 3, height, width); raises TypeError."""
    return _create("base", "einfft", pretrained, kwargs)


@register_model
def simba_base_monarch(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-B with Monarch maps: 27 M parameters. Images (b, 3, height, width); raises TypeError."""
    return _create("base", "monarch", pretrained, kwargs)


@register_model
def simba_large_mlp(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-L with MLPs: 67 M parameters, unstable in training, by the paper. Images (b, 3, height, width)."""
    return _create("large", "mlp", pretrained, kwargs)


@register_model
def simba_large_einfft(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-L with EinFFT: 37 M parameters, 83.9 %. Images (b, 3, height, width); raises TypeError."""
    return _create("large", "einfft", pretrained, kwargs)


@register_model
def simba_large_monarch(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-L with Monarch maps: 43 M parameters. Images (b, 3, height, width); raises TypeError."""
    return _create("large", "monarch", pretrained, kwargs)
