"""PlainMamba: one map at 1/16 of the image's side, scanned along four snakes that know which way they go.

    x = patch_embed(image) + positions;   depth times: x = x + mixer(norm(x));   logits = head(mean(norm(x)))

    u, z = in_proj x;   u = silu(conv2d u);   dt, B, C = project u
    y = sum over four routes r of scan(u along r, dt, B + D_r, C) back to its place
    out = out_proj(y silu(z))

The routes are rows in turn from the left and the right, columns in turn down and up, and both backwards. D_r[t] is the
learned vector of the direction in which step t enters its token: start, right, left, up or down. All routes share
their weights. As in the published model, whose weights have learned it so, dt, B and C stay in row-major order while u
follows the route. That model adds the bias of dt twice; `checkpoint_filter_fn` doubles it instead.

b batch, l = h w tokens, h and w the sides of the map, d channels, n state size.
Source: Yang et al. 2024, PlainMamba, sec. 3.
"""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from ssmcore import ScanOrder, build_mixer
from ssmcore.array_types import Float, Int, Tokens
from ssmcore.blocks import LayerNorm
from ssmcore.mixer import Context, Mixer, ParamSpec
from ssmcore.mixers import MixerSpec
from ssmcore.orders import inverse, order
from ssmcore.selective import SelectiveScan
from ssmcore.state import State
from ssmcore.wrappers import ScanOrderConfig

from .blocks import Map, TokenBlock
from .checkpoint import unwrap
from .factory import build
from .pyramid import init_linear
from .tokens import Grid, TokenModel, fit_positions


