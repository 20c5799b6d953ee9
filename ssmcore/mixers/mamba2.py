"""Mamba-2: a selective state space whose decay is one number a head, so that its scan is a product of matrices (SSD).

    z, u, B, C, dt = in_proj x;   u, B, C = silu(conv (u, B, C));   dt = softplus(dt + dt_bias)
    S[t] = exp(dt[t] A) S[t-1] + B[t] (dt[t] u[t])^T,   y[t] = S[t]^T C[t] + D u[t],   out = out_proj norm(y silu(z))

Code to paper: A = -exp(A_log), one a head; B, C, D as there, B and C shared by the heads of a group; b batch, l length,
h heads, g groups, n state size, p head width. Parameters have the names and shapes of the published checkpoints.
Source: Dao & Gu 2024, Transformers are SSMs, sec. 5-7.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, TimeSteps, Tokens
from ..functional import at_least_float32, chunked_scan
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..steps import inverse_softplus, log_uniform
from .short_conv import ShortConv


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """Options of the Mamba-2 block."""

    d_state: int = 128
    """State size n of a channel."""
    d_conv: int = 4
    """Width of the short convolution, in tokens."""
    expand: float = 2.0
    """Inner channels h p, in multiples of d_model."""
    headdim: int | None = None
    """Head width p; None is the largest divisor of the inner channels up to 64."""
    ngroups: int = 1
    """Groups of heads that share B and C, and within which the output is normalised."""
    A_init_range: tuple[float, float] = (1.0, 16.0)
    """Range of the initial decay rates -A."""
    dt_min: float = 1e-3
    """Smallest initial step."""
    dt_max: float = 0.1
    """Largest initial step."""
    chunk: int = 64
    """Tokens that the scan computes at once, a power of two: a matter of speed only."""

    def __post_init__(self):
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"Mamba2Config: expected 0 < dt_min <= dt_max, got {self.dt_min} and {self.dt_max}")
        if not 0 < self.A_init_range[0] <= self.A_init_range[1]:
            raise ValueError(f"Mamba2Config: A_init_range={self.A_init_range}, expected 0 < low <= high")


class GatedNorm(nn.Module):
    """RMS norm of y silu(z), over groups of channels, in float32; (b, l, d). Raises nothing."""

    def __init__(self, d: int, groups: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.groups, self.eps = nn.Parameter(torch.ones(d)), groups, eps

    def forward(self, y: Tokens, z: Tokens) -> Tokens:
        """Gate, then normalise; y and z (b, l, d) to the dtype of z. Raises nothing."""
        gated = (at_least_float32(y) * F.silu(at_least_float32(z))).unflatten(-1, (self.groups, -1))
        gated = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)
        return (gated.flatten(-2) * self.weight).to(z.dtype)


class Mamba2(Mixer):
    """The Mamba-2 block, (b, l, d_model) to (b, l, d_model). State: conv (b, d_conv - 1, c), ssm (b, h, n, p).

    Raises:
        ValueError: The head width does not divide the inner channels, or the groups do not divide the heads.
    """

    title = "Selective state space with a decay a head (SSD)"
    operator = "chunked_scan"
    selective = True
    Config = Mamba2Config
    examples = ({"d_state": 16, "headdim": 4}, {"d_state": 3, "headdim": 4, "ngroups": 2, "d_conv": 2, "chunk": 16})
    takes_dt = True
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: Mamba2Config | None = None):
        super().__init__(d_model, config)
        c: Mamba2Config = self.config
        self.d_inner = d = int(c.expand * d_model)
        self.headdim = p = c.headdim or max(i for i in range(1, min(d, 64) + 1) if d % i == 0)
        self.num_heads = h = d // p
        if d % p or h % c.ngroups:
            raise ValueError(f"Mamba2: {d} inner channels, heads of {p} and {c.ngroups} groups do not divide")
        self.d_shared = c.ngroups * c.d_state
        self.in_proj = nn.Linear(d_model, 2 * d + 2 * self.d_shared + h, bias=False)
        self.conv1d = ShortConv(d + 2 * self.d_shared, c.d_conv)
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(h, c.dt_min, c.dt_max)))
        self.A_log = nn.Parameter(torch.empty(h).uniform_(*c.A_init_range).log())
        self.D = nn.Parameter(torch.ones(h))
        self.norm = GatedNorm(d, c.ngroups)
        self.out_proj = nn.Linear(d, d_model, bias=False)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Decay rates, skip and step bias do not decay. No shapes, raises nothing."""
        return dict.fromkeys(("dt_bias", "A_log", "D"), ParamSpec(decay=False))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: conv (b, d_conv - 1, c), the inputs of the convolution; ssm (b, h, n, p). Raises nothing."""
        c: Mamba2Config = self.config
        channels = self.d_inner + 2 * self.d_shared
        return {
            "conv": self._zeros(batch, c.d_conv - 1, channels, device=device, dtype=dtype),
            "ssm": self._zeros(batch, self.num_heads, c.d_state, self.headdim, device=device, dtype=dtype),
        }

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """One pass over x, (b, l, d_model) or packed; see Mixer.mix. Raises nothing of its own."""
        state, shared = state or {}, self.d_shared
        z, u, dt = self.in_proj(x).split([self.d_inner, self.d_inner + 2 * shared, self.num_heads], -1)
        u, conv = self.conv1d(u, state.get("conv"), ctx)
        u, B, C = u.split([self.d_inner, shared, shared], -1)
        u = at_least_float32(u).unflatten(-1, (self.num_heads, self.headdim))
        B, C = (at_least_float32(M).unflatten(-1, (self.config.ngroups, -1)) for M in (B, C))
        dt = self.time_steps(dt, ctx.dt)
        y, ssm = chunked_scan(
            C,
            B,
            dt[..., None] * u,
            log_decay=-dt * at_least_float32(self.A_log).exp(),
            initial_state=state.get("ssm"),
            cu_seqlens=ctx.cu_seqlens,
            return_last_state=True,
            chunk=self.config.chunk,
        )
        y = (y + at_least_float32(self.D)[:, None] * u).flatten(-2)
        return self.out_proj(self.norm(y, z)), {"conv": conv, "ssm": ssm}

    def time_steps(self, dt: Float[Tensor, "b l h"], scale: TimeSteps | None) -> Float[Tensor, "b l h"]:
        """softplus(dt + dt_bias), times the tokens' own steps, (b, l); (b, l, h), in float32. Raises nothing."""
        dt = F.softplus(at_least_float32(dt) + at_least_float32(self.dt_bias))
        return dt if scale is None else dt * scale.to(dt.dtype)[..., None]
