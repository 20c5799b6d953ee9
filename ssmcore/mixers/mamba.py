"""Mamba (S6): a diagonal state space whose step, input and output weights depend on the token, inside a gated block.

    u, z = in_proj x;   u = silu(conv u);   dt, B, C = x_proj u;   dt = softplus(dt_proj dt)
    h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t],   y[t] = C[t] . h[t] + D u[t],   out = out_proj(y silu(z))

Code to paper: dt = Δ, A = -exp(A_log), B, C, D as there; b batch, l length, d inner channels, n state size.
Parameters have the names and shapes of the published checkpoints, the complex option aside.
Source: Gu & Dao 2023, Mamba, sec. 3.2-3.6; Goel et al. 2022 and Mamba sec. 4.3.2 for complex poles on audio.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, Inexact, TimeSteps, Tokens
from ..discretization import Rule
from ..functional import at_least_float32, causal_conv1d, selective_scan
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..steps import inverse_softplus, log_uniform
from .short_conv import ShortConv


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """Options of the Mamba block."""

    d_state: int = 16
    """State size of a channel, n, counted in real numbers."""
    d_conv: int = 4
    """Width of the short convolution, in tokens."""
    expand: float = 2.0
    """Inner channels d, in multiples of d_model."""
    dt_rank: int | None = None
    """Rank of the map to the steps; None is d_model / 16, rounded up."""
    dt_min: float = 1e-3
    """Smallest initial step."""
    dt_max: float = 0.1
    """Largest initial step."""
    rule: Rule = "euler"
    """Discretisation; the published model uses "euler"."""
    poles: Literal["real", "complex"] = "real"
    """A = -1 .. -n; or conjugate pairs -1/2 ± i k, k < n / 2, with complex B and C."""
    bias: bool = False
    """Biases of in_proj and out_proj."""
    conv_bias: bool = True
    """Bias of the short convolution."""

    def __post_init__(self):
        if self.d_state < 1 or (self.poles == "complex" and self.d_state % 2):
            raise ValueError(f"MambaConfig: d_state={self.d_state}, expected at least 1, and even for complex poles")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"MambaConfig: expected 0 < dt_min <= dt_max, got {self.dt_min} and {self.dt_max}")


class Mamba(Mixer):
    """The Mamba block, (b, l, d_model) to (b, l, d_model). State: conv (b, d_conv - 1, d), ssm (b, d, n).

    Raises:
        ValueError: d_model < 1.
    """

    title = "Selective state space (S6) in a gated block"
    operator = "selective_scan"
    selective = True
    Config = MambaConfig
    examples = ({}, {"d_state": 4, "poles": "complex", "rule": "zoh", "d_conv": 2, "expand": 1.5})
    takes_dt = True
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: MambaConfig | None = None):
        super().__init__(d_model, config)
        c: MambaConfig = self.config
        self.d_inner = d = int(c.expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if c.dt_rank is None else c.dt_rank
        self.in_proj = nn.Linear(d_model, 2 * d, bias=c.bias)
        self.conv1d = ShortConv(d, c.d_conv, bias=c.conv_bias, activation="silu")
        self.x_proj = nn.Linear(d, self.dt_rank + 2 * c.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d, bias=True)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
            self.dt_proj.bias.copy_(inverse_softplus(log_uniform(d, c.dt_min, c.dt_max)))
        if c.poles == "real":
            self.A_log = nn.Parameter(torch.arange(1.0, c.d_state + 1).log().repeat(d, 1))
        else:
            n = c.d_state // 2
            self.A_log = nn.Parameter(torch.full((d, n), 0.5).log())
            self.A_imag = nn.Parameter(torch.arange(float(n)).repeat(d, 1))
        self.D = nn.Parameter(torch.ones(d))
        self.out_proj = nn.Linear(d, d_model, bias=c.bias)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles, skip and step bias do not decay. No shapes, raises nothing."""
        names = ["A_log", "D", "dt_proj.bias", *(["A_imag"] if self.config.poles == "complex" else [])]
        return {name: ParamSpec(decay=False) for name in names}

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: conv (b, d_conv - 1, d), the inputs of the convolution; ssm (b, d, n). Raises nothing."""
        complex_pairs = self.config.poles == "complex"
        return {
            "conv": self._zeros(batch, self.config.d_conv - 1, self.d_inner, device=device, dtype=dtype),
            "ssm": self._zeros(batch, *self.A_log.shape, device=device, dtype=dtype, complex_pairs=complex_pairs),
        }

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """One pass over x, (b, l, d_model) or packed; see Mixer.mix. Raises nothing of its own."""
        state = state or {}
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, conv = self.conv1d(u, state.get("conv"), ctx)
        n = self.config.d_state
        low_rank, B, C = self.x_proj(u).split([self.dt_rank, n, n], dim=-1)
        dt = self.time_steps(low_rank, ctx.dt)
        if self.config.poles == "complex":
            B, C = (torch.complex(*at_least_float32(M).chunk(2, dim=-1)) for M in (B, C))
        y, ssm = selective_scan(
            u,
            dt,
            self.poles(),
            B,
            C,
            D=self.D,
            z=z,
            initial_state=state.get("ssm"),
            cu_seqlens=ctx.cu_seqlens,
            rule=self.config.rule,
            return_last_state=True,
        )
        return self.out_proj(y), {"conv": conv, "ssm": ssm}

    def mix_pair(
        self, other: Mixer, x: Tokens, turned: Tokens, ctx: Context, turned_ctx: Context
    ) -> tuple[Tokens, Tokens]:
        """Both in one call of each operator, where both have real poles: channels side by side, in two groups of B, C.

        Shapes as Mixer.mix_pair. Raises nothing of its own.
        """
        if self.config.poles != "real" or not isinstance(other, Mamba):
            return super().mix_pair(other, x, turned, ctx, turned_ctx)
        pair, shape = (self, other), x.shape[:2]
        u, z = _each([m.in_proj for m in pair], torch.stack([x, turned])).chunk(2, dim=-1)
        biases: list[Tensor] = [m.conv1d.bias for m in pair if m.conv1d.bias is not None]
        u = causal_conv1d(
            _side_by_side(u),
            torch.cat([m.conv1d.weight[:, 0] for m in pair]),
            None if self.conv1d.bias is None else torch.cat(biases),
            activation="silu",
            cu_seqlens=ctx.cu_seqlens,
        )
        assert isinstance(u, Tensor)
        n = self.config.d_state
        low_rank, B, C = _each([m.x_proj for m in pair], u.unflatten(-1, (2, -1)).movedim(-2, 0)).split(
            [self.dt_rank, n, n], dim=-1
        )
        with torch.autocast(x.device.type, enabled=False):
            weight = at_least_float32(torch.stack([m.dt_proj.weight for m in pair]))
            bias = at_least_float32(torch.cat([m.dt_proj.bias for m in pair]))
            dt = _side_by_side(torch.bmm(low_rank.flatten(1, 2).to(weight.dtype), weight.mT).unflatten(1, shape))
            steps = [c.dt for c in (ctx, turned_ctx) if c.dt is not None]
            if steps:  # the tokens' own, each direction's
                scale = torch.stack(steps, -1)[..., None].to(dt.dtype)
                dt = (F.softplus(dt + bias).unflatten(-1, (2, -1)) * scale).flatten(-2)
        y = selective_scan(
            u,
            dt,
            torch.cat([m.poles() for m in pair]),
            B.movedim(0, 2),
            C.movedim(0, 2),
            D=torch.cat([m.D for m in pair]),
            z=_side_by_side(z),
            dt_bias=None if steps else bias,
            dt_softplus=not steps,
            cu_seqlens=ctx.cu_seqlens,
            rule=self.config.rule,
        )
        assert isinstance(y, Tensor)
        ahead, back = _each([m.out_proj for m in pair], y.unflatten(-1, (2, -1)).movedim(-2, 0))
        return ahead, back

    def time_steps(self, low_rank: Tokens, scale: TimeSteps | None) -> Tokens:
        """softplus(dt_proj low_rank), times the tokens' own steps; (b, l, d), in float32. Raises nothing."""
        with torch.autocast(low_rank.device.type, enabled=False):
            weight, bias = at_least_float32(self.dt_proj.weight), at_least_float32(self.dt_proj.bias)
            dt = F.softplus(F.linear(at_least_float32(low_rank).to(weight.dtype), weight, bias))
            return dt if scale is None else dt * scale.to(dt.dtype)[..., None]

    def poles(self) -> Inexact[Tensor, "d n"]:
        """A, in float32, shape (d, n). Raises nothing."""
        real = -at_least_float32(self.A_log).exp()
        return real if self.config.poles == "real" else torch.complex(real, at_least_float32(self.A_imag))


def _each(maps: Sequence[nn.Linear], x: Float[Tensor, "k b l c"]) -> Float[Tensor, "k b l d"]:
    """Each of k linear maps of one size on its own tokens."""
    weight = torch.stack([m.weight for m in maps])
    y = torch.bmm(x.flatten(1, 2), weight.mT).unflatten(1, x.shape[1:3])
    return y if maps[0].bias is None else y + torch.stack([m.bias for m in maps])[:, None, None]


def _side_by_side(x: Float[Tensor, "k b l d"]) -> Tokens:
    """The channels of k sequences one after the other, (b, l, k d)."""
    return x.movedim(0, 2).flatten(2)
