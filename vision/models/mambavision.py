"""MambaVision: convolutions where the map is large, then windows in which Mamba mixes first and attention last.

    stages 1, 2   x = x + norm(conv(gelu(norm(conv x))))
    stages 3, 4   in windows of 14 x 14 and 7 x 7: the first half of the blocks with the mixer below, the rest with
                  attention, each followed by an MLP

    x, z = halves of in_proj u
    y = out_proj [scan(silu(conv x)), silu(conv z)]            both convolutions are symmetric, and nothing is gated

Written from the paper: the authors' code is not free, and their weights may not be used commercially. Their model adds
the bias of dt twice; `checkpoint_filter_fn` doubles it instead.

b batch (of windows, in a mixer), l tokens, d channels, h and w the sides of a map.
Source: Hatamizadeh & Kautz 2024, MambaVision, sec. 3 and table of configurations.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn

from ssmcore import build_mixer
from ssmcore.array_types import Tokens
from ssmcore.mixer import Context, Mixer, ParamSpec
from ssmcore.mixers import MixerSpec
from ssmcore.mixers.attention import Attention, AttentionConfig
from ssmcore.selective import SelectiveScan
from ssmcore.state import State

from .blocks import Map, TransformerBlock
from .checkpoint import unwrap
from .factory import build
from .pyramid import Pyramid, Stage


@dataclass(frozen=True, kw_only=True)
class SplitMambaConfig:
    """Options of MambaVision's mixer."""

    d_state: int = 8
    """State size of a channel, n."""
    d_conv: int = 3
    """Width of the convolutions, in tokens; odd."""


