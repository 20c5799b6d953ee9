"""Vim (Vision Mamba): image patches as one sequence, scanned from both ends, with the class token in its middle.

    tokens = patches of the image, row by row, with cls inserted at position m = number // 2, plus positions
    24 x   tokens = tokens + mixer(rms_norm(tokens))
    logits = head(rms_norm(tokens)[m])

The mixer is `RoutedMamba` along "raster" and "raster_reversed"; `mixer=` puts any other in its place. Positions are
resampled for another size of image with the class token's own left alone, in the middle. Upstream's trained "+" models
(stride 8) were resampled once with that token taken for the first one; their published weights already contain it.

b batch, l = h w + 1 tokens, d = embed_dim, h and w the grid of patches.
Source: Zhu et al. 2024, Vision Mamba, sec. 3; the two gated passes are averaged, as in the released models.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import lecun_normal_, resample_abs_pos_embed, to_2tuple, trunc_normal_
from timm.layers.format import Format, nchw_to
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmcore import Bidirectional, build_mixer
from ssmcore.array_types import Float, Tokens
from ssmcore.blocks import RMSNorm
from ssmcore.mixer import Mixer
from ssmcore.mixers import MixerSpec
from ssmcore.mixers.routed_mamba import RoutedMamba
from ssmcore.wrappers import BidirectionalConfig

from .blocks import TokenBlock, undecayed
from .checkpoint import unwrap

Grid = tuple[int, int]


class PatchEmbed(nn.Module):
    """Overlapping or separate square patches to vectors: images (b, c, height, width) to (b, h, w, d).

    Pixels to the right and below that fill no patch are left out. Raises RuntimeError for an image below one patch.
    """

    def __init__(self, img_size: int | Grid, patch_size: int, stride: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.patch_size, self.stride = patch_size, stride
        self.img_size = to_2tuple(img_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride)

    @property
    def grid_size(self) -> Grid:
        """The grid of patches of an image of the model's own size. No shapes, raises nothing."""
        height, width = self.img_size
        return (height - self.patch_size) // self.stride + 1, (width - self.patch_size) // self.stride + 1

    def forward(self, x: Float[Tensor, "b c height width"]) -> Float[Tensor, "b h w d"]:
        """Cut and embed. Raises RuntimeError for an image below one patch."""
        return nchw_to(self.proj(x), Format.NHWC)


