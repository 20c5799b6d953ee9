"""S4D: one diagonal linear time-invariant system a channel, then a gated linear map of the channels.

    core     h' = A h + x,  y = 2 Re(C . h) + D x, sampled with step dt
    out      glu(out_proj gelu(y))

Code to paper: A = Λ, dt = Δ; B is 1, absorbed in C, unless `learn_input`. The core is in diagonal_lti.py.
Source: Gu et al. 2022, On the parameterization and initialization of diagonal state space models (S4D), sec. 3-4.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from ssm_kernels.checks import check_choice
from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..discretization import Rule
from ..functional import at_least_float32
from ..hippo import s4d_poles
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..steps import log_uniform
from .diagonal_lti import Diagonal, diagonal_kernel, run_diagonal


@dataclass(frozen=True, kw_only=True)
class S4DConfig:
    """Options of S4D."""

    d_state: int = 64
    """State size of a channel, counted in real numbers: a complex pole of a conjugate pair counts two."""
    init: Literal["lin", "inv", "legs", "real"] = "lin"
    """The initial poles."""
    dt_min: float = 1e-3
    """Smallest initial step."""
    dt_max: float = 0.1
    """Largest initial step."""
    rule: Rule = "zoh"
    """Discretisation."""
    lr_scale: float = 0.1
    """Factor on the learning rate of the poles, steps and input weights, which do not decay."""
    systems: int | None = None
    """Copies of the poles (and input weights), each for an equal share of the channels; None gives each its own."""
    learn_input: bool = False
    """Learn B too. It can be absorbed in C, so this changes how the core learns, not what it can be."""
    out: Literal["glu", "linear"] = "glu"
    """The map after the core: gated, or plain."""
    two_sided: bool = False
    """Also look ahead: a second C for the tokens that come, of the same systems. There is no state then, and no dt."""


class S4D(Mixer):
    """The S4D layer, (b, l, d) to (b, l, d). State: ssm (b, d, n), complex unless the poles are real.

    Raises:
        ValueError: d_state is odd where poles come in pairs, the systems do not divide d_model, or a name is unknown.
    """

    title = "State space a channel, diagonal"
    operator = "fft_conv, selective_scan"
    Config = S4DConfig
    examples = (
        {"d_state": 8},
        {"d_state": 4, "init": "real", "rule": "bilinear"},
        {"d_state": 6, "init": "inv"},
        {"d_state": 6, "systems": 2, "learn_input": True, "out": "linear"},
        {"d_state": 4, "two_sided": True},
    )
    lti = True
    takes_dt = True

    def __init__(self, d_model: int, config: S4DConfig | None = None):
        super().__init__(d_model, config)
        c: S4DConfig = self.config
        check_choice("S4D", "out", c.out, ("glu", "linear"))
        systems = d_model if c.systems is None else c.systems
        if systems < 1 or d_model % systems:
            raise ValueError(f"S4D: {systems} systems do not divide d_model={d_model}")
        A = s4d_poles(c.init, c.d_state).expand(systems, -1)
        self.complex_pairs = A.is_complex()
        n = A.shape[1]
        self.log_dt = nn.Parameter(log_uniform(d_model, c.dt_min, c.dt_max).log())
        self.A_log = nn.Parameter((-A.real).log().float())
        if self.complex_pairs:
            self.A_imag = nn.Parameter(A.imag.float().clone())
        if c.learn_input:
            ones = torch.ones(A.shape)
            self.B = nn.Parameter(torch.stack([ones, torch.zeros_like(ones)], -1) if self.complex_pairs else ones)
        # Re and Im of a complex normal number of variance 1 stand side by side: a cast of the module reaches them.
        self.C = nn.Parameter(torch.randn(d_model, n, 2) * 0.5**0.5 if self.complex_pairs else torch.randn(d_model, n))
        if c.two_sided:
            self.C_back = nn.Parameter(torch.randn_like(self.C) * (0.5**0.5 if self.complex_pairs else 1.0))
            self.causal = self.recurrent = self.takes_dt = self.lti = False
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model if c.out == "glu" else d_model)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles and steps learn slowly and do not decay. No shapes, raises nothing."""
        names = ["log_dt", "A_log", *["A_imag"] * self.complex_pairs, *["B"] * self.config.learn_input]
        return {name: ParamSpec(decay=False, lr_scale=self.config.lr_scale) for name in names}

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: ssm (b, d, n). Raises Unsupported if two-sided."""
        if not self.recurrent:
            self._refuse("has no state: it looks ahead")
        shape = (self.d_model, self.A_log.shape[1])
        return {"ssm": self._zeros(batch, *shape, device=device, dtype=dtype, complex_pairs=self.complex_pairs)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """Core and output map on x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        y, state = self.core(x, state, ctx)
        y = self.out_proj(F.gelu(y))
        return (F.glu(y, dim=-1) if self.config.out == "glu" else y), state

    def core(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """The linear map: x and state to y and state, shapes as in `mix`. Raises nothing of its own."""
        before = None if state is None else state["ssm"]
        system, back = self.continuous(), None
        if self.config.two_sided:
            C = at_least_float32(self.C_back)
            back = system._replace(C=torch.view_as_complex(C.contiguous()) if self.complex_pairs else C)
        y, ssm = run_diagonal(system, self.D, x, before, ctx, self.config.rule, back)
        return y, None if ssm is None else {"ssm": ssm}

    def kernel(self, length: int) -> Float[Tensor, "l d"]:
        """The core's answer to a single one at time 0.

        Args:
            length: Number of steps, l.
        Returns:
            The impulse response, skip included, float32, shape (l, d).
        Raises:
            ValueError: length < 0.
        """
        return diagonal_kernel(self.continuous(), self.D, length, self.config.rule)

    def continuous(self) -> Diagonal:
        """The systems before they are sampled, in float32 or wider. Raises nothing."""
        A, C = -at_least_float32(self.A_log).exp(), at_least_float32(self.C)
        B = at_least_float32(self.B) if self.config.learn_input else torch.ones_like(A)
        if self.complex_pairs:
            A, C = torch.complex(A, at_least_float32(self.A_imag)), torch.view_as_complex(C.contiguous())
            B = torch.view_as_complex(B.contiguous()) if self.config.learn_input else B.to(A.dtype)
        share = self.d_model // len(A)
        return Diagonal(
            A.repeat_interleave(share, 0), B.repeat_interleave(share, 0), C, at_least_float32(self.log_dt).exp()
        )
