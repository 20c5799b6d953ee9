"""S5: one multi-input multi-output diagonal system with HiPPO poles, sampled with a step for each state.

    h[t] = exp(Λ Δ) h[t-1] + (exp(Λ Δ) - 1) / Λ (B x[t]),   y = 2 Re(C h) + D x,   out = g sigmoid(W g), g = gelu(y)

Code to paper: Lambda = Λ, log_step = log Δ, B, C, D as there. Steps of the tokens (`dt`) multiply Δ.
First maps: B is real, of LeCun's variance, and C complex, both in HiPPO's basis and then turned into the poles'. As in
the released code LeCun's variance is 1 / d_state for B as for C: it counts the rows of B as what goes in.
Source: Smith et al. 2023, Simplified state space layers for sequence modeling, sec. 3 and appendix B.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from ssm_kernels.checks import check_choice
from torch import Tensor, nn

from ..array_types import Complex, Inexact, TimeSteps, Tokens
from ..discretization import discretize_diagonal
from ..functional import at_least_float32
from ..hippo import legs_dplr
from ..mixer import ParamSpec
from ..steps import log_uniform
from .dense_lti import DenseLti, complex_of


@dataclass(frozen=True, kw_only=True)
class S5Config:
    """Options of S5."""

    d_state: int = 64
    """Size of the whole state, counted in real numbers: 64 are 32 complex states."""
    blocks: int = 1
    """HiPPO systems that make up the initial poles; their sizes, d_state / blocks, must be even."""
    dt_min: float = 1e-3
    """Smallest initial step."""
    dt_max: float = 0.1
    """Largest initial step."""
    two_sided: bool = False
    """Also look ahead: a second C reads the same system run backwards. There is no state then, and no dt."""
    c_init: Literal["trunc_standard_normal", "lecun_normal", "complex_normal"] = "trunc_standard_normal"
    """First C, by the released code's names: variance 1 / d_state; that over d_model too; or 1, in the poles' basis."""
    activation: Literal["half_glu1", "half_glu2"] = "half_glu1"
    """What the gate stands on: gelu(y), or y itself."""
    lr_scale: float = 0.25
    """Factor on the learning rate of poles, steps and B, which do not decay."""
    dt_lr_scale: float | None = None
    """The same for the steps alone; None is lr_scale."""
    B_lr_scale: float | None = None
    """The same for B alone; None is lr_scale."""
    B_decay: bool = False
    """Whether B decays."""

    def __post_init__(self):
        check_choice("S5Config", "c_init", self.c_init, ("trunc_standard_normal", "lecun_normal", "complex_normal"))
        check_choice("S5Config", "activation", self.activation, ("half_glu1", "half_glu2"))
        if self.blocks < 1 or self.d_state < 2 * self.blocks or self.d_state % (2 * self.blocks):
            raise ValueError(f"S5Config: d_state={self.d_state} in {self.blocks} blocks, expected blocks of even size")


class S5(DenseLti):
    """The S5 layer, (b, l, d) to (b, l, d). State: ssm (b, n), complex. Raises nothing of its own."""

    title = "One state space of all channels, diagonal"
    operator = "linear_recurrence"
    Config = S5Config
    examples = ({"d_state": 8}, {"d_state": 12, "blocks": 3}, {"d_state": 8, "two_sided": True})
    readout = 2.0

    def __init__(self, d_model: int, config: S5Config | None = None):
        super().__init__(d_model, config)
        c: S5Config = self.config
        size = c.d_state // c.blocks
        self.d_state = n = c.d_state // 2
        form = legs_dplr(size)
        V = torch.block_diag(*[form.V] * c.blocks).to(torch.complex64)
        self.Lambda_log_re = nn.Parameter((-form.Lambda.real).log().float().repeat(c.blocks))
        self.Lambda_im = nn.Parameter(form.Lambda.imag.float().repeat(c.blocks))
        self.log_step = nn.Parameter(log_uniform(n, c.dt_min, c.dt_max).log())
        B = lecun(c.d_state, d_model, fan_in=c.d_state)
        self.B = nn.Parameter(torch.view_as_real(V.mH @ B.to(V.dtype)).clone())
        self.C = nn.Parameter(self._first_C(V))
        if c.two_sided:
            self.C_back = nn.Parameter(self._first_C(V))
            self.causal = self.recurrent = self.takes_dt = self.lti = False
        self.D = nn.Parameter(torch.randn(d_model))
        self.gate = nn.Linear(d_model, d_model)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles, steps and B learn slowly and do not decay, unless told otherwise. No shapes, raises nothing."""
        c: S5Config = self.config
        poles = dict.fromkeys(("Lambda_log_re", "Lambda_im"), ParamSpec(decay=False, lr_scale=c.lr_scale))
        step, B = (c.lr_scale if own is None else own for own in (c.dt_lr_scale, c.B_lr_scale))
        return {**poles, "log_step": ParamSpec(decay=False, lr_scale=step), "B": ParamSpec(c.B_decay, B)}

    def _first_C(self, V: Complex[Tensor, "N n"]) -> Tensor:
        """Re and Im side by side, (d, n, 2), from HiPPO's basis by V; see `c_init`."""
        c, d = self.config, self.d_model
        if c.c_init == "complex_normal":
            return torch.randn(d, self.d_state, 2) * 0.5**0.5
        fan_in = c.d_state * (d if c.c_init == "lecun_normal" else 1)
        return torch.view_as_real(torch.complex(*lecun(2, d, c.d_state, fan_in=fan_in)) @ V).clone()

    def poles(self) -> Complex[Tensor, "n"]:
        """Λ, Re < 0, shape (n,). Raises nothing."""
        return torch.complex(-at_least_float32(self.Lambda_log_re).exp(), at_least_float32(self.Lambda_im))

    def modes(self, dt: TimeSteps | None) -> tuple[Inexact[Tensor, "... n"], Inexact[Tensor, "... n"]]:
        """Zero-order hold; see DenseLti."""
        poles, step = self.poles(), at_least_float32(self.log_step).exp()
        if dt is not None:
            step = step * dt.to(step.dtype)[..., None]
        return discretize_diagonal(poles, torch.ones_like(poles), step, "zoh")

    def exponents(self) -> Complex[Tensor, "n"]:
        """Λ Δ, shape (n,). Raises nothing."""
        return self.poles() * at_least_float32(self.log_step).exp()

    def maps(self) -> tuple[Complex[Tensor, "n d"], Complex[Tensor, "d n"]]:
        """B (n, d) and C (d, n). Raises nothing."""
        return complex_of(self.B), complex_of(self.C)

    def map_back(self) -> Complex[Tensor, "d n"] | None:
        """C of the system run backwards; see DenseLti."""
        return complex_of(self.C_back) if self.config.two_sided else None

    def activate(self, y: Tokens) -> Tokens:
        """g sigmoid(W g) or y sigmoid(W g) with g = gelu(y), shape (b, l, d). Raises nothing."""
        g = F.gelu(y, approximate="tanh")  # JAX's gelu, which the published models were trained with
        return (g if self.config.activation == "half_glu1" else y) * torch.sigmoid(self.gate(g))


def lecun(*shape: int, fan_in: int) -> Tensor:
    """Normal numbers of variance 1 / fan_in, none beyond two deviations of the normal they are cut from.

    Raises nothing.
    """
    std = fan_in**-0.5 / 0.87962566  # the deviation that is left of 1 after the cut
    return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std)
