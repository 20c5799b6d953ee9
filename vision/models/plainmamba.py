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
from ssm_kernels.checks import check_choice
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, resample_abs_pos_embed, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmcore import ScanOrder, build_mixer
from ssmcore.array_types import Float, Int, Tokens
from ssmcore.blocks import LayerNorm
from ssmcore.mixer import Context, Mixer, ParamSpec
from ssmcore.mixers import MixerSpec
from ssmcore.orders import inverse, order
from ssmcore.selective import SelectiveScan
from ssmcore.state import State
from ssmcore.wrappers import ScanOrderConfig

from .blocks import Map, MapBlock, undecayed
from .checkpoint import unwrap

Grid = tuple[int, int]


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

    def __init__(self, img_size: int | Grid, in_chans: int, d: int, convs: int):
        super().__init__()
        self.img_size = to_2tuple(img_size)
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        more = [(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()) for _ in range(convs)]
        self.convs = nn.Sequential(*(module for group in more for module in group))
        self.projection = nn.Conv2d(64, d, 8, 8)

    @property
    def grid_size(self) -> Grid:
        """The grid of an image of the model's own size. No shapes, raises nothing."""
        return -(-self.img_size[0] // 16), -(-self.img_size[1] // 16)

    def forward(self, x: Float[Tensor, "b c height width"]) -> Map:
        """Embed. Raises nothing."""
        x = self.convs(self.stem(x))
        x = F.pad(x, (0, -x.shape[3] % 8, 0, -x.shape[2] % 8))
        return self.projection(x).permute(0, 2, 3, 1)


class LocalConv(nn.Module):
    """gelu(batch_norm(depthwise conv)) of a map (b, h, w, d), in its place. Raises nothing."""

    def __init__(self, d: int):
        super().__init__()
        self.conv = nn.Conv2d(d, d, 3, padding=1, groups=d, bias=False)
        self.norm = nn.BatchNorm2d(d)

    def forward(self, x: Map) -> Map:
        """Replace the map. Raises nothing."""
        return F.gelu(self.norm(self.conv(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


@register_notrace_function
def add_positions(x: Map, pos_embed: Tokens, native: Grid) -> Map:
    """A map (b, h, w, d) plus positions (1, l, d), resampled from the native grid where h, w differ. Raises nothing."""
    h, w = x.shape[1], x.shape[2]
    if (h, w) != tuple(native):
        pos_embed = resample_abs_pos_embed(pos_embed, [h, w], list(native), num_prefix_tokens=0, antialias=False)
    return x + pos_embed.unflatten(1, (h, w))


class PlainMamba(nn.Module):
    """PlainMamba: images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        img_size: Height and width that the position embeddings are made for; other images resample them.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none, which makes the pooled features the output.
        global_pool: As timm's heads take it: "avg", "max", ... or "" for the map itself.
        embed_dim: Channels, d.
        depth: Number of blocks.
        stem_convs: Convolutions between the first and the last of the patch embedding.
        local_first: Follow the first block by a convolution that replaces the stream.
        mixer: What mixes the tokens, as `ssmcore.build_mixer` takes it; None is PlainMamba's own. A causal one runs
            along rows and columns in turn, both ways.
        drop_rate: Dropout of the embedded map and before the head.
        drop_path_rate: Stochastic depth of the last block; rises evenly from 0 at the first.
        device: Where to make the parameters.
        dtype: Type of the parameters.
    Raises:
        ValueError: The mixer is unknown.
    """

    output_fmt = "NHWC"

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
        super().__init__()
        d = self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_classes, self.in_chans, self.grad_checkpointing = num_classes, in_chans, False
        with torch.device(device or torch.get_default_device()):
            self.patch_embed = ConvPatchEmbed(img_size, in_chans, d, stem_convs)
            self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.patch_embed.grid_size), d))
            self.pos_drop = nn.Dropout(drop_rate)
            blocks = []
            for i, rate in enumerate(torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()):
                branch = MapBlock(_on_grid(mixer, d), norm="layer", drop_path=rate)
                blocks.append(nn.Sequential(branch, LocalConv(d)) if i == 0 and local_first else nn.Sequential(branch))
            self.blocks = nn.ModuleList(blocks)
            self.norm = LayerNorm(d, eps=1e-6)
            self.head = ClassifierHead(d, num_classes, global_pool, drop_rate, input_fmt="NHWC")
        self.feature_info = [{"num_chs": d, "reduction": 16, "module": f"blocks.{i}"} for i in range(depth)]
        trunc_normal_(self.pos_embed, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and ".scan." not in name:
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.to(device, dtype)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay. No shapes, raises nothing."""
        return {"pos_embed"} | undecayed(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which layer, for layer-wise learning rates. No shapes, raises nothing."""
        return {"stem": r"^pos_embed|patch_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the maps between blocks for the backward pass. No shapes, raises nothing."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last map of the head, (b, d) to (b, num_classes). Raises nothing."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head in place: classes (0 for none), and how to pool. No shapes, raises as timm's head does."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head.to(self.pos_embed.device, self.pos_embed.dtype)

    def _embed(self, x: Float[Tensor, "b c height width"]) -> Map:
        return self.pos_drop(add_positions(self.patch_embed(x), self.pos_embed, self.patch_embed.grid_size))

    def _run(self, block: nn.Module, x: Map) -> Map:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def forward_features(self, x: Float[Tensor, "b c height width"]) -> Map:
        """The map after the last norm, shape (b, h, w, d). Raises nothing."""
        return self.forward_intermediates(x, indices=[], output_fmt="NHWC")[0]

    def forward_head(self, x: Map, pre_logits: bool = False) -> Tensor:
        """Pool and classify a map: logits (b, num_classes), or with pre_logits what is classified. Raises nothing."""
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "b c height width"]) -> Tensor:
        """Logits (b, num_classes) of images. Raises nothing."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Float[Tensor, "b c height width"],
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps after some blocks, as timm's models give them.

        Args:
            x: Images.
            indices: Which blocks: the last n, a list, or None for all.
            norm: Apply the last norm to each.
            stop_early: Do not run the blocks after the last one wanted.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Leave out the final map.
        Returns:
            The final map, shape (b, h, w, d), and the list; or the list alone.
        Raises:
            ValueError: output_fmt is unknown.
        """
        check_choice("PlainMamba", "output_fmt", output_fmt, ("NCHW", "NHWC"))
        wanted, last = ([], -1) if indices == [] else feature_take_indices(len(self.blocks), indices)
        x, maps = self._embed(x), []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = self._run(block, x)
            if i in wanted:
                maps.append(self.norm(x) if norm else x)
        if output_fmt == "NCHW":
            maps = [y.permute(0, 3, 1, 2).contiguous() for y in maps]
        return maps if intermediates_only else (self.norm(x), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the wanted blocks do not need; returns their indices. No shapes, raises nothing."""
        wanted, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted


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
    r"layers\.(\d+)\.dw\.0\.": r"blocks.\1.1.conv.",
    r"layers\.(\d+)\.dw\.1\.": r"blocks.\1.1.norm.",
    r"layers\.(\d+)\.mamba\.(x_proj|dt_proj|A_log|D)\b": r"blocks.\1.0.mixer.scan.\2",
    r"layers\.(\d+)\.mamba\.": r"blocks.\1.0.mixer.",
    r"layers\.(\d+)\.": r"blocks.\1.0.",
    r"ln1\.": "norm.",
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
    if "pos_embed" in weights and weights["pos_embed"].shape[1] != model.pos_embed.shape[1]:
        old, new = [round(weights["pos_embed"].shape[1] ** 0.5)] * 2, list(model.patch_embed.grid_size)
        weights["pos_embed"] = resample_abs_pos_embed(
            weights["pos_embed"], new, old, num_prefix_tokens=0, antialias=False
        )
    return weights


def _cfg(file: str) -> dict[str, Any]:
    return {
        "hf_hub_id": "ChenhongyiYang/PlainMamba",
        "hf_hub_filename": file,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (14, 14),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.stem.0",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_name": "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition",
        "paper_ids": "arXiv:2403.17695",
        "origin_url": "https://github.com/ChenhongyiYang/PlainMamba",
    }


default_cfgs = generate_default_cfgs({f"plainmamba_l{i}.in1k": _cfg(f"l{i}.pth") for i in (1, 2, 3)})


def _create_plainmamba(variant: str, pretrained: bool, **options: Any) -> nn.Module:
    out_indices = options.pop("out_indices", 3)
    return build_model_with_cfg(
        PlainMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **options,
    )


@register_model
def plainmamba_l1(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L1: 7.6 M parameters, 77.9 % as published. Images (b, 3, height, width); raises TypeError."""
    defaults = {"embed_dim": 192, "depth": 24, "stem_convs": 1, "local_first": True}
    return _create_plainmamba("plainmamba_l1", pretrained, **{**defaults, **kwargs})


@register_model
def plainmamba_l2(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L2: 26 M parameters, 81.6 %. Images (b, 3, height, width); raises TypeError."""
    return _create_plainmamba("plainmamba_l2", pretrained, **{"embed_dim": 384, "depth": 24, **kwargs})


@register_model
def plainmamba_l3(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L3: 51 M parameters, 82.3 %. Images (b, 3, height, width); raises TypeError."""
    return _create_plainmamba("plainmamba_l3", pretrained, **{"embed_dim": 448, "depth": 36, **kwargs})
