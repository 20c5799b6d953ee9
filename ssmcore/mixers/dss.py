"""DSS, diagonal state spaces: the first to drop S4's low-rank term. Poles shared by all channels, two ways to a kernel.

    exp       K[t] = Re sum_n W_n (e^(Λ_n Δ) - 1) / Λ_n e^(Λ_n Δ t)          = S4D with zero-order hold, Re Λ < 0
    softmax   K[t] = Re sum_n W_n / Λ_n softmax over t < L of (Λ_n Δ t)      any Λ; depends on the length L

Code to paper: A_log or A_re, A_imag = log -Re Λ or Re Λ, Im Λ; log_dt = log Δ; W as there, Re and Im side by side.
The softmax of a pole in the right half plane is that of the mirrored pole, read backwards: nothing overflows.
Source: Gupta et al. 2022, Diagonal state spaces are as effective as structured state spaces, sec. 3 and appendix A.2.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Complex, Float, Tokens
from ..functional import at_least_float32, damped_modes, fft_conv
from ..hippo import s4d_legs
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..steps import log_uniform
from .dense_lti import complex_of
from .diagonal_lti import Diagonal, diagonal_kernel, run_diagonal


@dataclass(frozen=True, kw_only=True)
class DssConfig:
    """Options of DSS."""

    form: Literal["exp", "softmax"] = "exp"
    """How the kernel is made. Only "exp" has a state; "softmax" takes whole sequences."""
    d_state: int = 64
    """State size of a channel, counted in real numbers: 64 are 32 complex poles."""
    dt_min: float = 1e-3
    """Smallest initial step."""
    dt_max: float = 0.1
    """Largest initial step."""
    lr_scale: float = 0.1
    """Factor on the learning rate of poles and steps, which do not decay."""


class Dss(Mixer):
    """The DSS layer, (b, l, d) to (b, l, d). State of the form "exp": ssm (b, d, n), complex.

    Raises:
        ValueError: d_state is odd.
    """

    title = "Diagonal state space, exp or softmax kernel"
    operator = "fft_conv, selective_scan"
    Config = DssConfig
    examples = ({"d_state": 8}, {"d_state": 8, "form": "softmax"})

    def __init__(self, d_model: int, config: DssConfig | None = None):
        super().__init__(d_model, config)
        c: DssConfig = self.config
        self.exp = c.form == "exp"
        self.lti = self.recurrent = self.takes_rows = self.takes_dt = self.exp
        poles = s4d_legs(c.d_state)
        self.log_dt = nn.Parameter(log_uniform(d_model, c.dt_min, c.dt_max).log())
        if self.exp:
            self.A_log = nn.Parameter((-poles.real).log().float())
        else:
            self.A_re = nn.Parameter(poles.real.float())
        self.A_imag = nn.Parameter(poles.imag.float())
        self.W = nn.Parameter(torch.randn(d_model, len(poles), 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles and steps learn slowly and do not decay. No shapes, raises nothing."""
        slow = ParamSpec(decay=False, lr_scale=self.config.lr_scale)
        return dict.fromkeys(("log_dt", "A_log" if self.exp else "A_re", "A_imag"), slow)

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: ssm (b, d, n).

        Raises:
            Unsupported: The form is "softmax".
        """
        if not self.exp:
            self._refuse("has no state when its kernel is a softmax")
        shape = self.W.shape[:2]
        return {"ssm": self._zeros(batch, *shape, device=device, dtype=dtype, complex_pairs=True)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """out_proj gelu(core x), (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        y, state = self.core(x, state, ctx)
        return self.out_proj(F.gelu(y)), state

    def core(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """The linear map: x and state to y and state, shapes as in `mix`. Raises nothing of its own."""
        if not self.exp:
            with torch.autocast(x.device.type, enabled=False):
                return fft_conv(x, self.kernel(x.shape[1])), None
        before = None if state is None else state["ssm"]
        y, ssm = run_diagonal(self.continuous(), self.D, x, before, ctx, "zoh")
        return y, None if ssm is None else {"ssm": ssm}

    def kernel(self, length: int) -> Float[Tensor, "l d"]:
        """The core's answer to a single one at time 0, in a sequence of `length` steps.

        Args:
            length: Number of steps, l.
        Returns:
            The impulse response, skip included, in float32 or wider, shape (l, d).
        """
        if self.exp:
            return diagonal_kernel(self.continuous(), self.D, length, "zoh")
        poles, W = self.poles(), complex_of(self.W)
        u = at_least_float32(self.log_dt).exp()[:, None] * poles
        rising = (u.real > 0).expand_as(u)
        falling = torch.where(rising, -u, u)
        weights = W / poles * torch.expm1(falling) * _reciprocal(torch.expm1(falling * length))
        ahead = damped_modes(torch.where(rising, 0, weights), falling, length)
        back = damped_modes(torch.where(rising, weights, 0), falling, length)
        taps = ahead.real + back.real.flip(0)
        return torch.cat([taps[:1] + at_least_float32(self.D), taps[1:]]) if length else taps

    def poles(self) -> Complex[Tensor, "n"]:
        """Λ, shape (n,). Raises nothing."""
        real = -at_least_float32(self.A_log).exp() if self.exp else at_least_float32(self.A_re)
        return torch.complex(real, at_least_float32(self.A_imag))

    def continuous(self) -> Diagonal:
        """The systems before they are sampled; 2 Re(W / 2 . h) is Re(W . h). Raises nothing."""
        W = complex_of(self.W)
        A = self.poles().expand_as(W)
        return Diagonal(A, torch.ones_like(A), W / 2, at_least_float32(self.log_dt).exp())


def _reciprocal(x: Complex[Tensor, "..."]) -> Complex[Tensor, "..."]:
    """1 / x, but 0 at 0: a pole that turns whole circles over the sequence has no softmax."""
    return x.conj() / (x.real.square() + x.imag.square() + 1e-12)
