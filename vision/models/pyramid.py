"""A pyramid: a few stages, each a map of half the sides and more channels; what VMamba and its like share.

    x = patch_embed(image);   stage s: x = downsample(x), then blocks;   logits = head(pool(norm(x)))

Maps are channel-last, (b, h, w, d); a family is a subclass that builds the stages.
"""

from collections.abc import Sequence
from typing import Any

import torch
from ssm_kernels.checks import check_choice
from timm.layers import ClassifierHead, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmcore.array_types import Float

from .blocks import Map, undecayed
from .checkpoint import accept_upstream_names


class Stage(nn.Module):
    """Halve the map (or not), then blocks, (b, h, w, d) to (b, h', w', d'). Raises nothing."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.downsample, self.blocks = downsample, nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Map) -> Map:
        """Run the stage. Raises nothing."""
        return self.run(self.downsample(x))

    def run(self, x: Tensor, *grid: int) -> Tensor:
        """All blocks, called with x, (b, h, w, d), or with tokens, (b, l, d), and their grid; shape of x.

        Raises nothing.
        """
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, *grid, use_reentrant=False)
            else:
                x = block(x, *grid)
        return x


class Pyramid(nn.Module):
    """Images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        patch_embed: Images, channel-last (b, height, width, in_chans), to the first map.
        stages: Maps to maps.
        dims: Channels after each stage.
        reductions: Side of the image in multiples of that of each stage's map.
        norm: After the last stage.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none, which makes the pooled features the output.
        global_pool: As timm's heads take it: "avg", "max", ... or "" for the map itself.
        drop_rate: Dropout before the head.
        head: Another head than timm's, with its interface: `fc`, `reset` and `pre_logits`.
    """

    output_fmt = "NHWC"
    feature_levels = (0, 1, 2, 3)
    """Stages that features_only gives."""

    def __init__(
        self,
        patch_embed: nn.Module,
        stages: Sequence[nn.Module],
        dims: Sequence[int],
        norm: nn.Module,
        *,
        reductions: Sequence[int] = (4, 8, 16, 32),
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        head: nn.Module | None = None,
    ):
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.patch_embed, self.stages, self.norm = patch_embed, nn.Sequential(*stages), norm
        self.head = head or ClassifierHead(dims[-1], num_classes, global_pool, drop_rate, input_fmt="NHWC")
        levels = zip(dims, reductions, strict=True)
        self.feature_info = [{"num_chs": d, "reduction": r, "module": f"stages.{s}"} for s, (d, r) in enumerate(levels)]
        accept_upstream_names(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay. No shapes, raises nothing."""
        return undecayed(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which layer, for layer-wise learning rates. No shapes, raises nothing."""
        fine = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": r"^stages\.(\d+)" if coarse else fine}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the maps between blocks for the backward pass. No shapes, raises nothing."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last map of the head, (b, d) to (b, num_classes). Raises nothing."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head in place: classes (0 for none), and how to pool. No shapes, raises as timm's head does."""
        self.num_classes, like = num_classes, next(self.patch_embed.parameters())
        self.head.reset(num_classes, global_pool)
        self.head.to(like.device, like.dtype)
        if num_classes > 0:
            init_linear(self.head.fc)

    def forward_features(self, x: Float[Tensor, "b c height width"]) -> Map:
        """The map after the last norm, shape (b, h, w, d). Raises RuntimeError for an image below one patch."""
        return self.norm(self.stages(self.patch_embed(x.permute(0, 2, 3, 1))))

    def forward_head(self, x: Map, pre_logits: bool = False) -> Tensor:
        """Pool and classify a map: logits (b, num_classes), or with pre_logits what is classified. Raises nothing."""
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "b c height width"]) -> Tensor:
        """Logits (b, num_classes) of images. Raises RuntimeError for an image below one patch."""
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
        """The maps after some stages, as timm's models give them.

        Args:
            x: Images.
            indices: Which stages: the last n, a list, or None for all.
            norm: Apply the last norm to the last stage's map.
            stop_early: Do not run the stages after the last one wanted.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Leave out the final map.
        Returns:
            The final map, shape (b, h, w, d), and the list; or the list alone.
        Raises:
            ValueError: output_fmt is unknown.
        """
        check_choice(type(self).__name__, "output_fmt", output_fmt, ("NCHW", "NHWC"))
        wanted, last = feature_take_indices(len(self.stages), indices)
        x = self.patch_embed(x.permute(0, 2, 3, 1))
        maps = []
        for s, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if s in wanted:
                maps.append(self.norm(x) if norm and s == len(self.stages) - 1 else x)
        if output_fmt == "NCHW":
            maps = [y.permute(0, 3, 1, 2).contiguous() for y in maps]
        if intermediates_only:
            return maps
        return (self.norm(x) if x.shape[-1] == self.num_features else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the wanted stages do not need; returns their indices. No shapes, raises nothing."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted


def init_linear(module: nn.Linear) -> None:
    """Weights from a narrow normal, no bias. No shapes, raises nothing."""
    trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
