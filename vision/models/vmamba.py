"""VMamba: a pyramid of four stages whose blocks scan the map row by row and column by column, both ways.

    x = patch_embed(image)                                        1/4 of the image's side
    stage s: x = downsample(x) (s > 0);  depths[s] times: x = x + mixer(norm(x)), x = x + mlp(norm(x))
    logits = head(mean(norm(x)))

The mixer is `GridMamba`; `mixer=` puts any other in its place. The models "v0" are the first release: a gate, a state
of 16, no MLP, and patches that do not overlap. The others are the second one, named s<expand>l<depth of stage 3>. Maps
are channel-last, (b, h, w, d). Sides that a merging does not divide are padded with a row or column of zeros.

Source: Liu et al. 2024, VMamba, sec. 4; depths and widths as in the released configurations.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from ssm_kernels.checks import check_choice
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from ssmcore import ScanOrder, build_mixer
from ssmcore.blocks import LayerNorm
from ssmcore.channels.mlp import Mlp, MlpConfig
from ssmcore.mixer import Mixer
from ssmcore.mixers import MixerSpec
from ssmcore.mixers.grid_mamba import GridMamba, GridMambaConfig
from ssmcore.wrappers import ScanOrderConfig

from .blocks import Map, MapBlock
from .checkpoint import unwrap
from .factory import build
from .pyramid import Pyramid, Stage, init_linear

Embedding = Literal["overlapping", "separate"]
"""overlapping: convolutions of side 3 and stride 2.  separate: patches of 4 x 4, then merging of 2 x 2 cells."""


class ConvNorm(nn.Module):
    """A convolution and a LayerNorm over the channels, (b, h, w, c) to (b, h', w', d). Raises nothing."""

    def __init__(self, in_chans: int, out_chans: int, side: int, stride: int, padding: int, eps: float = 1e-5):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, side, stride, padding)
        self.norm = LayerNorm(out_chans, eps=eps)

    def forward(self, x: Map) -> Map:
        """Convolve and normalise, (b, h, w, c) to (b, h', w', d). Raises nothing."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@register_notrace_module
