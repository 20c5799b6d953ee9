"""S4ND in two known backbones: a ViT whose attention, and a ConvNeXt whose convolutions, are state-space filters.

    S4ND-ViT        x = x + s4nd(norm(x)), x = x + mlp(norm(x)) on patches in raster order; no class token, no positions
    S4ND-ConvNeXt   x = x + gamma mlp(norm(s4nd(x))) on maps; the filter is the outer product of one kernel an axis

The kernels come from continuous systems: they have no size of their own, and the `rate` of a layer fits a model to
another resolution. One released configuration filters in the ConvNeXt's stem and between its stages too; it would have
29.4 M parameters. Here these stay convolutions, as the published 30.0 M say.

b batch, l tokens, h and w the sides of a map, d channels.
Source: Nguyen et al. 2022, S4ND, sec. 5.1; Dosovitskiy et al. 2021, ViT; Liu et al. 2022, ConvNeXt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from ssmcore.blocks import LayerNorm
from ssmcore.channels.mlp import Mlp
from ssmcore.mixer import Context, Mixer
from ssmcore.mixers import MixerSpec
from ssmcore.mixers.s4nd import S4ND, S4NDConfig

from .blocks import Map, TransformerBlock
from .checkpoint import unwrap
from .factory import build
from .pyramid import Pyramid, Stage, init_linear
from .tokens import Grid, PatchEmbed, TokenModel
from .vim import two_way
from .vmamba import ConvNorm, on_grid


class S4NDViT(TokenModel):
    """S4ND-ViT: images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        img_size: Height and width of the model's own images; there is nothing to resample for others.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none, which makes the pooled features the output.
        global_pool: "avg" or "" (all tokens).
        embed_dim: Channels of a token, d.
        depth: Number of blocks.
        mixer: What mixes the tokens, as `ssmcore.build_mixer` takes it; None is S4ND along the sequence.
        drop_rate: Dropout of the embedded tokens and before the head.
        drop_path_rate: Stochastic depth of the last block; rises evenly from 0 at the first.
        device: Where to make the parameters.
        dtype: Type of the parameters.
    Raises:
        ValueError: global_pool or the mixer is unknown.
    """

    def __init__(
        self,
        img_size: int | Grid = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 768,
        depth: int = 12,
        mixer: MixerSpec | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        own = {"name": "s4nd", "axes": 1, "channels": 2, "tied": True}
        with torch.device(device or torch.get_default_device()):
            rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
            super().__init__(
                PatchEmbed(img_size, 16, 16, in_chans, embed_dim),
                [TransformerBlock(two_way(mixer or own, embed_dim, on_grid=True), rate) for rate in rates],
                LayerNorm(embed_dim),
                in_chans=in_chans,
                num_classes=num_classes,
                global_pool=global_pool,
                class_token=False,
                positions=False,
                drop_rate=drop_rate,
            )
        self.to(device, dtype)


@register_notrace_module
class ConvNextBlock(nn.Module):
    """A filter over the map, then an MLP of its channels, in one residual branch, (b, h, w, d) to (b, h, w, d).

    Raises nothing of its own.
    """

    def __init__(self, mixer: Mixer, drop_path: float, layer_scale: float = 1e-6):
        super().__init__()
        d = mixer.d_model
        self.mixer, self.norm, self.mlp = mixer, LayerNorm(d, eps=1e-6), Mlp(d)
        self.gamma = nn.Parameter(torch.full((d,), layer_scale))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Map) -> Map:
        """Add the branch. Raises as the mixer does."""
        grid = (x.shape[1], x.shape[2])
        y, _ = self.mixer.mix(x.flatten(1, 2), None, Context(shared={"grid": grid}))
        y = self.mlp.map_channels(self.norm(y)).unflatten(1, grid)
        return x + self.drop_path(y * self.gamma)


@register_notrace_module
class NormConv(nn.Module):
    """A norm, then a convolution that halves the map, (b, h, w, d) to (b, h / 2, w / 2, d'). Raises nothing.

    An odd side loses its last row or column; a side of one stays.
    """

    def __init__(self, d: int, out: int):
        super().__init__()
        self.norm, self.conv = LayerNorm(d, eps=1e-6), nn.Conv2d(d, out, 2, 2)

    def forward(self, x: Map) -> Map:
        """Halve. Raises nothing."""
        x = self.norm(x).permute(0, 3, 1, 2)
        x = nn.functional.pad(x, (0, max(0, 2 - x.shape[3]), 0, max(0, 2 - x.shape[2])))
        return self.conv(x).permute(0, 2, 3, 1)


class S4NDConvNeXt(Pyramid):
    """S4ND-ConvNeXt: images (b, in_chans, height, width) of any size to logits (b, num_classes).

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 for none, which makes the pooled features the output.
        global_pool: As timm's heads take it: "avg", "max", ... or "" for the map itself.
        depths: Blocks of each stage.
        embed_dim: Channels of the first stage; each further one has twice as many.
        mixer: What filters the map, as `ssmcore.build_mixer` takes it; None is S4ND over rows and columns.
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
        depths: Sequence[int] = (3, 3, 9, 3),
        embed_dim: int = 96,
        mixer: MixerSpec | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        own = S4NDConfig(tied=True, map_out=False, dt_min=0.1, dt_max=1.0)
        dims = [embed_dim * 2**s for s in range(len(depths))]
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        with torch.device(device or torch.get_default_device()):
            stages = []
            for s, (depth, d) in enumerate(zip(depths, dims, strict=True)):
                filters = [S4ND(d, own) if mixer is None else on_grid(mixer, d) for _ in range(depth)]
                blocks = [ConvNextBlock(f, next(rates)) for f in filters]
                stages.append(Stage(NormConv(dims[s - 1], d) if s else nn.Identity(), blocks))
            super().__init__(
                ConvNorm(in_chans, embed_dim, 4, 4, 0, eps=1e-6),
                stages,
                dims,
                LayerNorm(dims[-1], eps=1e-6),
                reductions=[4 * 2**s for s in range(len(dims))],
                in_chans=in_chans,
                num_classes=num_classes,
                global_pool=global_pool,
                drop_rate=drop_rate,
            )
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and ".mixer." not in name:
                init_linear(module)
        self.to(device, dtype)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights by name from what this package saved; upstream has published none.

    Args:
        state_dict: A checkpoint or the weights in it.
        model: The model that will hold them.
    Returns:
        Tensors by name.
    Raises:
        ValueError: It holds no tensors.
    """
    return unwrap(state_dict)


def _cfg(**overrides: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_name": "S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces",
        "paper_ids": "arXiv:2210.06583",
        "origin_url": "https://github.com/state-spaces/s4",
        **overrides,
    }


_TOKENS = {"pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head"}
default_cfgs = generate_default_cfgs(
    {"s4nd_vit_base_patch16_224.untrained": _cfg(**_TOKENS), "s4nd_convnext_tiny.untrained": _cfg()}
)


@register_model
def s4nd_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> S4NDViT:
    """S4ND-ViT-B: 89 M parameters, 80.4 % as published. Images (b, 3, height, width); raises TypeError."""
    return build(S4NDViT, "s4nd_vit_base_patch16_224", pretrained, kwargs)


@register_model
def s4nd_convnext_tiny(pretrained: bool = False, **kwargs: Any) -> S4NDConvNeXt:
    """S4ND-ConvNeXt-T: 30 M parameters, 82.2 %. Images (b, 3, height, width); raises TypeError."""
    return build(S4NDConvNeXt, "s4nd_convnext_tiny", pretrained, kwargs)
