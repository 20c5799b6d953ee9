"""EinFFT, SiMBA's channel mixer: a small complex network on a Fourier transform, block by block of the channels.

    F = fft(x),   R = relu(W1 F + b1),   S = softshrink(W2 R + b2),   y = Re ifft(S)

relu and softshrink act on real and imaginary parts apart; W1 and W2 mix the channels of a block. The transform is
orthonormal and runs over the channels, as the paper writes, or over the tokens and the block index, as in the model
that the paper's numbers are of: there every token sees every other one.
Code to paper: complex_weight_1, complex_bias_1, ... = W1, b1, ..., real part first; k blocks of w channels.
Source: Patro & Agneeswaran 2024, SiMBA, sec. 3.1.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Complex, Float, Tokens
from ..functional import at_least_float32
from ..mixer import Context, Mixer
from ..state import State


@dataclass(frozen=True, kw_only=True)
class EinFftConfig:
    """Options of EinFFT."""

    over: Literal["tokens", "channels"] = "tokens"
    """What is transformed: tokens and block index (not causal), or all channels of each token (causal)."""
    blocks: int = 4
    """Blocks of channels k, a divisor of d_model."""
    shrink: float = 0.01
    """Threshold below which a real or imaginary part becomes 0."""
    init_std: float = 0.02
    """Standard deviation of the initial weights and biases."""

    def __post_init__(self):
        if self.blocks < 1 or self.shrink < 0:
            raise ValueError(f"EinFftConfig: blocks={self.blocks}, shrink={self.shrink}, expected >= 1 and >= 0")


class EinFFT(Mixer):
    """The spectral channel mixer, (b, l, d) to (b, l, d). Over channels its state is empty; over tokens it has none.

    Raises:
        ValueError: The blocks do not divide d_model, or `over` is unknown.
    """

    Config = EinFftConfig
    # The published scale is made for hundreds of channels: of 8, softshrink would leave nothing.
    examples = ({"init_std": 0.5}, {"over": "channels", "blocks": 2, "init_std": 0.5})

    def __init__(self, d_model: int, config: EinFftConfig | None = None):
        super().__init__(d_model, config)
        c: EinFftConfig = self.config
        if d_model % c.blocks:
            raise ValueError(f"EinFFT: {c.blocks} blocks do not divide d_model={d_model}")
        self.causal = self.recurrent = self.takes_rows = self.takes_dt = c.over == "channels"
        k, w = c.blocks, d_model // c.blocks
        self.complex_weight_1, self.complex_weight_2 = (
            nn.Parameter(c.init_std * torch.randn(2, k, w, w)) for _ in range(2)
        )
        self.complex_bias_1, self.complex_bias_2 = (nn.Parameter(c.init_std * torch.randn(2, k, w)) for _ in range(2))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Empty.

        Raises:
            Unsupported: The transform runs over the tokens.
        """
        if not self.recurrent:
            self._refuse("has no state when it transforms over tokens")
        return {}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """Transform, mix, transform back; x (b, l, d), or packed where tokens do not meet; see Mixer.mix."""
        k = self.config.blocks
        with torch.autocast(x.device.type, enabled=False):
            wide = at_least_float32(x).to(self.complex_bias_1.dtype)
            if self.config.over == "tokens":
                spectrum = torch.fft.fft2(wide.unflatten(-1, (k, -1)), dim=(1, 2), norm="ortho")
                y = torch.fft.ifft2(self.mix_spectrum(spectrum), dim=(1, 2), norm="ortho").real.flatten(-2)
            else:
                spectrum = torch.fft.fft(wide, norm="ortho").unflatten(-1, (k, -1))
                y = torch.fft.ifft(self.mix_spectrum(spectrum).flatten(-2), norm="ortho").real
        return y.to(x.dtype), {}

    def mix_spectrum(self, spectrum: Complex[Tensor, "... k w"]) -> Complex[Tensor, "... k w"]:
        """Both layers on the spectrum, shape (..., k, w). Raises nothing."""
        parts = torch.stack([spectrum.real, spectrum.imag])
        hidden = F.relu(_block_map(parts, self.complex_weight_1, self.complex_bias_1))
        out = F.softshrink(_block_map(hidden, self.complex_weight_2, self.complex_bias_2), self.config.shrink)
        return torch.complex(out[0], out[1])


def _block_map(
    x: Float[Tensor, "2 ... k w"], weight: Float[Tensor, "2 k w w"], bias: Float[Tensor, "2 k w"]
) -> Float[Tensor, "2 ... k w"]:
    """W x + b in each block, on complex numbers in two parts."""
    real, imag = (torch.einsum("...kw,kwv->...kv", x, part) for part in weight)
    return torch.stack([real[0] - imag[1] + bias[0], imag[0] + real[1] + bias[1]])
