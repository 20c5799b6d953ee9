"""What stands around a mixer in a stack: norms, stochastic depth and the residual branch.

Norms and the residual stream are float32 whatever the autocast type.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from ssm_kernels.checks import check_choice
from torch import Tensor, nn

from .array_types import Float, Tokens
from .functional import at_least_float32
from .mixer import Context, Mixer
from .registry import resolve
from .state import State

Placement = Literal["pre", "post", "sandwich"]
"""pre: x + f(norm x).  post: norm(x + f x).  sandwich: x + norm(f(norm x))."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the channels, in float32; (..., d) in the dtype of the weight. Raises nothing."""

    def __init__(self, d: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise, shape (..., d). Raises nothing."""
        x = at_least_float32(x)
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return y.to(self.weight.dtype) * self.weight


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm, computed in float32; returns (..., d) in the dtype of the weight. Raises nothing."""

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise, shape (..., d). Raises nothing."""
        weight, bias = at_least_float32(self.weight), at_least_float32(self.bias)
        with torch.autocast(x.device.type, enabled=False):
            y = F.layer_norm(at_least_float32(x).to(weight.dtype), self.normalized_shape, weight, bias, self.eps)
        return y.to(self.weight.dtype)


class ScalarNorm(nn.Module):
    """(x - mean + shift) / std * scale over the channels, with one shift and one scale, in float32; (..., d).

    Raises nothing.
    Source: Goel et al. 2022, SaShiMi, the code.
    """

    def __init__(self, d: int, eps: float = 1e-12):
        super().__init__()
        self.shift, self.scale, self.eps = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1)), eps

    @property
    def weight(self) -> Tensor:
        """The parameter whose dtype the output has, shape (1,)."""
        return self.scale

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise, shape (..., d). Raises nothing."""
        x = at_least_float32(x)
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        y = (x - mean + at_least_float32(self.shift)) * torch.rsqrt(variance + self.eps) * at_least_float32(self.scale)
        return y.to(self.scale.dtype)


class BatchNorm(nn.BatchNorm1d):
    """Each channel normalised over all tokens of the batch that exist, in float32; (..., d).

    Evaluation uses running moments and is causal; training is not, since every token counts in them.

    Raises nothing.
    Source: Ioffe & Szegedy 2015, as S4 and S5 use it for Long Range Arena.
    """

    running_mean: Tensor

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise, shape (..., d). Raises nothing."""
        with torch.autocast(x.device.type, enabled=False):
            y = super().forward(at_least_float32(x).to(self.running_mean.dtype).flatten(0, -2))
        return y.view_as(x).to(self.weight.dtype)


NORMS: dict[str, Any] = {"rms": RMSNorm, "layer": LayerNorm, "scalar": ScalarNorm, "batch": BatchNorm}


class DropPath(nn.Module):
    """Stochastic depth: in training, a batch item loses a whole branch with probability `rate`.

    Shapes: (b, l, d) or packed (1, tokens, d). Raises nothing.
    Source: Huang et al. 2016, Deep networks with stochastic depth.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tokens, ctx: Context) -> Tokens:
        """Drop and rescale, shape of x. Raises nothing."""
        if self.rate == 0 or not self.training:
            return x
        items = x.shape[0] if ctx.rows is None else ctx.rows.shape[0]
        keep = (torch.rand(items, 1, 1, device=x.device) >= self.rate).to(x.dtype) / (1 - self.rate)
        return x * (keep if ctx.rows is None else keep[ctx.rows.item].transpose(0, 1))


class Residual(nn.Module):
    """A mixer, its norms and its dropout on a residual stream, (b, l, d) to (b, l, d).

    With `layer_scale` each channel of the branch is multiplied by a learned number that starts there.

    Raises:
        ValueError: norm or placement is unknown.
    """

    def __init__(
        self,
        mixer: Mixer,
        *,
        norm: str = "rms",
        placement: Placement = "pre",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ):
        super().__init__()
        check_choice("Residual", "placement", placement, get_args(Placement))
        make = resolve(norm, NORMS, "norm")
        self.placement = placement
        self.norm = make(mixer.d_model)
        self.mixer = mixer
        self.norm_out = make(mixer.d_model) if placement == "sandwich" else None
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((mixer.d_model,), layer_scale))

    def forward(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """Add the branch to the stream.

        Args:
            x: The stream, shape (b, l, d) or packed, float32 or float64.
            state: The mixer's.
            ctx: Goes to the mixer.
        Returns:
            The stream, shape and dtype of x; and the mixer's new state.
        Raises:
            Unsupported: The mixer cannot do what ctx asks.
        """
        inside = x.to(self.norm.weight.dtype) if self.placement == "post" else self.norm(x)
        y, state = self.mixer.branch(inside, x, state, ctx)
        if self.norm_out is not None:
            y = self.norm_out(y)
        if self.gamma is not None:
            y = y * self.gamma
        x = x + self.drop_path(self.dropout(y), ctx).to(x.dtype)
        return (self.norm(x).to(x.dtype) if self.placement == "post" else x), state