def split_middle(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Patches (b, l - 1, d) and class token (b, 1, d) of a sequence (b, l, d) that has it in the middle.

    Raises nothing.
    """
    m = (tokens.shape[1] - 1) // 2
    return torch.cat([tokens[:, :m], tokens[:, m + 1 :]], 1), tokens[:, m : m + 1]


def join_middle(patches: Tokens, token: Tokens) -> Tokens:
    """The inverse of `split_middle`: (b, l - 1, d) and (b or 1, 1, d) to (b, l, d). Raises nothing."""
    m = patches.shape[1] // 2
    return torch.cat([patches[:, :m], token.expand(patches.shape[0], -1, -1), patches[:, m:]], 1)


def resample_positions(pos_embed: Tokens, old: Grid, new: Grid) -> Tokens:
    """Position embeddings for another grid of patches; the class token's own, in the middle, stays as it is.

    Args:
        pos_embed: One vector a token in their order, shape (1, old h * old w + 1, d).
        old: Grid that they were made for.
        new: Grid that is wanted.
    Returns:
        Shape (1, new h * new w + 1, d), bicubic with antialiasing; `pos_embed` itself for an unchanged grid.
    Raises:
        ValueError: pos_embed does not have old h * old w + 1 tokens.
    """
    if pos_embed.shape[1] != old[0] * old[1] + 1:
        raise ValueError(
            f"resample_positions: pos_embed has shape {tuple(pos_embed.shape)}, expected {old[0]} * {old[1]} + 1 tokens"
        )
    if tuple(new) == tuple(old):
        return pos_embed
    patches, token = split_middle(pos_embed)
    patches = resample_abs_pos_embed(patches, list(new), list(old), num_prefix_tokens=0)
    return join_middle(patches, token)


@register_notrace_function
def as_sequence(x: Float[Tensor, "b h w d"], cls_token: Tensor, pos_embed: Tensor, native: Grid) -> Tokens:
    """Patches to one sequence (b, h w + 1, d) with class token (1, 1, d) and positions (1, l, d). Raises nothing."""
    positions = resample_positions(pos_embed, native, (x.shape[1], x.shape[2]))
    return join_middle(x.flatten(1, 2), cls_token) + positions


class Vim(nn.Module):
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
        super().__init__()
        self.num_classes, self.in_chans, self.embed_dim = num_classes, in_chans, embed_dim
        self.num_features = self.head_hidden_size = embed_dim
        self.num_prefix_tokens, self.grad_checkpointing = 1, False
        stride = stride or patch_size
        with torch.device(device or torch.get_default_device()):
            self.patch_embed = PatchEmbed(img_size, patch_size, stride, in_chans, embed_dim)
            h, w = self.patch_embed.grid_size
            self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
            self.pos_embed = nn.Parameter(torch.zeros(1, h * w + 1, embed_dim))
            self.pos_drop = nn.Dropout(drop_rate)
            rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
            blocks = [TokenBlock(_two_way(mixer, embed_dim), norm="rms", drop_path=rate) for rate in rates]
            self.blocks = nn.ModuleList(blocks)
            self.norm = RMSNorm(embed_dim)
            self.head_drop = nn.Dropout(drop_rate)
        self.feature_info = [{"num_chs": embed_dim, "reduction": stride, "module": f"blocks.{i}"} for i in range(depth)]
        self.reset_classifier(num_classes, global_pool)
        self._init_weights()
        self.to(device, dtype)

    def _init_weights(self) -> None:
        """The mixers have initialised themselves; here are the embedding and the scale of the residual branches."""
        lecun_normal_(self.patch_embed.proj.weight)
        nn.init.zeros_(self.patch_embed.proj.bias)
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        with torch.no_grad():
            for block in self.blocks:
                for name in block.mixer.residual_out:
                    block.mixer.get_parameter(name).div_(len(self.blocks) ** 0.5)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay. No shapes, raises nothing."""
        return {"pos_embed", "cls_token"} | undecayed(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which layer, for layer-wise learning rates. No shapes, raises nothing."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the tokens between blocks for the backward pass. No shapes, raises nothing."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The head, (b, d) to (b, num_classes). Raises nothing."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head in place.

        Args:
            num_classes: Classes; 0 for no head.
            global_pool: As in the constructor; None leaves it. No shapes.
        Raises:
            ValueError: global_pool is unknown.
        """
        if global_pool is not None:
            if global_pool not in ("token", "avg", ""):
                raise ValueError(f"Vim: global_pool is {global_pool!r}, expected 'token', 'avg' or ''")
            self.global_pool = global_pool
        self.num_classes, like = num_classes, self.pos_embed
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def set_input_size(self, img_size: int | Grid) -> None:
        """Make another size of image the model's own: its position embeddings become parameters. No shapes.

        Raises:
            ValueError: Never for a size of at least one patch.
        """
        old, self.patch_embed.img_size = self.patch_embed.grid_size, to_2tuple(img_size)
        new = resample_positions(self.pos_embed.data, old, self.patch_embed.grid_size)
        self.pos_embed = nn.Parameter(new, requires_grad=self.pos_embed.requires_grad)

    def _embed(self, x: Float[Tensor, "b c height width"]) -> Tokens:
        patches = self.patch_embed(x)
        return self.pos_drop(as_sequence(patches, self.cls_token, self.pos_embed, self.patch_embed.grid_size))

    def _run(self, block: nn.Module, x: Tokens) -> Tokens:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def forward_features(self, x: Float[Tensor, "b c height width"]) -> Tokens:
        """All tokens after the last norm, shape (b, h w + 1, d), the class token in the middle. Raises nothing."""
        x = self._embed(x)
        for block in self.blocks:
            x = self._run(block, x)
        return self.norm(x)

    def forward_head(self, x: Tokens, pre_logits: bool = False) -> Tensor:
        """Pool and classify tokens (b, l, d): logits (b, num_classes), or with pre_logits what is classified, (b, d).

        Raises nothing.
        """
        if self.global_pool:
            patches, token = split_middle(x)
            x = token[:, 0] if self.global_pool == "token" else patches.mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "b c height width"]) -> Tensor:
        """Logits (b, num_classes) of images. Raises RuntimeError for an image below one patch."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Float[Tensor, "b c height width"],
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The stream after some blocks, as timm's models give it.

        Args:
            x: Images.
            indices: Which blocks: the last n, a list, or None for all.
            return_prefix_tokens: Pair each output with its class token, shape (b, 1, d).
            norm: Apply the last norm to each.
            stop_early: Do not run the blocks after the last one wanted.
            output_fmt: "NCHW" for maps (b, d, h, w); "NLC" for tokens without the class token, (b, h w, d).
            intermediates_only: Leave out the final tokens.
        Returns:
            The final tokens, shape (b, l, d), and the list; or the list alone.
        Raises:
            ValueError: output_fmt is unknown.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"Vim: output_fmt is {output_fmt!r}, expected 'NCHW' or 'NLC'")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        patches = self.patch_embed(x)
        b, h, w, _ = patches.shape
        x = self.pos_drop(as_sequence(patches, self.cls_token, self.pos_embed, self.patch_embed.grid_size))
        taken = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = self._run(block, x)
            if i in wanted:
                taken.append(split_middle(self.norm(x) if norm else x))
        outputs: list[Any] = [maps for maps, _ in taken]
        if output_fmt == "NCHW":
            outputs = [y.reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous() for y in outputs]
        if return_prefix_tokens:
            outputs = [(y, token) for y, (_, token) in zip(outputs, taken, strict=True)]
        return outputs if intermediates_only else (self.norm(x), outputs)

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


def _two_way(spec: MixerSpec | None, d: int) -> Mixer:
    """The mixer of a block; one that is causal runs both ways."""
    if spec is None:
        return RoutedMamba(d)
    mixer = build_mixer(spec, d)
    if mixer.needs:
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
    if "pos_embed" in weights and weights["pos_embed"].shape[1] != model.pos_embed.shape[1]:
        side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
        weights["pos_embed"] = resample_positions(weights["pos_embed"], (side, side), model.patch_embed.grid_size)
    return weights


def _cfg(**overrides: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
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


def _create_vim(variant: str, pretrained: bool, **options: Any) -> nn.Module:
    out_indices = options.pop("out_indices", 3)
    return build_model_with_cfg(
        Vim,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **options,
    )


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti: 7 M parameters, 197 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return _create_vim("vim_tiny_patch16_224", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S: 26 M parameters, 197 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return _create_vim("vim_small_patch16_224", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B: 98 M parameters, 197 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return _create_vim("vim_base_patch16_224", pretrained, **{"embed_dim": 768, **kwargs})


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti+: overlapping patches, 730 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return _create_vim("vim_tiny_patch16_stride8_224", pretrained, **{"embed_dim": 192, "stride": 8, **kwargs})


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S+: overlapping patches, 730 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return _create_vim("vim_small_patch16_stride8_224", pretrained, **{"embed_dim": 384, "stride": 8, **kwargs})


@register_model
def vim_base_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B with overlapping patches, 730 tokens at 224 pixels. Images (b, 3, height, width); raises TypeError."""
    return _create_vim("vim_base_patch16_stride8_224", pretrained, **{"embed_dim": 768, "stride": 8, **kwargs})
