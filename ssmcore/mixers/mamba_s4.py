"""Mamba-S4: the gated block of Mamba around a time-invariant state space. Selection aside, it is Mamba.

    u, z = in_proj x;   u = silu(conv u);   y = core u;   out = out_proj(y silu(z))
    core     h' = A h + x,  y = 2 Re(C . h) + D x, sampled by zero-order hold with a learned step a channel

On raw waveforms, where selection hurts in the outer layers, it stands where Mamba would (Mamba, appendix E.4).
Code to paper: A_log, A_imag = log -Re Λ, Im Λ, log_dt = log Δ; d = expand * d_model inner channels, n poles each.
Source: Gu & Dao 2023, Mamba, sec. 3.4 and 4.6.1 (its block with S4 inside), appendix E.4.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..array_types import Tokens
from ..functional import at_least_float32
from ..hippo import s4d_poles
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..steps import log_uniform
from .dense_lti import complex_of
from .diagonal_lti import Diagonal, run_diagonal
from .short_conv import ShortConv


@dataclass(frozen=True, kw_only=True)
class MambaS4Config:
    """Options of the Mamba block around S4D."""

    d_state: int = 16
    """State size of a channel, counted in real numbers, even."""
    d_conv: int = 4
    """Width of the short convolution, in tokens."""
    expand: float = 2.0
    """Inner channels, in multiples of d_model."""
    init: Literal["lin", "inv", "legs"] = "lin"
    """The initial poles."""
    dt_min: float = 1e-3
    """Smallest initial step."""
    dt_max: float = 0.1
    """Largest initial step."""
    lr_scale: float = 0.1
    """Factor on the learning rate of the poles and steps, which do not decay."""


class MambaS4(Mixer):
    """The block, (b, l, d_model) to (b, l, d_model). State: conv (b, d_conv - 1, d), ssm (b, d, n / 2), complex.

    Raises:
        ValueError: d_state is odd, or the init is unknown.
    """

    title = "Mamba's block around S4D: no selection"
    operator = "fft_conv, selective_scan, causal_conv1d"
    Config = MambaS4Config
    examples = ({"d_state": 8}, {"d_state": 4, "d_conv": 2, "expand": 1.5, "init": "inv"})
    takes_dt = True
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: MambaS4Config | None = None):
        super().__init__(d_model, config)
        c: MambaS4Config = self.config
        self.d_inner = d = int(c.expand * d_model)
        poles = s4d_poles(c.init, c.d_state).expand(d, -1)
        self.in_proj = nn.Linear(d_model, 2 * d, bias=False)
        self.conv1d = ShortConv(d, c.d_conv, activation="silu")
        self.log_dt = nn.Parameter(log_uniform(d, c.dt_min, c.dt_max).log())
        self.A_log = nn.Parameter((-poles.real).log().float())
        self.A_imag = nn.Parameter(poles.imag.float().clone())
        self.C = nn.Parameter(torch.randn(*poles.shape, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.ones(d))
        self.out_proj = nn.Linear(d, d_model, bias=False)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles and steps learn slowly and do not decay, nor does the skip. No shapes, raises nothing."""
        slow = dict.fromkeys(("log_dt", "A_log", "A_imag"), ParamSpec(decay=False, lr_scale=self.config.lr_scale))
        return {**slow, "D": ParamSpec(decay=False)}

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: conv (b, d_conv - 1, d), the inputs of the convolution; ssm (b, d, n / 2). Raises nothing."""
        return {
            "conv": self._zeros(batch, self.config.d_conv - 1, self.d_inner, device=device, dtype=dtype),
            "ssm": self._zeros(batch, *self.A_log.shape, device=device, dtype=dtype, complex_pairs=True),
        }

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """One pass over x, (b, l, d_model) or packed; see Mixer.mix. Raises nothing of its own."""
        state = state or {}
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, conv = self.conv1d(u, state.get("conv"), ctx)
        y, ssm = run_diagonal(self.continuous(), self.D, u, state.get("ssm"), ctx, "zoh")
        return self.out_proj(y * F.silu(z)), None if ssm is None else {"conv": conv, "ssm": ssm}

    def continuous(self) -> Diagonal:
        """The systems before they are sampled, in float32 or wider. Raises nothing."""
        A = torch.complex(-at_least_float32(self.A_log).exp(), at_least_float32(self.A_imag))
        return Diagonal(A, torch.ones_like(A), complex_of(self.C), at_least_float32(self.log_dt).exp())
