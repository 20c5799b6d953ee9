"""Hyena: gates and long convolutions in turn, the taps of each convolution made by a small network from their time.

    (x_0 .. x_(n-1), v) = shortconv(in_proj x);   v <- K_i * (v x_i) + b_i v x_i, i = n-1 .. 1;   y = out_proj(v x_0)
    K[t] = net(z(t)) (exp(-alpha_d t) + shift),   z(t) = [t, Re and Im of e^(-2 pi i f t') ..]

The network's nonlinearity is sin(omega .), one omega a unit for all its layers; its parameters do not grow with the
length. Time runs from 0 to 1 over l_max tokens (t; t' ends one token later), so another l_max stretches the kernels.
As published, the net's outputs are the taps of channel v and convolution o at v (n - 1) + o, the first convolution
being the one that is applied first, and so are the rates alpha.
Source: Poli et al. 2023, Hyena hierarchy: towards larger convolutional language models, sec. 3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..functional import at_least_float32, fft_conv
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from .short_conv import ShortConv


@dataclass(frozen=True, kw_only=True)
class HyenaConfig:
    """Options of Hyena."""

    order: int = 2
    """Gates n; n - 1 long convolutions stand between them."""
    l_max: int = 1024
    """Unit of time of the kernels, in tokens: the longest sequence of the training."""
    d_conv: int = 3
    """Width of the short convolution, in tokens."""
    filter_width: int = 64
    """Hidden units of the network that makes the taps."""
    filter_layers: int = 3
    """Its hidden layers."""
    frequencies: int = 8
    """Frequencies of the time features, about 0 upwards in cycles over l_max."""
    omega: float = 1.0
    """Initial frequency of the network's sines; 10 for recall over very long sequences."""
    decay: tuple[float, float] = (0.3, 1.5)
    """Time, in l_max, at which the envelope has fallen to 1/100, in the fastest and the slowest channel."""
    shift: float = 0.0
    """What the envelope falls to."""

    def __post_init__(self):
        if self.order < 2 or self.filter_layers < 1 or self.l_max < 1:
            raise ValueError(
                f"HyenaConfig: order={self.order}, filter_layers={self.filter_layers}, l_max={self.l_max}, expected an "
                "order of at least 2 and the others at least 1"
            )


class Sine(nn.Module):
    """sin(omega x) with a trained omega for each unit, (..., w) to (..., w). Raises nothing."""

    def __init__(self, width: int, omega: float):
        super().__init__()
        self.omega = nn.Parameter(torch.full((width,), omega))

    def forward(self, x: Float[Tensor, "... w"]) -> Float[Tensor, "... w"]:
        """Elementwise, shape (..., w). Raises nothing."""
        return torch.sin(self.omega * x)


class Hyena(Mixer):
    """The Hyena operator, (b, l, d) to (b, l, d). It has no state. Raises nothing of its own."""

    title = "Gates and convolutions with implicit kernels"
    operator = "causal_conv1d, fft_conv"
    selective = True
    Config = HyenaConfig
    examples = ({"l_max": 40, "filter_width": 8}, {"l_max": 16, "order": 3, "filter_width": 8, "omega": 10.0})
    recurrent = False
    residual_out = ("out_proj.weight", "out_proj.bias")
    rates: Tensor

    def __init__(self, d_model: int, config: HyenaConfig | None = None):
        super().__init__(d_model, config)
        c: HyenaConfig = self.config
        wide, w = (c.order + 1) * d_model, c.filter_width
        self.in_proj = nn.Linear(d_model, wide)
        self.conv = ShortConv(wide, c.d_conv, activation=None)
        sine = Sine(w, c.omega)
        layers: list[nn.Module] = [nn.Linear(1 + 2 * c.frequencies, w), sine]
        for _ in range(c.filter_layers - 1):
            layers += [nn.Linear(w, w), sine]
        self.net = nn.Sequential(*layers, nn.Linear(w, (c.order - 1) * d_model, bias=False))
        self.D = nn.Parameter(torch.randn(c.order - 1, d_model))
        slowest, fastest = (math.log(100) / time for time in reversed(c.decay))
        rates = torch.linspace(slowest, fastest, (c.order - 1) * d_model)
        self.register_buffer("rates", rates)
        self.out_proj = nn.Linear(d_model, d_model)

    def param_spec(self) -> dict[str, ParamSpec]:
        """The network that makes the taps, and the skips, do not decay. No shapes, raises nothing."""
        names = ["D", *(f"net.{name}" for name, _ in self.net.named_parameters())]
        return dict.fromkeys(names, ParamSpec(decay=False))

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """Gates and convolutions on x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        short, _ = self.conv(self.in_proj(x), None, ctx)
        *gates, v = short.chunk(self.config.order + 1, -1)
        longest = x.shape[1] if ctx.rows is None else int(ctx.rows.lengths.max())
        with torch.autocast(x.device.type, enabled=False):
            kernels, D = self.kernels(longest), at_least_float32(self.D)
            for i, gate in enumerate(reversed(gates[1:])):
                v = fft_conv(v * gate, kernels[i], D=D[i], cu_seqlens=ctx.cu_seqlens)
        return self.out_proj(v * gates[0]), None

    def kernels(self, length: int) -> Float[Tensor, "convs l d"]:
        """The taps of each convolution, skip not included, shape (order - 1, l, d). Raises nothing."""
        rates, l_max = at_least_float32(self.rates), self.config.l_max
        step = torch.arange(length, dtype=rates.dtype, device=rates.device)[:, None]
        t = step / max(1, l_max - 1)
        f = self.config.frequencies
        angle = 2 * math.pi / l_max * step * torch.linspace(1e-4, f - 1, f, dtype=rates.dtype, device=rates.device)
        taps = self.net(torch.cat([t, angle.cos(), -angle.sin()], -1).to(self.D.dtype))
        taps = at_least_float32(taps) * (torch.exp(-t * rates) + self.config.shift)
        return taps.unflatten(-1, (self.d_model, -1)).movedim(-1, 0)
