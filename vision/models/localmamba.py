"""LocalMamba: Vim and VMamba with routes that stay inside windows, a choice of four for every layer.

    routes   rows, columns, windows of 2 x 2 or of 7 x 7, each also backwards; found by search, a table below
    y = sum over routes r of select(scan_r u)        select scales channels by what the route saw of the whole image
    select y = y sigmoid(W2 gelu(W1 mean_t norm(y[t])))

LocalVim rotates the stream before every block by the tokens' places in the grid and averages the tokens; with a class
token, which stands in the middle of every route, it does neither. LocalVMamba is VMamba's first release otherwise. A
map that windows do not divide is filled up with zeros at its right and lower edge, which is what the weights have seen.

b batch, l = i j tokens of a grid of i rows and j columns, d channels of the mixer.
Source: Huang et al. 2024, LocalMamba, sec. 4; the routes as released.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from ssmcore.array_types import Tokens
from ssmcore.blocks import LayerNorm, RMSNorm
from ssmcore.functional import causal_conv1d
from ssmcore.mixer import Context
from ssmcore.mixers import MixerSpec
from ssmcore.mixers.grid_mamba import GridMamba, GridMambaConfig
from ssmcore.mixers.routed_mamba import RoutedMamba, RoutedMambaConfig
from ssmcore.mixers.short_conv import ShortConv
from ssmcore.routes import Route
from ssmcore.state import State

from . import vmamba
from .blocks import TokenBlock
from .checkpoint import unwrap
from .factory import build
from .tokens import Grid, PatchEmbed, TokenModel, fit_positions, split_middle
from .vim import two_way
from .vmamba import VMamba

_LETTERS = {"h": "raster", "v": "column", "2": "window2", "7": "window7"}


def _routes(table: str) -> tuple[tuple[str, ...], ...]:
    """Routes of every layer, from words such as "hVf" whose letters stand for h, v and v backwards (V).

    A capital H, V, and a 2 or 7 with a ' behind it, are the routes backwards.
    """
    found = []
    for word in table.split():
        letters = re.findall(r"[hvHV27]'?", word)
        names = [_LETTERS[c[0].lower()] + "_reversed" * (c[0].isupper() or c.endswith("'")) for c in letters]
        found.append(tuple(names))
    return tuple(found)


VIM_ROUTES = _routes(
    "hV77' H2'77' hHv7 hHvV hHvV hHvV HvV7 HvV2' hHvV hHvV hvV2 hvV2' hHV7 HvV2 hHvV hv22' vV27 hHv2 hH2'7 vV22'"
)
VMAMBA_TINY_ROUTES = _routes(
    "hH77' HV22' HV2'7 HvV2 hHV2' HV22' h2'77' hHvV hV77' Hv27' vV27' hHV2' V2'77' HV2'7' Hv77'"
)
VMAMBA_SMALL_ROUTES = _routes(
    "hvV7' hHv7 HvV7 Hv2'7 Hv2'7 HV27' HvV7 hvV7 hvV7 hvV7' hHvV hvV2 vV2'7 hHv2 HvV7' hHvV hvV7' hvV7' hHV7 HV2'7 "
    "HvV7' vV77' hvV7' HvV2 hvV2' hHv7 hH77' hV22' hV27 hvV7' Hv2'7 HV77' hv77'"
)


class Select(nn.Module):
    """Scale the channels of a route's output by its mean, (b, l, d) to (b, l, d). Raises nothing."""

    def __init__(self, d: int):
        super().__init__()
        self.norm = LayerNorm(d)
        self.reduce = nn.Linear(d, d // 8)
        self.expand = nn.Linear(d // 8, d)

    def forward(self, y: Tokens) -> Tokens:
        """Scale. Raises nothing."""
        seen = self.norm(y).mean(1, keepdim=True)
        return y * self.expand(F.gelu(self.reduce(seen))).sigmoid()


class FilledRoute:
    """A route through a map that is filled up with zeros to whole windows.

    Args:
        route: See ssmcore.routes.
    """

    def __init__(self, route: Route):
        self.route, self.reverse = route, route.reverse
        side = route.order.removeprefix("window")
        self.side = int(side) if side.isdigit() else 1

    def gather(self, x: Tokens, grid: Grid) -> Tokens:
        """Tokens of the grid, (b, i j, d), in the order of the route, (b, whole windows, d). Raises nothing."""
        whole = self._whole(grid)
        if whole != grid:
            x = F.pad(x.unflatten(1, grid), (0, 0, 0, whole[1] - grid[1], 0, whole[0] - grid[0])).flatten(1, 2)
        return self.route.gather(x, whole)

    def scatter(self, y: Tokens, grid: Grid) -> Tokens:
        """Back to the grid, (b, i j, d), without what was filled up. Raises nothing."""
        whole = self._whole(grid)
        y = self.route.scatter(y, whole)
        return y if whole == grid else y.unflatten(1, whole)[:, : grid[0], : grid[1]].flatten(1, 2)

    def _whole(self, grid: Grid) -> Grid:
        return -(-grid[0] // self.side) * self.side, -(-grid[1] // self.side) * self.side


class LocalGridMamba(GridMamba):
    """LocalVMamba's mixer: GridMamba that selects among its routes' channels, (b, i j, d_model) to the same shape.

    Raises:
        ValueError: As GridMamba.
    """

    def __init__(self, d_model: int, config: GridMambaConfig | None = None):
        super().__init__(d_model, config)
        self.select = Select(self.d_inner)
        self.filled = [FilledRoute(route) for route in self.routes]

    def along_routes(self, u: Tokens, grid: Grid) -> Tokens:
        """The sum of the routes' selected outputs, shape of u, (b, l, d). Raises nothing."""
        ways = zip(self.filled, self.scans, strict=True)
        outputs = [way.scatter(scan(way.gather(u, grid), reverse=way.reverse), grid) for way, scan in ways]
        return functools.reduce(torch.add, map(self.select, outputs))


@dataclass(frozen=True, kw_only=True)
class LocalTokenMambaConfig(RoutedMambaConfig):
    """Options of LocalVim's mixer."""

    class_token: bool = False
    """Whether a token without a place on the grid stands in the middle of the sequence."""


class LocalTokenMamba(RoutedMamba):
    """LocalVim's mixer: a gated Mamba a route, selected and added, (b, l, d_model) to (b, l, d_model).

    Needs shared["grid"]. Raises:
        ValueError: As RoutedMamba.
    """

    Config = LocalTokenMambaConfig

    def __init__(self, d_model: int, config: LocalTokenMambaConfig | None = None):
        super().__init__(d_model, config)
        self.select = Select(self.d_inner)
        self.filled = [FilledRoute(route) for route in self.routes]
        self.needs, self.takes_rows = frozenset({"grid"}), False

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """All routes over x, (b, l, d_model); see Mixer.mix. Raises KeyError without a grid."""
        grid = tuple((ctx.shared or {})["grid"])
        projected = self.in_proj(x)
        outputs = []
        for way, conv, scan in zip(self.filled, self.convs, self.scans, strict=True):
            assert isinstance(conv, ShortConv)
            u, z = self._there(way, projected, grid).chunk(2, dim=-1)
            u = causal_conv1d(u, conv.weight[:, 0], conv.bias, activation=conv.activation, reverse=way.reverse)
            outputs.append(self.select(self._back(way, scan(u, z=z, reverse=way.reverse), grid)))
        return self.out_proj(functools.reduce(torch.add, outputs)), None

    def _there(self, way: FilledRoute, x: Tokens, grid: Grid) -> Tokens:
        if not self.config.class_token:
            return way.gather(x, grid)
        patches, token = split_middle(x)
        gathered = way.gather(patches, grid)
        m = self._place(way, gathered.shape[1], patches.shape[1])
        return torch.cat([gathered[:, :m], token, gathered[:, m:]], 1)

    def _back(self, way: FilledRoute, y: Tokens, grid: Grid) -> Tokens:
        if not self.config.class_token:
            return way.scatter(y, grid)
        patches = grid[0] * grid[1]
        m = self._place(way, y.shape[1] - 1, patches)
        rest = way.scatter(torch.cat([y[:, :m], y[:, m + 1 :]], 1), grid)
        return torch.cat([rest[:, : patches // 2], y[:, m : m + 1], rest[:, patches // 2 :]], 1)

    @staticmethod
    def _place(way: FilledRoute, scanned: int, patches: int) -> int:
        """Where the class token stands: so many tokens are scanned before it as stand before it in the image."""
        return scanned - patches // 2 if way.reverse else patches // 2


@register_notrace_module
class RotatedBlock(TokenBlock):
    """A residual branch on a stream that is first rotated by the places of its tokens, (b, l, d) to (b, l, d).

    Raises nothing.
    """

    def forward(self, x: Tokens, h: int, w: int) -> Tokens:
        """tokens + mixer(norm(tokens)) of the rotated tokens, which lie on a grid of h x w. Raises nothing."""
        return super().forward(rotate(x, h, w), h, w)


def rotate(x: Tokens, h: int, w: int, native: int = 14) -> Tokens:
    """Rotate pairs of channels by angles that grow with the row (first half) and the column (second half).

    Args:
        x: Tokens of a grid of h x w in raster order, shape (b, h w, d), d divisible by 4.
        h: Rows.
        w: Columns.
        native: Rows and columns of the grid in training; others are stretched to it.
    Returns:
        Shape and dtype of x.
    Raises:
        RuntimeError: x does not have h w tokens.
    Source: Fang et al. 2023, EVA-02, sec. 2 (2-D rotary positions).
    """
    d = x.shape[-1] // 4
    speed = 10000.0 ** (-torch.arange(d, device=x.device, dtype=torch.float32) / d)
    rows, columns = (torch.arange(n, device=x.device, dtype=torch.float32) * (native / n) for n in (h, w))
    angle = torch.cat([(rows[:, None, None] * speed).expand(h, w, d), (columns[:, None] * speed).expand(h, w, d)], -1)
    cos, sin = angle.flatten(0, 1).cos().to(x.dtype), angle.flatten(0, 1).sin().to(x.dtype)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


class LocalVim(TokenModel):
    """LocalVim: images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        img_size: Height and width that the position embeddings are made for; other images resample them.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none, which makes the pooled features the output.
        global_pool: "token", "avg" or ""; None is the class token where there is one, else the mean.
        embed_dim: Channels of a token, d, divisible by 4.
        routes: Token orders of every block.
        class_token: Put a class token in the middle, and rotate nothing.
        mixer: What mixes the tokens, as `ssmcore.build_mixer` takes it; None is LocalVim's own.
        drop_rate: Dropout of the embedded tokens and before the head.
        drop_path_rate: Stochastic depth of the last block; rises evenly from 0 at the first.
        device: Where to make the parameters.
        dtype: Type of the parameters.
    Raises:
        ValueError: global_pool or the mixer is unknown, or the mixer needs a grid that a class token spoils.
    """

    antialias = False

    def __init__(
        self,
        img_size: int | Grid = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        embed_dim: int = 192,
        routes: Sequence[Sequence[str]] = VIM_ROUTES,
        class_token: bool = False,
        mixer: MixerSpec | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        with torch.device(device or torch.get_default_device()):
            block = TokenBlock if class_token else RotatedBlock
            rates = torch.linspace(0, drop_path_rate, len(routes), device="cpu").tolist()
            blocks = []
            for names, rate in zip(routes, rates, strict=True):
                own = LocalTokenMambaConfig(routes=names, combine="sum", class_token=class_token)
                chosen = (
                    LocalTokenMamba(embed_dim, own) if mixer is None else two_way(mixer, embed_dim, not class_token)
                )
                blocks.append(block(chosen, norm="rms", drop_path=rate))
            super().__init__(
                PatchEmbed(img_size, 16, 16, in_chans, embed_dim, pad=True),
                blocks,
                RMSNorm(embed_dim),
                in_chans=in_chans,
                num_classes=num_classes,
                global_pool=("token" if class_token else "avg") if global_pool is None else global_pool,
                class_token=class_token,
                drop_rate=drop_rate,
            )
        self.to(device, dtype)


class LocalVMamba(VMamba):
    """LocalVMamba: images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        routes: Token orders of every block, all stages in one line.
        mixer: As VMamba's; None is LocalVMamba's own.
        **options: VMamba's.
    Raises:
        ValueError: As VMamba.
    """

    def __init__(
        self, routes: Sequence[Sequence[str]] = VMAMBA_TINY_ROUTES, mixer: MixerSpec | None = None, **options: Any
    ):
        own = [functools.partial(LocalGridMamba, config=GridMambaConfig(routes=names)) for names in routes]
        super().__init__(mixer=own if mixer is None else mixer, mlp_ratio=0, embedding="separate", **options)


_WEIGHTS = {
    r"layers\.(\d+)\.mixer\.conv1d_(\d)\.": r"blocks.\1.mixer.convs.\2.",
    r"layers\.(\d+)\.mixer\.(x_proj|dt_proj)_(\d)\.": r"blocks.\1.mixer.scans.\3.\2.",
    r"layers\.(\d+)\.mixer\.(A_log|D)_(\d)$": r"blocks.\1.mixer.scans.\3.\2",
    r"layers\.(\d+)\.": r"blocks.\1.",
    r"norm_f\.": "norm.",
}
"""LocalVim's names to ours."""
_SELECT = {
    "multi_scan.attn.": "select.",
    "mixer.attn.": "mixer.select.",
    "global_reduce.": "reduce.",
    "channel_select.": "expand.",
}


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights by this module's names from what upstream, or this package, saved.

    Args:
        state_dict: A checkpoint or the weights in it; its tables of rotations are not needed.
        model: The LocalVim or LocalVMamba that will hold them; positions are resampled to its grid, from a square one.
    Returns:
        Tensors by name.
    Raises:
        ValueError: It holds no tensors.
    """
    renamed = {}
    for name, value in unwrap(state_dict).items():
        for theirs, ours in _SELECT.items():
            name = name.replace(theirs, ours)
        renamed[name] = value
    if isinstance(model, LocalVMamba):
        return vmamba.checkpoint_filter_fn(renamed, model)
    weights = {}
    for name, value in renamed.items():
        match, ours = next(((m, o) for p, o in _WEIGHTS.items() if (m := re.match(p, name))), (None, ""))
        if not name.startswith("rope."):
            weights[match.expand(ours) + name[match.end() :] if match else name] = value
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
        "paper_name": "LocalMamba: Visual State Space Model with Windowed Selective Scan",
        "paper_ids": "arXiv:2403.09338",
        "origin_url": "https://github.com/hunto/LocalMamba",
        **overrides,
    }


_PYRAMID = {"pool_size": (7, 7), "first_conv": "patch_embed.0.conv", "classifier": "head.fc"}
default_cfgs = generate_default_cfgs(
    {
        "localvim_tiny.in1k": _cfg(),
        "localvim_tiny_midcls.in1k": _cfg(),
        "localvim_small.in1k": _cfg(),
        "localvmamba_tiny.in1k": _cfg(**_PYRAMID),
        "localvmamba_small.in1k": _cfg(**_PYRAMID),
    }
)


@register_model
def localvim_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T: 8 M parameters, 76.2 % as published. Images (b, 3, height, width); raises TypeError."""
    return build(LocalVim, "localvim_tiny", pretrained, kwargs)


@register_model
def localvim_tiny_midcls(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with a class token in the middle: 77.8 %. Images (b, 3, height, width); raises TypeError."""
    return build(LocalVim, "localvim_tiny_midcls", pretrained, kwargs, class_token=True)


@register_model
def localvim_small(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S: 28 M parameters, 81.1 %. Images (b, 3, height, width); raises TypeError."""
    return build(LocalVim, "localvim_small", pretrained, kwargs, embed_dim=384)


@register_model
def localvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-T: 26 M parameters, 82.7 %. Images (b, 3, height, width); raises TypeError."""
    return build(LocalVMamba, "localvmamba_tiny", pretrained, kwargs, depths=(2, 2, 9, 2))


@register_model
def localvmamba_small(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-S: 50 M parameters, 83.7 %. Images (b, 3, height, width); raises TypeError."""
    own: dict[str, Any] = {"depths": (2, 2, 27, 2), "routes": VMAMBA_SMALL_ROUTES}
    return build(LocalVMamba, "localvmamba_small", pretrained, kwargs, **own)