@functools.lru_cache(maxsize=64)
def snake_routes(h: int, w: int) -> Int[Tensor, "3 4 l"]:
    """Four routes over a grid, on the CPU: orders, their inverses, and the direction in which each step enters.

    Args:
        h: Rows.
        w: Columns.
    Returns:
        int64, shape (3, 4, h * w); directions are 0 start, 1 right, 2 left, 3 up, 4 down. Kept: do not write into it.
    Raises:
        ValueError: h < 1 or w < 1.
    """
    rows, columns = order("snake", h, w), order("snake_column", h, w)
    orders = torch.stack([rows, rows.flip(0), columns, columns.flip(0)])
    down, right = torch.diff(orders // w), torch.diff(orders % w)
    entered = (right == 1) * 1 + (right == -1) * 2 + (down == -1) * 3 + (down == 1) * 4
    return torch.stack([orders, torch.stack([inverse(o) for o in orders]), F.pad(entered, (1, 0))])


@torch.library.custom_op("vision::snake_routes", mutates_args=())
def _snake_routes(like: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """The routes on the device of `like`: an operator, so that compilers do not look inside."""
    return snake_routes(h, w).to(like.device, copy=True)


@_snake_routes.register_fake
def _(like, h, w):
    return like.new_empty(3, 4, h * w, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class SnakeMambaConfig:
    """Options of PlainMamba's mixer."""

    d_state: int = 16
    """State size of a channel, n."""
    d_conv: int = 7
    """Side of the 2-D convolution, in tokens; odd."""
    expand: float = 2.0
    """Inner channels, in multiples of d_model."""


class SnakeMamba(Mixer):
    """PlainMamba's mixer, (b, h w, d_model) to (b, h w, d_model); needs shared["grid"].

    Raises:
        ValueError: d_model < 1.
    """

    Config = SnakeMambaConfig
    causal = recurrent = takes_rows = False
    needs = frozenset({"grid"})
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: SnakeMambaConfig | None = None):
        super().__init__(d_model, config)
        c: SnakeMambaConfig = self.config
        d = int(c.expand * d_model)
        self.in_proj = nn.Linear(d_model, 2 * d)
        self.conv2d = nn.Conv2d(d, d, c.d_conv, padding=c.d_conv // 2, groups=d)
        self.scan = SelectiveScan(d, dt_rank=math.ceil(d_model / 16), d_state=c.d_state)
        self.direction_Bs = nn.Parameter(trunc_normal_(torch.empty(5, c.d_state), std=0.02))
        self.out_proj = nn.Linear(d, d_model)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles, skip, step bias and directions do not decay. No shapes, raises nothing."""
        names = ["direction_Bs", *(f"scan.{name}" for name in self.scan.no_decay())]
        return {name: ParamSpec(decay=False) for name in names}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """All four routes over x, (b, h w, d_model); see Mixer.mix. Raises KeyError without a grid."""
        grid = tuple((ctx.shared or {})["grid"])
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv2d(u.unflatten(1, grid).permute(0, 3, 1, 2))).permute(0, 2, 3, 1).flatten(1, 2)
        dt, B, C = self.scan.project(u)
        orders, inverses, directions = _snake_routes(u, *grid).unbind(0)
        outputs = [
            self.scan.scan(u.index_select(1, there), dt, B + self.direction_Bs[entered], C).index_select(1, back)
            for there, back, entered in zip(orders.unbind(0), inverses.unbind(0), directions.unbind(0), strict=True)
        ]
        return self.out_proj(functools.reduce(torch.add, outputs) * F.silu(z)), None


class ConvPatchEmbed(nn.Module):
    """Images (b, c, height, width) to a map (b, h, w, d) at 1/16, padded to whole patches. Raises nothing."""

    stride = 16

    def __init__(self, img_size: int | Grid, in_chans: int, d: int, convs: int):
        super().__init__()
        self.img_size = to_2tuple(img_size)
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        more = [(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()) for _ in range(convs)]
        self.convs = nn.Sequential(*(module for group in more for module in group))
        self.proj = nn.Conv2d(64, d, 8, 8)

    @property
    def grid_size(self) -> Grid:
        """The grid of an image of the model's own size. No shapes, raises nothing."""
        return -(-self.img_size[0] // 16), -(-self.img_size[1] // 16)

    def forward(self, x: Float[Tensor, "b c height width"]) -> Map:
        """Embed. Raises nothing."""
        x = self.convs(self.stem(x))
        x = F.pad(x, (0, -x.shape[3] % 8, 0, -x.shape[2] % 8))
        return self.proj(x).permute(0, 2, 3, 1)


@register_notrace_module
class LocalBlock(TokenBlock):
    """A residual branch, then gelu(batch_norm(depthwise conv)) in the stream's place, (b, l, d) to (b, l, d).

    Raises nothing.
    """

    def __init__(self, mixer: Mixer, drop_path: float):
        super().__init__(mixer, norm="layer", drop_path=drop_path)
        d = mixer.d_model
        self.conv, self.conv_norm = nn.Conv2d(d, d, 3, padding=1, groups=d, bias=False), nn.BatchNorm2d(d)

    def forward(self, x: Tokens, h: int, w: int) -> Tokens:
        """Add the branch and replace the stream, a grid of h x w. Raises nothing."""
        x = super().forward(x, h, w).unflatten(1, (h, w)).permute(0, 3, 1, 2)
        return F.gelu(self.conv_norm(self.conv(x))).permute(0, 2, 3, 1).flatten(1, 2)


class PlainMamba(TokenModel):
    """PlainMamba: images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        img_size: Height and width that the position embeddings are made for; other images resample them.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none, which makes the pooled features the output.
        global_pool: "avg" or "" (all tokens).
        embed_dim: Channels, d.
        depth: Number of blocks.
        stem_convs: Convolutions between the first and the last of the patch embedding.
        local_first: Follow the first block by a convolution that replaces the stream.
        mixer: What mixes the tokens, as `ssmcore.build_mixer` takes it; None is PlainMamba's own. A causal one runs
            along rows and columns in turn, both ways.
        drop_rate: Dropout of the embedded tokens and before the head.
        drop_path_rate: Stochastic depth of the last block; rises evenly from 0 at the first.
        device: Where to make the parameters.
        dtype: Type of the parameters.
    Raises:
        ValueError: global_pool or the mixer is unknown.
    """

    antialias = False

    def __init__(
        self,
        img_size: int | Grid = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 192,
        depth: int = 24,
        stem_convs: int = 2,
        local_first: bool = False,
        mixer: MixerSpec | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        with torch.device(device or torch.get_default_device()):
            blocks = []
            for i, rate in enumerate(torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()):
                own = _on_grid(mixer, embed_dim)
                local = i == 0 and local_first
                blocks.append(LocalBlock(own, rate) if local else TokenBlock(own, norm="layer", drop_path=rate))
            super().__init__(
                ConvPatchEmbed(img_size, in_chans, embed_dim, stem_convs),
                blocks,
                LayerNorm(embed_dim, eps=1e-6),
                in_chans=in_chans,
                num_classes=num_classes,
                global_pool=global_pool,
                class_token=False,
                drop_rate=drop_rate,
            )
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and ".scan." not in name:
                init_linear(module)
        self.to(device, dtype)


def _on_grid(spec: MixerSpec | None, d: int) -> Mixer:
    """The mixer of a block; one that is causal runs along both snakes, both ways."""
    if spec is None:
        return SnakeMamba(d)
    mixer = build_mixer(spec, d)
    if not mixer.causal:
        return mixer
    two_way = {"name": "bidirectional", "mixer": spec}
    return ScanOrder(d, ScanOrderConfig(mixer=two_way, orders=("snake", "snake_column")))


_NAMES = {
    r"patch_embed\.projection\.": "patch_embed.proj.",
    r"layers\.0\.dw\.0\.": "blocks.0.conv.",
    r"layers\.0\.dw\.1\.": "blocks.0.conv_norm.",
    r"layers\.(\d+)\.mamba\.(x_proj|dt_proj|A_log|D)\b": r"blocks.\1.mixer.scan.\2",
    r"layers\.(\d+)\.mamba\.": r"blocks.\1.mixer.",
    r"layers\.(\d+)\.": r"blocks.\1.",
    r"ln1\.": "norm.",
    r"head\.fc\.": "head.",
}
"""Upstream's names to ours."""


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights by this module's names from what upstream, or this package, saved.

    Args:
        state_dict: A checkpoint or the weights in it. Upstream adds the bias of dt twice: it is doubled here.
        model: The PlainMamba that will hold them; positions are resampled to its grid, from a square one.
    Returns:
        Tensors by name.
    Raises:
        ValueError: It holds no tensors.
    """
    weights = {}
    for name, value in unwrap(state_dict).items():
        if name.endswith("mamba.dt_proj.bias"):
            value = 2 * value
        for pattern, ours in _NAMES.items():
            if match := re.match(pattern, name):
                name = match.expand(ours) + name[match.end() :]
                break
        weights[name] = value
    return fit_positions(weights, model)


def _cfg(file: str) -> dict[str, Any]:
    return {
        "hf_hub_id": "ChenhongyiYang/PlainMamba",
        "hf_hub_filename": file,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.stem.0",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_name": "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition",
        "paper_ids": "arXiv:2403.17695",
        "origin_url": "https://github.com/ChenhongyiYang/PlainMamba",
    }


default_cfgs = generate_default_cfgs({f"plainmamba_l{i}.in1k": _cfg(f"l{i}.pth") for i in (1, 2, 3)})


@register_model
def plainmamba_l1(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L1: 7.6 M parameters, 77.9 % as published. Images (b, 3, height, width); raises TypeError."""
    own: dict[str, Any] = {"embed_dim": 192, "depth": 24, "stem_convs": 1, "local_first": True}
    return build(PlainMamba, "plainmamba_l1", pretrained, kwargs, **own)


@register_model
def plainmamba_l2(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L2: 26 M parameters, 81.6 %. Images (b, 3, height, width); raises TypeError."""
    return build(PlainMamba, "plainmamba_l2", pretrained, kwargs, embed_dim=384, depth=24)


@register_model
def plainmamba_l3(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L3: 51 M parameters, 82.3 %. Images (b, 3, height, width); raises TypeError."""
    return build(PlainMamba, "plainmamba_l3", pretrained, kwargs, embed_dim=448, depth=36)
