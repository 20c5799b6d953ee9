"""H3, hungry hungry hippos: a shift state space, a product, a diagonal state space and another product.

    q, k, v = (maps of x);   s = S4D(shift(k) v^T),   y = out_proj(q^T s)

The shift remembers the last tokens, so that k v^T can compare a token with those before it; S4D keeps the sum. In heads
of width p the product is an outer one and S4D runs on p^2 channels. With a shift of one tap and S4D an integrator it is
linear attention. No attention is part of it: the hybrid model of the paper puts two attention layers among H3 layers.
Source: Fu et al. 2023, Hungry hungry hippos, sec. 3.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..array_types import Tokens
from ..functional import at_least_float32
from ..hippo import s4d_lin
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..steps import log_uniform
from .dense_lti import complex_of
from .diagonal_lti import Diagonal, run_diagonal
from .short_conv import ShortConv


@dataclass(frozen=True, kw_only=True)
class H3Config:
    """Options of H3."""

    d_state: int = 64
    """State size of S4D, counted in real numbers, even."""
    d_shift: int = 64
    """Taps of the shift."""
    head_dim: int = 1
    """Width p of a head, a divisor of d_model."""
    dt_min: float = 1e-3
    """Smallest initial step."""
    dt_max: float = 0.1
    """Largest initial step."""
    lr_scale: float = 0.1
    """Factor on the learning rate of poles and steps, which do not decay."""


class H3(Mixer):
    """The H3 layer, (b, l, d) to (b, l, d). State: shift (b, d_shift - 1, d), ssm (b, d p, n), complex.

    Raises:
        ValueError: The heads do not divide d_model, or d_state is odd.
    """

    title = "Two state spaces and two products"
    operator = "causal_conv1d, fft_conv, selective_scan"
    selective = True
    Config = H3Config
    examples = ({"d_state": 8, "d_shift": 4}, {"d_state": 4, "d_shift": 6, "head_dim": 2})
    takes_dt = True
    residual_out = ("out_proj.weight", "out_proj.bias")

    def __init__(self, d_model: int, config: H3Config | None = None):
        super().__init__(d_model, config)
        c: H3Config = self.config
        if c.head_dim < 1 or d_model % c.head_dim:
            raise ValueError(f"H3: heads of width {c.head_dim} do not divide d_model={d_model}")
        heads = d_model // c.head_dim
        poles = s4d_lin(c.d_state)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d_model, d_model) for _ in range(4))
        self.shift = ShortConv(d_model, c.d_shift, bias=False, activation=None)
        nn.init.normal_(self.shift.weight)
        self.log_dt = nn.Parameter(log_uniform(heads, c.dt_min, c.dt_max).log())
        self.A_log = nn.Parameter((-poles.real).log().float().repeat(heads, 1))
        self.A_imag = nn.Parameter(poles.imag.float().repeat(heads, 1))
        self.C = nn.Parameter(torch.randn(heads, len(poles), 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(heads))

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles and steps learn slowly and do not decay. No shapes, raises nothing."""
        return dict.fromkeys(("log_dt", "A_log", "A_imag"), ParamSpec(decay=False, lr_scale=self.config.lr_scale))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: shift (b, d_shift - 1, d), the last keys; ssm (b, d p, n). Raises nothing."""
        channels, n = self.d_model * self.config.head_dim, self.A_log.shape[1]
        return {
            "shift": self._zeros(batch, self.config.d_shift - 1, self.d_model, device=device, dtype=dtype),
            "ssm": self._zeros(batch, channels, n, device=device, dtype=dtype, complex_pairs=True),
        }

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """One pass over x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        before, p = state or {}, self.config.head_dim
        k, shift = self.shift(self.k_proj(x), before.get("shift"), ctx)
        q, k, v = (at_least_float32(t).unflatten(-1, (-1, p)) for t in (self.q_proj(x), k, self.v_proj(x)))
        products = (k[..., :, None] * v[..., None, :]).flatten(2)
        D = self.D.repeat_interleave(p * p)
        s, ssm = run_diagonal(self.continuous(), D, products, before.get("ssm"), ctx, "zoh")
        y = (q[..., None] * s.unflatten(-1, (-1, p, p))).sum(-2).flatten(2)
        return self.out_proj(y.to(x.dtype)), None if ssm is None else {"shift": shift, "ssm": ssm}

    def continuous(self) -> Diagonal:
        """The systems before they are sampled, one for each of the d p products; those of a head are alike."""
        A = torch.complex(-at_least_float32(self.A_log).exp(), at_least_float32(self.A_imag))
        system = Diagonal(A, torch.ones_like(A), complex_of(self.C), at_least_float32(self.log_dt).exp())
        return Diagonal(*(t.repeat_interleave(self.config.head_dim**2, 0) for t in system))
