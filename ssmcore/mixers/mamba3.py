"""Mamba-3: Mamba-2's scan with a trapezoidal input and a rotation of B and C that the tokens set.

    z, v, B, C, dt, a, trap, phi = in_proj x;   dt = softplus(dt + dt_bias);   lam = sigmoid(trap)
    theta[t] = theta[t-1] + dt[t] pi tanh(phi[t]);   k, q = (B, C normalised, plus bias) turned by theta
    S[t] = alpha[t] S[t-1] + (1 - lam[t]) dt[t] alpha[t] k[t-1] v[t-1]^T + lam[t] dt[t] k[t] v[t]^T
    y[t] = S[t]^T q[t] + D v[t],   out = out_proj(y silu(z));   alpha = exp(-dt rate(a))

The rotation is a complex state in real arithmetic: it can count modulo 2, which positive decays cannot. lam = 1 without
rotation is Mamba-2's map. With several keys and queries a token (MIMO) each rank i writes k_i (v x_i)^T and reads with
q_i, has D and the gate z z_i for itself, and the ranks are summed by weights o_i. Parameters have our names.
Names: b batch, l length, h heads, g groups, r ranks, n state size, p head width, f turned pairs of channels.
Source: Lahoti et al. 2025, Mamba-3: improved sequence modeling using state space principles, sec. 3.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, HeadTokens, TimeSteps, Tokens
from ..blocks import RMSNorm
from ..functional import at_least_float32, chunked_scan, linear_recurrence
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..steps import inverse_softplus, log_uniform


@dataclass(frozen=True, kw_only=True)
class Mamba3Config:
    """Options of the Mamba-3 block."""

    d_state: int = 128
    """State size n of a channel."""
    expand: float = 2.0
    """Inner channels h p, in multiples of d_model."""
    headdim: int | None = None
    """Head width p; None is the largest divisor of the inner channels up to 64."""
    ngroups: int = 1
    """Groups of heads that share B and C before bias and rotation."""
    rope_fraction: float = 0.5
    """Part of the state channels that is turned."""
    mimo_rank: int = 1
    """Keys and queries r of a head at each token; 4 in the published multi-input, multi-output form."""
    slowest: float = 1e-4
    """Smallest decay rate."""
    dt_min: float = 1e-3
    """Smallest initial step."""
    dt_max: float = 0.1
    """Largest initial step."""
    chunk: int = 64
    """Tokens that the scan computes at once, a power of two: a matter of speed only."""

    def __post_init__(self):
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"Mamba3Config: expected 0 < dt_min <= dt_max, got {self.dt_min} and {self.dt_max}")
        if not 0 <= self.rope_fraction <= 1:
            raise ValueError(f"Mamba3Config: rope_fraction={self.rope_fraction}, expected in 0..1")
        if self.mimo_rank < 1:
            raise ValueError(f"Mamba3Config: mimo_rank={self.mimo_rank}, expected at least 1")


class Mamba3(Mixer):
    """The Mamba-3 block, (b, l, d_model) to (b, l, d_model).

    State: ssm (b, h, n, p); k (b, h r, n) and v (b, h, p) of the last token; angle (b, h, f), in radians.

    Raises:
        ValueError: The head width does not divide the inner channels, or the groups do not divide the heads.
    """

    title = "Mamba-2 with trapezoidal writes and rotations"
    operator = "chunked_scan"
    selective = True
    Config = Mamba3Config
    examples = (
        {"d_state": 8, "headdim": 4},
        {"d_state": 3, "headdim": 4, "ngroups": 2, "rope_fraction": 0.0},
        {"d_state": 4, "headdim": 4, "ngroups": 2, "mimo_rank": 3},
    )
    takes_dt = True
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: Mamba3Config | None = None):
        super().__init__(d_model, config)
        c: Mamba3Config = self.config
        self.d_inner = d = int(c.expand * d_model)
        self.headdim = p = c.headdim or max(i for i in range(1, min(d, 64) + 1) if d % i == 0)
        self.num_heads = h = d // p
        if d % p or h % c.ngroups:
            raise ValueError(f"Mamba3: {d} inner channels, heads of {p} and {c.ngroups} groups do not divide")
        self.pairs = int(c.rope_fraction * c.d_state) // 2
        r, shared = c.mimo_rank, c.ngroups * c.d_state * c.mimo_rank
        self.widths = (d, d, shared, shared, h, h, h, self.pairs)
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(h, c.dt_min, c.dt_max)))
        self.B_norm, self.C_norm = RMSNorm(c.d_state), RMSNorm(c.d_state)
        self.B_bias, self.C_bias = (nn.Parameter(torch.ones(h * r, c.d_state)) for _ in range(2))
        if r > 1:
            self.mimo_x, self.mimo_o = (nn.Parameter(torch.full((h, r, p), 1 / r)) for _ in range(2))
            self.mimo_z = nn.Parameter(torch.ones(h, r, p))
        self.D = nn.Parameter(torch.ones(h))
        self.out_proj = nn.Linear(d, d_model, bias=False)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Biases and skip do not decay. No shapes, raises nothing."""
        return dict.fromkeys(("dt_bias", "B_bias", "C_bias", "D"), ParamSpec(decay=False))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: ssm (b, h, n, p), k (b, h r, n), v (b, h, p), angle (b, h, f). Raises nothing."""
        h, n, p = self.num_heads, self.config.d_state, self.headdim
        shapes = {"ssm": (h, n, p), "k": (h * self.config.mimo_rank, n), "v": (h, p), "angle": (h, self.pairs)}
        return {name: self._zeros(batch, *shape, device=device, dtype=dtype) for name, shape in shapes.items()}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """One pass over x, (b, l, d_model) or packed; see Mixer.mix. Raises nothing of its own."""
        if state is None:
            state = self.init_state(x.shape[0] if ctx.rows is None else ctx.rows.count, device=x.device)
        z, v, B, C, dt, a, trap, phi = self.in_proj(x).split(self.widths, -1)
        v = at_least_float32(v).unflatten(-1, (self.num_heads, -1))
        dt = self.time_steps(dt, ctx.dt)
        angle, turned = self.rotation(dt, phi, state["angle"], ctx)
        ranks = (self.config.mimo_rank, self.config.ngroups, -1)
        k = self.turned(self.B_norm(B.unflatten(-1, ranks)), self.B_bias, angle)
        q = self.turned(self.C_norm(C.unflatten(-1, ranks)), self.C_bias, angle)
        k_before, k_last = shift(k, state["k"], ctx)
        v_before, v_last = shift(v, state["v"], ctx)
        log_decay = -dt * self.rates(a)
        lam = at_least_float32(trap).sigmoid()
        late, now = (1 - lam) * dt * log_decay.exp(), lam * dt
        # Both writes of a step decay alike, so each has heads of its own and the two memories add up.
        y, ssm = self.scan(
            torch.cat([q, q], 2),
            torch.cat([k, k_before], 2),
            torch.cat([now[..., None] * v, late[..., None] * v_before], 2),
            torch.cat([log_decay, log_decay], -1),
            torch.cat([state["ssm"], torch.zeros_like(state["ssm"])], 1),
            ctx,
        )
        z = at_least_float32(z).unflatten(-1, (self.num_heads, -1))
        early, later = y.chunk(2, 2)
        y = self.read(early + later, v, z).flatten(-2).to(x.dtype)
        return self.out_proj(y), {"ssm": sum(ssm.chunk(2, 1)), "k": k_last, "v": v_last, "angle": turned}

    def scan(
        self,
        q: HeadTokens,
        k: HeadTokens,
        v: HeadTokens,
        log_decay: Float[Tensor, "b l H"],
        before: Float[Tensor, "r H n p"],
        ctx: Context,
    ) -> tuple[Float[Tensor, "b l H r p"], Float[Tensor, "r H n p"]]:
        """Write r keys a token and read with r queries: heads H of q and k are (H r, n), of v (H, p). Raises nothing.

        The ranks of a token become tokens of their own, r that write (the first one decays), then r - 1 that only
        read; the last one that writes reads too.
        """
        r, l = self.config.mimo_rank, v.shape[1]
        q, k = (t.unflatten(2, (-1, r)) for t in (q, k))
        v, m = self.each_rank(v, "mimo_x"), 2 * r - 1

        def tokens(t: Tensor, at: int) -> HeadTokens:
            return F.pad(t.transpose(2, 3), (0, 0, 0, 0, at, m - r - at)).flatten(1, 2)

        y, last = chunked_scan(
            tokens(q, r - 1),
            tokens(k, 0),
            tokens(v, 0),
            log_decay=F.pad(log_decay[:, :, None], (0, 0, 0, m - 1)).flatten(1, 2),
            initial_state=before,
            cu_seqlens=None if ctx.cu_seqlens is None else ctx.cu_seqlens * m,
            return_last_state=True,
            chunk=self.config.chunk,
        )
        return y.unflatten(1, (l, m))[:, :, r - 1 :].transpose(2, 3), last

    def read(self, y: Float[Tensor, "b l h r p"], v: HeadTokens, z: HeadTokens) -> HeadTokens:
        """Skip and gate of each rank, and their sum, (b, l, h, p). Raises nothing."""
        y = y + at_least_float32(self.D)[:, None, None] * self.each_rank(v, "mimo_x")
        y = y * F.silu(self.each_rank(z, "mimo_z"))
        return y.squeeze(3) if self.config.mimo_rank == 1 else (y * at_least_float32(self.mimo_o)).sum(3)

    def each_rank(self, x: HeadTokens, name: str) -> Float[Tensor, "b l H r p"]:
        """x of each head times the head's weights of each rank, shape (b, l, H, r, p). Raises nothing."""
        if self.config.mimo_rank == 1:
            return x[..., None, :]
        weights = at_least_float32(self.get_parameter(name))
        return x[..., None, :] * weights.repeat(x.shape[2] // len(weights), 1, 1)

    def time_steps(self, dt: Float[Tensor, "b l h"], scale: TimeSteps | None) -> Float[Tensor, "b l h"]:
        """softplus(dt + dt_bias), times the tokens' own steps, (b, l); (b, l, h), in float32. Raises nothing."""
        dt = F.softplus(at_least_float32(dt) + at_least_float32(self.dt_bias))
        return dt if scale is None else dt * scale.to(dt.dtype)[..., None]

    def rates(self, a: Float[Tensor, "b l h"]) -> Float[Tensor, "b l h"]:
        """Decay rates, 1 + a for positive a and 1 / (1 - a) for negative, shape (b, l, h). Raises nothing."""
        a = at_least_float32(a)
        return torch.where(a >= 0, 1 + a, 1 / (1 - a.clamp(max=0))).clamp(min=self.config.slowest)

    def rotation(
        self, dt: Float[Tensor, "b l h"], phi: Float[Tensor, "b l f"], before: Float[Tensor, "r h f"], ctx: Context
    ) -> tuple[Float[Tensor, "b l h f"], Float[Tensor, "r h f"]]:
        """The angle at each token, in float64, and after the last one, in [0, 2 pi). Raises nothing."""
        turns = dt[..., None].double() * math.pi * at_least_float32(phi).tanh()[..., None, :]
        ones = turns.new_ones(turns.shape[2] * turns.shape[3])
        angle, last = linear_recurrence(
            ones,
            turns.flatten(2),
            initial_state=before.flatten(1).double(),
            cu_seqlens=ctx.cu_seqlens,
            return_last_state=True,
        )
        last = torch.remainder(last, 2 * math.pi)
        return angle.view(turns.shape), last.view(before.shape).to(before.dtype)

    def turned(
        self, x: Float[Tensor, "b l r g n"], bias: Float[Tensor, "hr n"], angle: Float[Tensor, "b l h f"]
    ) -> HeadTokens:
        """x of each head plus its bias, its first f pairs of neighbours turned, (b, l, h r, n). Raises nothing."""
        r = self.config.mimo_rank
        x = at_least_float32(x).repeat_interleave(self.num_heads // self.config.ngroups, 3)
        x = x.transpose(2, 3).flatten(2, 3) + at_least_float32(bias)
        angle = angle.repeat_interleave(r, 2)
        inside, outside = x.split([2 * self.pairs, x.shape[-1] - 2 * self.pairs], -1)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        first, second = inside.unflatten(-1, (-1, 2)).unbind(-1)
        inside = torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)
        return torch.cat([inside, outside], -1)


def shift(x: HeadTokens, before: Float[Tensor, "r h p"], ctx: Context) -> tuple[HeadTokens, Float[Tensor, "r h p"]]:
    """Each token's predecessor, and the last token of each item or row.

    Args:
        x: Shape (b, l, h, p) or packed.
        before: What stands before the first token, shape (b, h, p) or (r, h, p).
        ctx: The rows of packed tokens.
    Raises:
        IndexError: x holds other tokens than the rows.
    """
    if ctx.rows is None:
        return torch.cat([before[:, None].to(x.dtype), x[:, :-1]], 1), x[:, -1].to(before.dtype, copy=True)
    rows = ctx.rows
    first, some = (rows.time == 0)[:, None, None], (rows.lengths > 0)[:, None, None]
    shifted = torch.where(first, before.to(x.dtype)[rows.row], x[0].roll(1, 0))
    ends = (rows.cu_seqlens[1:].to(x.device) - 1).clamp(min=0)
    return shifted[None], torch.where(some, x[0, ends].to(before.dtype), before)
