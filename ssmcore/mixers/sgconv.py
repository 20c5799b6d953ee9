"""SGConv: a long kernel of few parameters, its pieces twice as long and smooth from one to the next, and weaker.

    K = concat over s < S of up(w_s, 2^max(0, s - 1)) decay^(S - s - 1) / |K at the start|

up() stretches the w taps of a piece to its length, so that a kernel of w 2^(S - 1) taps has S w parameters a channel.
Source: Li et al. 2023, What makes convolutional models great on long sequence modeling? sec. 3.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float
from ..functional import at_least_float32
from .long_conv import LongConv


@dataclass(frozen=True, kw_only=True)
class SgConvConfig:
    """Options of SGConv."""

    l_max: int = 1024
    """Tokens that the kernel must reach; it is rounded up to d_kernel times a power of two."""
    d_kernel: int = 32
    """Taps w of a piece before it is stretched."""
    decay_min: float = 2.0
    """How much weaker a piece is than the one before it, in the first channel."""
    decay_max: float = 2.0
    """The same in the last channel."""
    stretch: Literal["linear", "nearest"] = "linear"
    """How taps are stretched."""
    causal: bool = True
    """Whether only the past is seen; without, a second kernel looks ahead."""
    lr_scale: float = 1.0
    """Factor on the learning rate of the taps, which do not decay."""

    def __post_init__(self):
        if self.l_max < 1 or self.d_kernel < 1:
            raise ValueError(f"SgConvConfig: l_max={self.l_max}, d_kernel={self.d_kernel}, expected at least 1")


class SgConv(LongConv):
    """The SGConv layer, (b, l, d) to (b, l, d). It has no state. Raises nothing of its own."""

    title = "Convolution with a multi-scale kernel"
    Config = SgConvConfig
    decay: Tensor
    examples = ({"l_max": 20, "d_kernel": 4}, {"l_max": 9, "d_kernel": 3, "stretch": "nearest", "causal": False})

    def build_taps(self, ways: int) -> None:
        """The pieces, and what makes the initial kernel's norm 1 in every channel. No shapes, raises nothing."""
        c, d = self.config, self.d_model
        self.scales = 1 + max(0, math.ceil(math.log2(c.l_max / c.d_kernel)))
        self.taps = nn.Parameter(torch.randn(ways, self.scales, c.d_kernel, d))
        self.register_buffer("decay", torch.linspace(c.decay_min, c.decay_max, d))
        self.register_buffer("scale", torch.ones(ways, 1, d))
        with torch.no_grad():
            self.scale = 1 / self.kernels().norm(dim=1, keepdim=True)

    def kernels(self) -> Float[Tensor, "ways k d"]:
        """All pieces, stretched and weakened, one after the other; (1 or 2, k, d), the second for the future."""
        taps, pieces = at_least_float32(self.taps), []
        for s in range(self.scales):
            piece = taps[:, s].mT
            if s > 1:
                piece = F.interpolate(piece, scale_factor=float(2 ** (s - 1)), mode=self.config.stretch)
            pieces.append(piece.mT * self.decay.to(taps.dtype) ** (self.scales - s - 1))
        return torch.cat(pieces, 1) * self.scale.to(taps.dtype)
