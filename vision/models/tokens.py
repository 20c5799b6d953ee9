"""A plain model of tokens: patches in one sequence through blocks of one width; what Vim and its like share.

    tokens = patches of the image, row by row, with a class token at position m = number // 2 or without, plus positions
    depth x  tokens = block(tokens)
    logits = head(norm(tokens)[m])          or of the mean of the patches

Positions are resampled for another size of image with the class token's own left alone, in the middle. A family is a
subclass that builds the blocks; one whose blocks need to know the grid takes it from `TokenBlock`'s second argument.

b batch, l = h w tokens, or h w + 1 with a class token, d = embed_dim, h and w the grid of patches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from ssm_kernels.checks import check_choice
from timm.layers import lecun_normal_, resample_abs_pos_embed, to_2tuple, trunc_normal_
from timm.layers.format import Format, nchw_to
from timm.models._features import feature_take_indices
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmcore.array_types import Float, Tokens

from .blocks import TokenBlock, undecayed
from .checkpoint import accept_upstream_names

Grid = tuple[int, int]


class PatchEmbed(nn.Module):
    """Overlapping or separate square patches to vectors: images (b, c, height, width) to (b, h, w, d).

    Pixels to the right and below that fill no patch are left out, or filled up with zeros for separate patches and
    `pad`. Raises RuntimeError for an image below one patch.
    """

    def __init__(
        self, img_size: int | Grid, patch_size: int, stride: int, in_chans: int, embed_dim: int, pad: bool = False
    ):
        super().__init__()
        self.patch_size, self.stride, self.pad = patch_size, stride, pad
        self.img_size = to_2tuple(img_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride)

    @property
    def grid_size(self) -> Grid:
        """The grid of patches of an image of the model's own size. No shapes, raises nothing."""
        height, width = self.img_size
        if self.pad:
            return -(-height // self.stride), -(-width // self.stride)
        return (height - self.patch_size) // self.stride + 1, (width - self.patch_size) // self.stride + 1

    def forward(self, x: Float[Tensor, "b c height width"]) -> Float[Tensor, "b h w d"]:
        """Cut and embed. Raises RuntimeError for an image below one patch."""
        if self.pad:
            x = F.pad(x, (0, -x.shape[3] % self.stride, 0, -x.shape[2] % self.stride))
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


def resample_positions(pos_embed: Tokens, old: Grid, new: Grid, antialias: bool = True) -> Tokens:
    """Position embeddings for another grid of patches; a class token's own, in the middle, stays as it is.

    Args:
        pos_embed: One vector a token in their order, shape (1, old h * old w, d), or with one more in the middle.
        old: Grid that they were made for.
        new: Grid that is wanted.
        antialias: As in torch's interpolation; without it the cubic has another shape, too.
    Returns:
        Shape (1, new h * new w, d), or one more, bicubic; `pos_embed` itself for an unchanged grid.
    Raises:
        ValueError: pos_embed does not have old h * old w tokens, or one more.
    """
    extra = pos_embed.shape[1] - old[0] * old[1]
    if extra not in (0, 1):
        shape = tuple(pos_embed.shape)
        raise ValueError(f"resample_positions: pos_embed has shape {shape}, expected {old[0]} * {old[1]} tokens (+ 1)")
    if tuple(new) == tuple(old):
        return pos_embed
    patches, token = split_middle(pos_embed) if extra else (pos_embed, None)
    patches = resample_abs_pos_embed(patches, list(new), list(old), num_prefix_tokens=0, antialias=antialias)
    return patches if token is None else join_middle(patches, token)


@register_notrace_function
def as_sequence(
    x: Float[Tensor, "b h w d"], cls_token: Tensor | None, pos_embed: Tensor | None, native: Grid, antialias: bool
) -> Tokens:
    """Patches to one sequence (b, l, d) with class token (1, 1, d) and positions (1, l, d). Raises nothing."""
    tokens = x.flatten(1, 2) if cls_token is None else join_middle(x.flatten(1, 2), cls_token)
    if pos_embed is None:
        return tokens
    return tokens + resample_positions(pos_embed, native, (x.shape[1], x.shape[2]), antialias)


class TokenModel(nn.Module):
    """Images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        patch_embed: Cuts the image: a PatchEmbed, or what has its `proj`, `stride`, `img_size` and `grid_size`.
        blocks: What the tokens run through, called with (tokens, h, w); their branches are TokenBlocks.
        norm: After the last block.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none, which makes the pooled features the output.
        global_pool: "token" (the class token), "avg" (mean of the patches) or "" (all tokens).
        class_token: Whether there is one.
        positions: Whether position embeddings are added.
        drop_rate: Dropout of the embedded tokens and before the head.
    Raises:
        ValueError: global_pool is unknown, or asks for a class token that is not there.
    """

    feature_levels = 3
    """Blocks, counted from the last, that features_only gives."""
    antialias = True
    """How positions are resampled; a family whose authors did it otherwise says so."""

    def __init__(
        self,
        patch_embed: Any,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        *,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        class_token: bool = True,
        positions: bool = True,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        d = self.embed_dim = self.num_features = self.head_hidden_size = patch_embed.proj.out_channels
        self.num_classes, self.in_chans, self.grad_checkpointing = num_classes, in_chans, False
        self.num_prefix_tokens = int(class_token)
        h, w = patch_embed.grid_size
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, h * w + class_token, d)) if positions else None
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head_drop = nn.Dropout(drop_rate)
        stride = patch_embed.stride
        self.feature_info = [{"num_chs": d, "reduction": stride, "module": f"blocks.{i}"} for i in range(len(blocks))]
        self.reset_classifier(num_classes, global_pool)
        self._init_weights()
        accept_upstream_names(self)

    def _init_weights(self) -> None:
        """The mixers have initialised themselves; here are the embedding and the scale of the residual branches."""
        lecun_normal_(self.patch_embed.proj.weight)
        nn.init.zeros_(self.patch_embed.proj.bias)
        for table in (self.pos_embed, self.cls_token):
            if table is not None:
                trunc_normal_(table, std=0.02)
        branches = [module for module in self.modules() if isinstance(module, TokenBlock)]
        with torch.no_grad():
            for branch in branches:
                for name in branch.mixer.residual_out:
                    branch.mixer.get_parameter(name).div_(len(branches) ** 0.5)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay. No shapes, raises nothing."""
        tables = {"pos_embed": self.pos_embed, "cls_token": self.cls_token}
        return {name for name, table in tables.items() if table is not None} | undecayed(self)

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
            ValueError: global_pool is unknown, or asks for a class token that is not there.
        """
        if global_pool is not None:
            pools = ("token", "avg", "") if self.cls_token is not None else ("avg", "")
            check_choice(type(self).__name__, "global_pool", global_pool, pools)
            self.global_pool = global_pool
        self.num_classes, like = num_classes, self.patch_embed.proj.weight
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
        if self.pos_embed is not None:
            new = resample_positions(self.pos_embed.data, old, self.patch_embed.grid_size, self.antialias)
            self.pos_embed = nn.Parameter(new, requires_grad=self.pos_embed.requires_grad)

    def _embed(self, patches: Float[Tensor, "b h w d"]) -> Tokens:
        native = self.patch_embed.grid_size
        return self.pos_drop(as_sequence(patches, self.cls_token, self.pos_embed, native, self.antialias))

    def _run(self, block: nn.Module, x: Tokens, h: int, w: int) -> Tokens:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, h, w, use_reentrant=False)
        return block(x, h, w)

    def forward_features(self, x: Float[Tensor, "b c height width"]) -> Tokens:
        """All tokens after the last norm, shape (b, l, d), the class token in the middle. Raises nothing."""
        patches = self.patch_embed(x)
        h, w = patches.shape[1], patches.shape[2]
        x = self._embed(patches)
        for block in self.blocks:
            x = self._run(block, x, h, w)
        return self.norm(x)

    def forward_head(self, x: Tokens, pre_logits: bool = False) -> Tensor:
        """Pool and classify tokens (b, l, d): logits (b, num_classes), or with pre_logits what is classified, (b, d).

        Raises nothing.
        """
        if self.global_pool == "token":
            x = split_middle(x)[1][:, 0]
        elif self.global_pool == "avg":
            x = (x if self.cls_token is None else split_middle(x)[0]).mean(1)
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
            return_prefix_tokens: Pair each output with its class token, shape (b, 1, d), or (b, 0, d) without one.
            norm: Apply the last norm to each.
            stop_early: Do not run the blocks after the last one wanted.
            output_fmt: "NCHW" for maps (b, d, h, w); "NLC" for tokens without the class token, (b, h w, d).
            intermediates_only: Leave out the final tokens.
        Returns:
            The final tokens, shape (b, l, d), and the list; or the list alone.
        Raises:
            ValueError: output_fmt is unknown.
        """
        check_choice(type(self).__name__, "output_fmt", output_fmt, ("NCHW", "NLC"))
        wanted, last = feature_take_indices(len(self.blocks), indices)
        patches = self.patch_embed(x)
        b, h, w, _ = patches.shape
        x = self._embed(patches)
        taken = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = self._run(block, x, h, w)
            if i in wanted:
                y = self.norm(x) if norm else x
                taken.append((y, y[:, :0]) if self.cls_token is None else split_middle(y))
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


def fit_positions(weights: Mapping[str, Tensor], model: TokenModel) -> dict[str, Tensor]:
    """Weights by name with their positions resampled to a model's grid, from a square one. Raises nothing."""
    weights = dict(weights)
    if model.pos_embed is not None and "pos_embed" in weights:
        given = weights["pos_embed"]
        if given.shape[1] != model.pos_embed.shape[1]:
            side = round((given.shape[1] - model.num_prefix_tokens) ** 0.5)
            grid = model.patch_embed.grid_size
            weights["pos_embed"] = resample_positions(given, (side, side), grid, model.antialias)
    return weights