class PatchMerging(nn.Module):
    """Four cells to one, (b, h, w, d) to (b, h / 2, w / 2, 2 d), odd sides rounded up. Raises nothing.

    Source: Liu et al. 2021, Swin Transformer, sec. 3.1.
    """

    def __init__(self, d: int):
        super().__init__()
        self.norm = LayerNorm(4 * d)
        self.reduction = nn.Linear(4 * d, 2 * d, bias=False)

    def forward(self, x: Map) -> Map:
        """Merge. Raises nothing."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class VMamba(Pyramid):
    """VMamba: images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none, which makes the pooled features the output.
        global_pool: As timm's heads take it: "avg", "max", ... or "" for the map itself.
        depths: Blocks of each stage.
        embed_dim: Channels of the first stage; each further one has twice as many.
        mixer: Options of `GridMamba`; or what `ssmcore.build_mixer` takes, which then runs along VMamba's four orders
            if it is causal; or a list of these, one for each block.
        mlp_ratio: Hidden channels of the MLP in multiples of the stage's; 0 for no MLP.
        embedding: How patches are cut and merged.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last block; rises evenly from 0 at the first.
        device: Where to make the parameters.
        dtype: Type of the parameters.
    Raises:
        ValueError: The embedding or the mixer is unknown.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (2, 2, 8, 2),
        embed_dim: int = 96,
        mixer: GridMambaConfig | MixerSpec | Sequence[MixerSpec] | None = None,
        mlp_ratio: float = 4.0,
        embedding: Embedding = "overlapping",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_choice("VMamba", "embedding", embedding, get_args(Embedding))
        dims = [embed_dim * 2**s for s in range(len(depths))]
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        mixers = iter(mixer if isinstance(mixer, (list, tuple)) else [mixer] * sum(depths))
        with torch.device(device or torch.get_default_device()):
            stages = []
            for s, (depth, d) in enumerate(zip(depths, dims, strict=True)):
                blocks = [_block(d, next(mixers), mlp_ratio, next(rates)) for _ in range(depth)]
                stages.append(Stage(_downsample(embedding, d // 2) if s else nn.Identity(), blocks))
            super().__init__(
                _patch_embed(embedding, in_chans, embed_dim),
                stages,
                dims,
                LayerNorm(dims[-1]),
                reductions=[4 * 2**s for s in range(len(dims))],
                in_chans=in_chans,
                num_classes=num_classes,
                global_pool=global_pool,
                drop_rate=drop_rate,
            )
        self.embedding = embedding
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and ".scans." not in name:
                init_linear(module)  # steps and poles have initialised themselves
        self.to(device, dtype)


def _patch_embed(embedding: Embedding, in_chans: int, d: int) -> nn.Sequential:
    if embedding == "separate":
        return nn.Sequential(ConvNorm(in_chans, d, 4, 4, 0))
    return nn.Sequential(ConvNorm(in_chans, d // 2, 3, 2, 1), nn.GELU(), ConvNorm(d // 2, d, 3, 2, 1))


def _downsample(embedding: Embedding, d: int) -> nn.Module:
    return PatchMerging(d) if embedding == "separate" else ConvNorm(d, 2 * d, 3, 2, 1)


def _block(d: int, mixer: GridMambaConfig | MixerSpec | None, mlp_ratio: float, drop_path: float) -> nn.Sequential:
    branches: list[Mixer] = [on_grid(mixer, d)]
    if mlp_ratio:
        branches.append(Mlp(d, MlpConfig(expand=mlp_ratio)))
    return nn.Sequential(*(MapBlock(branch, norm="layer", drop_path=drop_path) for branch in branches))


def on_grid(spec: GridMambaConfig | MixerSpec | None, d: int) -> Mixer:
    """The mixer of a block on a map, (b, h w, d) to (b, h w, d); one that is causal runs along VMamba's four orders.

    Args:
        spec: Options of GridMamba, or what `ssmcore.build_mixer` takes; None is GridMamba.
        d: Channels.
    Raises:
        ValueError: The mixer is unknown.
    """
    if spec is None or isinstance(spec, GridMambaConfig):
        return GridMamba(d, spec)
    mixer = build_mixer(spec, d)
    return ScanOrder(d, ScanOrderConfig(mixer=spec)) if mixer.causal else mixer


_STEM = {"overlapping": {"0": "0.conv", "2": "0.norm", "5": "2.conv", "7": "2.norm"}}
_STEM["separate"] = {"0": "0.conv", "2": "0.norm", "proj": "0.conv", "norm": "0.norm"}
_DOWNSAMPLE = {
    "overlapping": {"1": "conv", "3": "norm"},
    "separate": {"1": "norm", "2": "reduction", "norm": "norm", "reduction": "reduction"},
}
_BRANCHES = {
    "norm": "0.norm",
    "ln_1": "0.norm",
    "op": "0.mixer",
    "self_attention": "0.mixer",
    "norm2": "1.norm",
    "mlp.fc1": "1.mixer.in_proj",
    "mlp.fc2": "1.mixer.out_proj",
}
"""Upstream's names to ours: by place in a Sequential, or as the first release called them."""


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights by this module's names from what upstream, in any of its releases, or this package saved.

    Args:
        state_dict: A checkpoint or the weights in it. Upstream stacks the weights of the four routes.
        model: The VMamba that will hold them.
    Returns:
        Tensors by name.
    Raises:
        ValueError: It holds no tensors.
    """
    weights = unwrap(state_dict)
    if "stages.0.blocks.0.0.norm.weight" in weights:
        return weights
    mapped = {}
    for name, value in weights.items():
        name = _our_name(name, model.embedding)
        if ".blocks." in name and value.ndim == 4 and ".conv2d." not in name:
            value = value.flatten(1)  # a linear map that was saved as a convolution of side 1
        mapped |= _per_route(name, value) if ".0.mixer." in name else {name: value}
    return mapped


def _our_name(name: str, embedding: Embedding) -> str:
    if match := re.match(r"patch_embed\.(\w+)\.", name):
        return f"patch_embed.{_STEM[embedding].get(match[1], match[1])}.{name[match.end() :]}"
    if match := re.match(r"layers\.(\d+)\.downsample\.(\w+)\.", name):
        place = _DOWNSAMPLE[embedding].get(match[2], match[2])
        return f"stages.{int(match[1]) + 1}.downsample.{place}.{name[match.end() :]}"
    if match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.(mlp\.fc\d|\w+)\.", name):
        place = _BRANCHES.get(match[3], match[3])
        return f"stages.{match[1]}.blocks.{match[2]}.{place}.{name[match.end() :]}"
    if match := re.match(r"(classifier\.)?(norm|head)\.", name):
        return f"{'head.fc' if match[2] == 'head' else 'norm'}.{name[match.end() :]}"
    return name


def _per_route(name: str, value: Tensor) -> dict[str, Tensor]:
    """The four routes' parts of a weight that upstream stacks: (4, ...) or (4 d, ...), with or without conv axes."""
    at, _, key = name.partition(".0.mixer.")
    at = f"{at}.0.mixer."
    stacked = {
        "x_proj_weight": "x_proj.weight",
        "x_proj.weight": "x_proj.weight",
        "dt_projs_weight": "dt_proj.weight",
        "dt_projs.weight": "dt_proj.weight",
        "dt_projs_bias": "dt_proj.bias",
        "A_logs": "A_log",
        "Ds": "D",
    }
    if key not in stacked:
        return {name: value}
    ours = stacked[key]
    parts = value.reshape(4, -1) if ours in ("dt_proj.bias", "D") else _matrices(value)
    return {f"{at}scans.{route}.{ours}": part for route, part in enumerate(parts)}


def _matrices(value: Tensor) -> Tensor:
    """(4, i, j) of it, of (4 i, j) or of (4 i, j, 1)."""
    if value.shape[0] == 4 and value.ndim == 3:
        return value
    return value.reshape(4, value.shape[0] // 4, value.shape[1])


def _cfg(file: str, **overrides: Any) -> dict[str, Any]:
    return {
        "url": f"https://github.com/MzeroMiko/VMamba/releases/download/%23{file}.pth",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.0.conv",
        "classifier": "head.fc",
        "license": "mit",
        "paper_name": "VMamba: Visual State Space Model",
        "paper_ids": "arXiv:2401.10166",
        "origin_url": "https://github.com/MzeroMiko/VMamba",
        **overrides,
    }


default_cfgs = generate_default_cfgs(
    {
        "vmamba_tiny_s1l8.in1k": _cfg("v2cls/vssm1_tiny_0230s_ckpt_epoch_264"),
        "vmamba_tiny_s2l5.in1k": _cfg("v2cls/vssm_tiny_0230_ckpt_epoch_262"),
        "vmamba_small_s2l15.in1k": _cfg("v2cls/vssm_small_0229_ckpt_epoch_222"),
        "vmamba_small_s1l20.in1k": _cfg("v2cls/vssm1_small_0229s_ckpt_epoch_240"),
        "vmamba_base_s2l15.in1k": _cfg("v2cls/vssm_base_0229_ckpt_epoch_237"),
        "vmamba_base_s1l20.in1k": _cfg("v2cls/vssm1_base_0229s_ckpt_epoch_225"),
        "vmamba_tiny_v0.in1k": _cfg("v0cls/vssmtiny_dp01_ckpt_epoch_292"),
        "vmamba_small_v0.in1k": _cfg("v0cls/vssmsmall_dp03_ckpt_epoch_238"),
        "vmamba_base_v0.in1k": _cfg("v0cls/vssmbase_dp06_ckpt_epoch_241"),
    }
)


def _second(variant: str, pretrained: bool, expand: float, depth: int, embed_dim: int, options: Any) -> nn.Module:
    """A model of the second release."""
    mixer = GridMambaConfig(d_state=1, expand=expand, gate=False, conv_bias=False)
    return build(VMamba, variant, pretrained, options, depths=(2, 2, depth, 2), embed_dim=embed_dim, mixer=mixer)


def _first(variant: str, pretrained: bool, depth: int, embed_dim: int, options: Any) -> nn.Module:
    """A model of the first release."""
    sizes: dict[str, Any] = {"depths": (2, 2, depth, 2), "embed_dim": embed_dim}
    return build(VMamba, variant, pretrained, options, **sizes, mlp_ratio=0, embedding="separate")


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T: 30 M parameters, 82.6 % as published. Images (b, 3, height, width); raises TypeError."""
    return _second("vmamba_tiny_s1l8", pretrained, 1.0, 8, 96, kwargs)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T, wider and shallower: 31 M, 82.5 %. Images (b, 3, height, width); raises TypeError."""
    return _second("vmamba_tiny_s2l5", pretrained, 2.0, 5, 96, kwargs)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S: 50 M parameters, 83.6 %. Images (b, 3, height, width); raises TypeError."""
    return _second("vmamba_small_s2l15", pretrained, 2.0, 15, 96, kwargs)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S, narrower and deeper: 49 M, 83.3 %. Images (b, 3, height, width); raises TypeError."""
    return _second("vmamba_small_s1l20", pretrained, 1.0, 20, 96, kwargs)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B: 89 M parameters, 83.9 %. Images (b, 3, height, width); raises TypeError."""
    return _second("vmamba_base_s2l15", pretrained, 2.0, 15, 128, kwargs)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B, narrower and deeper: 87 M, 83.8 %. Images (b, 3, height, width); raises TypeError."""
    return _second("vmamba_base_s1l20", pretrained, 1.0, 20, 128, kwargs)


@register_model
def vmamba_tiny_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """The first release's T: 23 M parameters, 82.2 %. Images (b, 3, height, width); raises TypeError."""
    return _first("vmamba_tiny_v0", pretrained, 9, 96, kwargs)


@register_model
def vmamba_small_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """The first release's S: 44 M parameters, 83.5 %. Images (b, 3, height, width); raises TypeError."""
    return _first("vmamba_small_v0", pretrained, 27, 96, kwargs)


@register_model
def vmamba_base_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """The first release's B: 76 M parameters, 83.7 %. Images (b, 3, height, width); raises TypeError."""
    return _first("vmamba_base_v0", pretrained, 27, 128, kwargs)
