"""GSS, gated state spaces: a diagonal state space in a narrow width between two wide gates, without a step to learn.

    u = gelu(u_proj x),  v = gelu(v_proj x),  y = out_proj(up_proj(core v) * u)
    core     h' = A h + x,  y = 2 Re(C . h) + D x,  A shared by all channels, sampled by zero-order hold at step 1

Code to paper: A_log, A_imag = log -Re Λ, Im Λ, both normal at the start; d_inner = d_model / 4 channels of v.
Source: Mehta et al. 2022, Long range language modeling via gated state spaces, sec. 3.2-3.3.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..array_types import Tokens
from ..functional import at_least_float32
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from .dense_lti import complex_of
from .diagonal_lti import Diagonal, run_diagonal


@dataclass(frozen=True, kw_only=True)
class GssConfig:
    """Options of gated state spaces."""

    d_state: int = 512
    """State size of an inner channel, counted in real numbers, even."""
    reduce: float = 0.25
    """Inner channels, in multiples of d_model."""
    expand: float = 4.0
    """Channels of the gate, in multiples of d_model."""

    def __post_init__(self):
        if self.d_state < 2 or self.d_state % 2:
            raise ValueError(f"GssConfig: d_state={self.d_state}, expected an even number")


class Gss(Mixer):
    """The GSS block, (b, l, d_model) to (b, l, d_model). State: ssm (b, d, n), complex. Raises nothing of its own."""

    title = "Gated state space: DSS in a narrow width"
    operator = "fft_conv, selective_scan"
    Config = GssConfig
    examples = ({"d_state": 8, "reduce": 0.5}, {"d_state": 4, "expand": 1.5})
    takes_dt = True
    residual_out = ("out_proj.weight", "out_proj.bias")

    def __init__(self, d_model: int, config: GssConfig | None = None):
        super().__init__(d_model, config)
        c: GssConfig = self.config
        d, wide, n = max(1, int(c.reduce * d_model)), int(c.expand * d_model), c.d_state // 2
        self.u_proj = nn.Linear(d_model, wide, bias=False)
        self.v_proj = nn.Linear(d_model, d, bias=False)
        self.A_log, self.A_imag = nn.Parameter(torch.randn(n)), nn.Parameter(torch.randn(n).exp())
        self.C = nn.Parameter(torch.randn(d, n, 2) * (0.5 / n) ** 0.5)
        self.D = nn.Parameter(torch.randn(d))
        self.up_proj = nn.Linear(d, wide, bias=False)
        self.out_proj = nn.Linear(wide, d_model)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles do not decay. No shapes, raises nothing."""
        return dict.fromkeys(("A_log", "A_imag"), ParamSpec(decay=False))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: ssm (b, d, n). Raises nothing."""
        return {"ssm": self._zeros(batch, *self.C.shape[:2], device=device, dtype=dtype, complex_pairs=True)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """One pass over x, (b, l, d_model) or packed; see Mixer.mix. Raises nothing of its own."""
        u, v = F.gelu(self.u_proj(x)), F.gelu(self.v_proj(x))
        before = None if state is None else state["ssm"]
        y, ssm = run_diagonal(self.continuous(), self.D, v, before, ctx, "zoh")
        return self.out_proj(self.up_proj(y) * u), None if ssm is None else {"ssm": ssm}

    def continuous(self) -> Diagonal:
        """The systems before they are sampled, with steps of 1. Raises nothing."""
        C = complex_of(self.C)
        A = torch.complex(-at_least_float32(self.A_log).exp(), at_least_float32(self.A_imag)).expand_as(C)
        return Diagonal(A, torch.ones_like(A), C, torch.ones_like(A.real[:, 0]))
