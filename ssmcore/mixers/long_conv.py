"""LongConv: a convolution as long as the sequence whose taps are free parameters, made smooth by shrinking them.

    y = K * x + D x,   K = sign(k) relu(|k| - shrink),   out = glu(out_proj gelu(y))

Taps start random, or random under an envelope that decays at a rate of its own in each channel ("geometric").
Source: Fu et al. 2023, Simple hardware-efficient long convolutions for sequence modeling, sec. 3.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..functional import at_least_float32, fft_conv
from ..mixer import Context, Mixer, ParamSpec
from ..state import State


@dataclass(frozen=True, kw_only=True)
class LongConvConfig:
    """Options of the long convolution."""

    l_max: int = 1024
    """Taps of the kernel, in tokens; longer sequences are filtered with as many."""
    causal: bool = True
    """Whether only the past is seen; without, a second kernel looks ahead."""
    init: Literal["geometric", "random"] = "geometric"
    """The initial taps."""
    shrink: float = 0.003
    """What is taken off the size of each tap; smaller ones are 0."""
    smooth: int | None = None
    """Width of a moving average over the taps, odd; None is none."""
    dropout: float = 0.0
    """Rate at which taps are dropped in training."""
    lr_scale: float = 0.5
    """Factor on the learning rate of the taps, which do not decay."""

    def __post_init__(self):
        if self.l_max < 1 or self.shrink < 0 or (self.smooth or 1) % 2 == 0:
            raise ValueError(
                f"LongConvConfig: l_max={self.l_max}, shrink={self.shrink}, smooth={self.smooth}, expected at least "
                "one tap, shrink >= 0 and an odd width"
            )


class LongConv(Mixer):
    """The long convolution, (b, l, d) to (b, l, d). It has no state. Raises nothing of its own."""

    title = "Convolution with free taps as long as the sequence"
    operator = "fft_conv"
    Config = LongConvConfig
    examples = ({"l_max": 40}, {"l_max": 30, "causal": False, "init": "random", "shrink": 1e-4, "smooth": 3})
    recurrent = False

    def __init__(self, d_model: int, config: LongConvConfig | None = None):
        super().__init__(d_model, config)
        self.causal = self.lti = self.config.causal
        self.build_taps(1 if self.causal else 2)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model)

    def build_taps(self, ways: int) -> None:
        """Make the parameters of one kernel, or of one for each way of time. No shapes, raises nothing."""
        c, d = self.config, self.d_model
        taps = torch.randn(ways, c.l_max, d)
        if c.init == "geometric":
            rate = (d / 2) ** (torch.arange(1, d + 1) / d)
            self.taps = nn.Parameter(0.02 * taps * torch.exp(-torch.arange(c.l_max)[:, None] / c.l_max * rate))
        else:
            self.taps = nn.Parameter(0.002 * taps)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Taps learn slowly and do not decay. No shapes, raises nothing."""
        return {"taps": ParamSpec(decay=False, lr_scale=self.config.lr_scale)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """Convolution and output map on x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        return F.glu(self.out_proj(F.gelu(self.core(x, state, ctx)[0])), dim=-1), None

    def core(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """The convolution, shape of x. Raises nothing of its own."""
        with torch.autocast(x.device.type, enabled=False):
            kernels = self.kernels()
            ahead = kernels[1] if len(kernels) > 1 else None
            return fft_conv(
                x, kernels[0], kernel_back=ahead, back_lag=1, D=at_least_float32(self.D), cu_seqlens=ctx.cu_seqlens
            ), None

    def kernel(self, length: int) -> Float[Tensor, "l d"]:
        """The causal core's answer to a single one at time 0, skip included, shape (l, d). Raises nothing."""
        taps = self.kernels()[0][:length]
        taps = F.pad(taps, (0, 0, 0, length - len(taps)))
        return torch.cat([taps[:1] + at_least_float32(self.D), taps[1:]])

    def kernels(self) -> Float[Tensor, "ways k d"]:
        """The taps that are used: averaged, shrunk, dropped; (1 or 2, k, d), the second for the future."""
        c, taps = self.config, at_least_float32(self.taps)
        if c.smooth is not None:
            taps = F.avg_pool1d(taps.mT, c.smooth, 1, c.smooth // 2).mT
        return F.dropout(squash(taps, c.shrink), c.dropout, self.training)


def squash(x: Float[Tensor, "..."], shrink: float) -> Float[Tensor, "..."]:
    """sign(x) relu(|x| - shrink), any shape: odd, 1-Lipschitz, zero within `shrink`. Raises nothing."""
    return x.sign() * F.relu(x.abs() - shrink)