class SplitMamba(Mixer):
    """MambaVision's mixer: one half of the channels is scanned, the other only convolved, (b, l, d) to (b, l, d).

    Raises:
        ValueError: d is odd or the convolution's width is even.
    """

    Config = SplitMambaConfig
    causal = recurrent = takes_rows = False
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: SplitMambaConfig | None = None):
        super().__init__(d_model, config)
        c: SplitMambaConfig = self.config
        if d_model % 2 or c.d_conv % 2 == 0:
            raise ValueError(f"SplitMamba: d_model={d_model}, d_conv={c.d_conv}, expected an even and an odd number")
        half = d_model // 2
        self.in_proj = nn.Linear(d_model, d_model, bias=False)
        self.conv_x = nn.Conv1d(half, half, c.d_conv, padding=c.d_conv // 2, groups=half, bias=False)
        self.conv_z = nn.Conv1d(half, half, c.d_conv, padding=c.d_conv // 2, groups=half, bias=False)
        self.scan = SelectiveScan(half, dt_rank=math.ceil(d_model / 16), d_state=c.d_state)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles, skip and step bias do not decay. No shapes, raises nothing."""
        return {f"scan.{name}": ParamSpec(decay=False) for name in self.scan.no_decay()}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """Scan and convolve, (b, l, d); see Mixer.mix. Raises nothing of its own."""
        u, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        u, z = (F.silu(conv(part)).transpose(1, 2) for conv, part in ((self.conv_x, u), (self.conv_z, z)))
        return self.out_proj(torch.cat([self.scan(u), z], -1)), None


class ConvBlock(nn.Module):
    """A residual pair of convolutions on a map, (b, h, w, d) to (b, h, w, d). Raises nothing."""

    def __init__(self, d: int, drop_path: float):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(d, d, 3, padding=1), nn.BatchNorm2d(d)
        self.conv2, self.norm2 = nn.Conv2d(d, d, 3, padding=1), nn.BatchNorm2d(d)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Map) -> Map:
        """Add the branch. Raises nothing."""
        y = x.permute(0, 3, 1, 2)
        y = F.gelu(self.norm1(self.conv1(y)), approximate="tanh")
        return x + self.drop_path(self.norm2(self.conv2(y)).permute(0, 2, 3, 1))


@register_notrace_function
def cut_windows(x: Map, k: int) -> Tokens:
    """A map (b, h, w, d), filled up with zeros at the right and lower edge, to windows (b rows columns, k k, d).

    Raises nothing.
    """
    b, h, w, d = x.shape
    x = F.pad(x, (0, 0, 0, -w % k, 0, -h % k))
    rows, columns = x.shape[1] // k, x.shape[2] // k
    return x.view(b, rows, k, columns, k, d).transpose(2, 3).reshape(-1, k * k, d)


@register_notrace_function
def join_windows(tokens: Tokens, like: Map, k: int) -> Map:
    """The inverse of `cut_windows`: shape of `like`, (b, h, w, d), without what was filled up. Raises nothing."""
    b, h, w, d = like.shape
    rows, columns = -(-h // k), -(-w // k)
    x = tokens.view(b, rows, columns, k, k, d).transpose(2, 3).reshape(b, rows * k, columns * k, d)
    return x[:, :h, :w]


class WindowStage(Stage):
    """Halve the map and cut it once into windows, in which all blocks run, (b, h, w, d) to (b, h', w', d').

    What fills the map up to whole windows goes through the blocks as tokens do. Raises nothing.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], window: int):
        super().__init__(downsample, blocks)
        self.window = window

    def forward(self, x: Map) -> Map:
        """Run the stage. Raises nothing."""
        x = self.downsample(x)
        return join_windows(self.run(cut_windows(x, self.window), self.window, self.window), x, self.window)


class ConvStem(nn.Module):
    """Images, channel-last, to a map of a quarter of their sides, (b, height, width, c) to (b, h, w, d)."""

    def __init__(self, in_chans: int, hidden: int, d: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(in_chans, hidden, 3, 2, 1, bias=False), nn.BatchNorm2d(hidden, eps=1e-4)
        self.conv2, self.norm2 = nn.Conv2d(hidden, d, 3, 2, 1, bias=False), nn.BatchNorm2d(d, eps=1e-4)

    def forward(self, x: Map) -> Map:
        """Embed. Raises nothing."""
        x = F.relu(self.norm1(self.conv1(x.permute(0, 3, 1, 2))))
        return F.relu(self.norm2(self.conv2(x))).permute(0, 2, 3, 1)


class ConvHalve(nn.Module):
    """A convolution of stride 2 to twice the channels, (b, h, w, d) to (b, h / 2, w / 2, 2 d). Raises nothing."""

    def __init__(self, d: int):
        super().__init__()
        self.conv = nn.Conv2d(d, 2 * d, 3, 2, 1, bias=False)

    def forward(self, x: Map) -> Map:
        """Halve. Raises nothing."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class BatchNorm(nn.Module):
    """Batch normalisation of a channel-last map, (b, h, w, d) to (b, h, w, d). Raises nothing."""

    def __init__(self, d: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(d)

    def forward(self, x: Map) -> Map:
        """Normalise. Raises nothing."""
        return self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MambaVision(Pyramid):
    """MambaVision: images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none, which makes the pooled features the output.
        global_pool: As timm's heads take it: "avg", "max", ... or "" for the map itself.
        depths: Blocks of each stage.
        embed_dim: Channels of the first stage; each further one has twice as many.
        stem_dim: Channels between the two convolutions of the stem.
        num_heads: Attention heads of the last two stages.
        windows: Sides of the windows of the last two stages.
        layer_scale: Initial scale of the branches of the last two stages; None for none.
        mixer: What stands in the first half of their blocks, as `ssmcore.build_mixer` takes it; None is
            MambaVision's own.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last block; rises evenly from 0 at the first.
        device: Where to make the parameters.
        dtype: Type of the parameters.
    Raises:
        ValueError: The mixer is unknown.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (1, 3, 8, 4),
        embed_dim: int = 80,
        stem_dim: int = 32,
        num_heads: Sequence[int] = (8, 16),
        windows: Sequence[int] = (14, 7),
        layer_scale: float | None = None,
        mixer: MixerSpec | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        dims = [embed_dim * 2**s for s in range(4)]
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        with torch.device(device or torch.get_default_device()):
            stages = []
            for s, (depth, d) in enumerate(zip(depths, dims, strict=True)):
                halve = ConvHalve(d // 2) if s else nn.Identity()
                if s < 2:
                    stages.append(Stage(halve, [ConvBlock(d, next(rates)) for _ in range(depth)]))
                    continue
                mixers = [_mixer(mixer, d, num_heads[s - 2], scanned=2 * i < depth) for i in range(depth)]
                blocks = [TransformerBlock(mix, next(rates), layer_scale) for mix in mixers]
                stages.append(WindowStage(halve, blocks, windows[s - 2]))
            super().__init__(
                ConvStem(in_chans, stem_dim, embed_dim),
                stages,
                dims,
                BatchNorm(dims[-1]),
                in_chans=in_chans,
                num_classes=num_classes,
                global_pool=global_pool,
                drop_rate=drop_rate,
            )
        self.to(device, dtype)


def _mixer(spec: MixerSpec | None, d: int, num_heads: int, scanned: bool) -> Mixer:
    if not scanned:
        return Attention(d, AttentionConfig(num_heads=num_heads, rope_base=None, causal=False, bias=True))
    return SplitMamba(d) if spec is None else build_mixer(spec, d)


_NAMES = {
    r"patch_embed\.conv_down\.0\.": "patch_embed.conv1.",
    r"patch_embed\.conv_down\.1\.": "patch_embed.norm1.",
    r"patch_embed\.conv_down\.3\.": "patch_embed.conv2.",
    r"patch_embed\.conv_down\.4\.": "patch_embed.norm2.",
    r"levels\.([01])\.blocks\.(\d+)\.": r"stages.\1.blocks.\2.",
    r"levels\.([23])\.blocks\.(\d+)\.norm1\.": r"stages.\1.blocks.\2.mixer.norm.",
    r"levels\.([23])\.blocks\.(\d+)\.norm2\.": r"stages.\1.blocks.\2.mlp.norm.",
    r"levels\.([23])\.blocks\.(\d+)\.gamma_1$": r"stages.\1.blocks.\2.mixer.gamma",
    r"levels\.([23])\.blocks\.(\d+)\.gamma_2$": r"stages.\1.blocks.\2.mlp.gamma",
    r"levels\.([23])\.blocks\.(\d+)\.mlp\.fc1\.": r"stages.\1.blocks.\2.mlp.mixer.in_proj.",
    r"levels\.([23])\.blocks\.(\d+)\.mlp\.fc2\.": r"stages.\1.blocks.\2.mlp.mixer.out_proj.",
    r"levels\.([23])\.blocks\.(\d+)\.mixer\.conv1d_([xz])\.": r"stages.\1.blocks.\2.mixer.mixer.conv_\3.",
    r"levels\.([23])\.blocks\.(\d+)\.mixer\.(x_proj|dt_proj|A_log|D)\b": r"stages.\1.blocks.\2.mixer.mixer.scan.\3",
    r"levels\.([23])\.blocks\.(\d+)\.mixer\.proj\.": r"stages.\1.blocks.\2.mixer.mixer.out_proj.",
    r"levels\.([23])\.blocks\.(\d+)\.mixer\.": r"stages.\1.blocks.\2.mixer.mixer.",
    r"norm\.(?!norm)": "norm.norm.",
    r"head\.(?!fc)": "head.fc.",
}
"""Upstream's names to ours."""


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights by this module's names from what upstream, or this package, saved.

    Args:
        state_dict: A checkpoint or the weights in it. Upstream's query, key and value maps are one, and its bias of dt
            is added twice: it is doubled here.
        model: The MambaVision that will hold them.
    Returns:
        Tensors by name.
    Raises:
        ValueError: It holds no tensors.
    """
    weights = {}
    for name, value in unwrap(state_dict).items():
        if name.startswith("levels.") and name.endswith("mixer.dt_proj.bias"):
            value = 2 * value
        if match := re.match(r"levels\.(\d+)\.downsample\.", name):  # upstream halves at the end of a stage
            weights[f"stages.{int(match[1]) + 1}.downsample.conv.weight"] = value
            continue
        for pattern, ours in _NAMES.items():
            if match := re.match(pattern, name):
                name = match.expand(ours) + name[match.end() :]
                break
        if ".qkv." in name:
            parts = zip("qkv", value.chunk(3), strict=True)
            weights |= {name.replace(".qkv.", f".{part}_proj."): chunk for part, chunk in parts}
        else:
            weights[name] = value
    return weights


def _cfg(repository: str, **overrides: Any) -> dict[str, Any]:
    return {
        "hf_hub_id": f"nvidia/{repository}",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.conv1",
        "classifier": "head.fc",
        "license": "cc-by-nc-sa-4.0",
        "paper_name": "MambaVision: A Hybrid Mamba-Transformer Vision Backbone",
        "paper_ids": "arXiv:2407.08083",
        "origin_url": "https://github.com/NVlabs/MambaVision",
        **overrides,
    }


default_cfgs = generate_default_cfgs(
    {
        "mambavision_tiny.in1k": _cfg("MambaVision-T-1K"),
        "mambavision_tiny2.in1k": _cfg("MambaVision-T2-1K", crop_pct=0.98),
        "mambavision_small.in1k": _cfg("MambaVision-S-1K", crop_pct=0.93),
        "mambavision_base.in1k": _cfg("MambaVision-B-1K"),
        "mambavision_large.in1k": _cfg("MambaVision-L-1K"),
        "mambavision_large2.in1k": _cfg("MambaVision-L2-1K"),
    }
)


def _create(variant: str, pretrained: bool, depths: Sequence[int], d: int, stem: int, options: Any) -> nn.Module:
    return build(MambaVision, variant, pretrained, options, depths=depths, embed_dim=d, stem_dim=stem)


@register_model
def mambavision_tiny(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T: 32 M parameters, 82.3 % as published. Images (b, 3, height, width); raises TypeError."""
    return _create("mambavision_tiny", pretrained, (1, 3, 8, 4), 80, 32, kwargs)


@register_model
def mambavision_tiny2(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T2: 35 M parameters, 82.7 %. Images (b, 3, height, width); raises TypeError."""
    return _create("mambavision_tiny2", pretrained, (1, 3, 11, 4), 80, 32, kwargs)


@register_model
def mambavision_small(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-S: 50 M parameters, 83.3 %. Images (b, 3, height, width); raises TypeError."""
    return _create("mambavision_small", pretrained, (3, 3, 7, 5), 96, 64, kwargs)


@register_model
def mambavision_base(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-B: 98 M parameters, 84.2 %. Images (b, 3, height, width); raises TypeError."""
    return _create("mambavision_base", pretrained, (3, 3, 10, 5), 128, 64, {"layer_scale": 1e-5, **kwargs})


@register_model
def mambavision_large(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L: 228 M parameters, 85.0 %. Images (b, 3, height, width); raises TypeError."""
    options = {"layer_scale": 1e-5, "num_heads": (16, 32), **kwargs}
    return _create("mambavision_large", pretrained, (3, 3, 10, 5), 196, 64, options)


@register_model
def mambavision_large2(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L2: 242 M parameters, 85.3 %. Images (b, 3, height, width); raises TypeError."""
    options = {"layer_scale": 1e-5, "num_heads": (16, 32), **kwargs}
    return _create("mambavision_large2", pretrained, (3, 3, 12, 5), 196, 64, options)
