"""LRU: a linear recurrent network, complex and diagonal, whose eigenvalues start on a ring inside the unit circle.

    h[t] = λ h[t-1] + γ (B x[t]),   y = Re(C h) + D x,   out = glu(out_proj gelu(y));   λ = exp(-e^nu + i e^theta)

Code to paper: nu_log, theta_log, gamma_log = log ν, θ, γ; B, C, D as there. |λ| < 1 whatever the parameters.
Steps of the tokens (`dt`) give λ^dt and the input weight of zero-order hold, (λ^dt - 1) / (λ - 1) γ: as in S5, which
is the same system with Λ = log λ, Δ = 1 and B_S5 = γ Λ / (λ - 1) B.
Source: Orvieto et al. 2023, Resurrecting recurrent neural networks for long sequences, sec. 3.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Complex, Inexact, TimeSteps, Tokens
from ..functional import at_least_float32
from ..mixer import ParamSpec
from .dense_lti import DenseLti


@dataclass(frozen=True, kw_only=True)
class LruConfig:
    """Options of the LRU."""

    d_state: int = 64
    """Number of complex states, n."""
    r_min: float = 0.0
    """Inner radius of the initial ring of eigenvalues; towards 1 for long memories."""
    r_max: float = 0.999
    """Outer radius, at most 1."""
    max_phase: float = 2 * math.pi
    """Largest initial angle; towards 0 for slow memories."""
    lr_scale: float = 0.25
    """Factor on the learning rate of λ, γ and B, which do not decay."""

    def __post_init__(self):
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(f"LruConfig: expected 0 <= r_min < r_max <= 1, got {self.r_min} and {self.r_max}")


class Lru(DenseLti):
    """The LRU layer, (b, l, d) to (b, l, d). State: ssm (b, n), complex. Raises nothing of its own."""

    title = "Linear recurrent unit, complex eigenvalues on a ring"
    operator = "linear_recurrence"
    Config = LruConfig
    examples = ({"d_state": 8}, {"d_state": 5, "r_min": 0.9, "max_phase": 0.3})

    def __init__(self, d_model: int, config: LruConfig | None = None):
        super().__init__(d_model, config)
        c: LruConfig = self.config
        self.d_state = n = c.d_state
        tiny = 1e-6  # neither |λ| = 0 nor |λ| = 1 has a logarithm of its logarithm
        squared = (torch.rand(n) * (c.r_max**2 - c.r_min**2) + c.r_min**2).clamp(tiny, 1 - tiny)
        self.nu_log = nn.Parameter((-0.5 * squared.log()).log())
        self.theta_log = nn.Parameter((torch.rand(n) * c.max_phase).clamp(min=tiny).log())
        self.gamma_log = nn.Parameter(0.5 * torch.log1p(-squared))
        self.B_re, self.B_im = (nn.Parameter(torch.randn(n, d_model) / math.sqrt(2 * d_model)) for _ in range(2))
        self.C_re, self.C_im = (nn.Parameter(torch.randn(d_model, n) / math.sqrt(n)) for _ in range(2))
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model)

    def param_spec(self) -> dict[str, ParamSpec]:
        """λ, γ and B learn slowly and do not decay. No shapes, raises nothing."""
        slow = ParamSpec(decay=False, lr_scale=self.config.lr_scale)
        return dict.fromkeys(("nu_log", "theta_log", "gamma_log", "B_re", "B_im"), slow)

    def exponents(self) -> Complex[Tensor, "n"]:
        """log λ, shape (n,). Raises nothing."""
        nu, theta = at_least_float32(self.nu_log).exp(), at_least_float32(self.theta_log).exp()
        return torch.complex(-nu, theta)

    def modes(self, dt: TimeSteps | None) -> tuple[Inexact[Tensor, "... n"], Inexact[Tensor, "... n"]]:
        """λ and γ, or their like for the steps dt; see DenseLti."""
        log_lambda = self.exponents()
        gamma = at_least_float32(self.gamma_log).exp().to(log_lambda.dtype)
        if dt is None:
            return log_lambda.exp(), gamma
        u = log_lambda * dt.to(log_lambda.real.dtype)[..., None]
        return u.exp(), gamma * torch.expm1(u) / torch.expm1(log_lambda)

    def maps(self) -> tuple[Complex[Tensor, "n d"], Complex[Tensor, "d n"]]:
        """B (n, d) and C (d, n). Raises nothing."""
        B_re, B_im, C_re, C_im = map(at_least_float32, (self.B_re, self.B_im, self.C_re, self.C_im))
        return torch.complex(B_re, B_im), torch.complex(C_re, C_im)

    def activate(self, y: Tokens) -> Tokens:
        """glu(out_proj gelu(y)), shape (b, l, d). Raises nothing."""
        # JAX's gelu: the authors' code is in JAX.
        return F.glu(self.out_proj(F.gelu(y, approximate="tanh")), dim=-1)
