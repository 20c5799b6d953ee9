"""What S5 and LRU share: one diagonal system that all channels write to and read from.

    h[t] = a h[t-1] + w (B x[t]),   y[t] = readout Re(C h[t]) + D x[t]

Shapes: x, y (b, l, d); a, w (n,) complex; B (n, d), C (d, n) complex; D (d,); h (b, n) complex, the whole state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..array_types import Complex, Float, Inexact, TimeSteps, Tokens
from ..functional import at_least_float32, damped_modes, linear_recurrence
from ..mixer import Context, Mixer
from ..state import State


class DenseLti(Mixer):
    """A linear system with dense input and output maps, (b, l, d) to (b, l, d). Raises nothing of its own."""

    lti = True
    takes_dt = True
    readout: float = 1.0
    """2 where each state stands for a conjugate pair."""
    d_state: int
    """Number of complex states, n."""
    D: Tensor

    def modes(self, dt: TimeSteps | None) -> tuple[Inexact[Tensor, "... n"], Inexact[Tensor, "... n"]]:
        """a and w, complex, shape (n,), or (b, l, n) where the tokens have steps dt, (b, l). Raises nothing."""
        raise NotImplementedError

    def exponents(self) -> Complex[Tensor, "n"]:
        """log a for a step of 1, shape (n,). Raises nothing."""
        raise NotImplementedError

    def maps(self) -> tuple[Complex[Tensor, "n d"], Complex[Tensor, "d n"]]:
        """B (n, d) and C (d, n). Raises nothing."""
        raise NotImplementedError

    def map_back(self) -> Complex[Tensor, "d n"] | None:
        """C of the system run backwards, the present token included, (d, n); None in a causal layer. Raises nothing."""
        return None

    def activate(self, y: Tokens) -> Tokens:
        """The gated nonlinearity after the core, shape (b, l, d). Raises nothing."""
        raise NotImplementedError

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: ssm (b, n), complex. Raises Unsupported if two-sided."""
        if not self.recurrent:
            self._refuse("has no state: it looks ahead")
        return {"ssm": self._zeros(batch, self.d_state, device=device, dtype=dtype, complex_pairs=True)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """Core and nonlinearity on x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        y, state = self.core(x, state, ctx)
        return self.activate(y), state

    def core(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """The linear map: x and state to y and state, shapes as in `mix`. Raises nothing of its own."""
        with torch.autocast(x.device.type, enabled=False):
            u, D = at_least_float32(x), at_least_float32(self.D)
            u = u.to(D.dtype)
            a, w = self.modes(ctx.dt)
            B, C = self.maps()
            driven = torch.complex(F.linear(u, B.real), F.linear(u, B.imag))
            h, last = linear_recurrence(
                a,
                w * driven,
                initial_state=None if state is None else state["ssm"],
                cu_seqlens=ctx.cu_seqlens,
                return_last_state=True,
            )
            y = self.readout * (F.linear(h.real, C.real) - F.linear(h.imag, C.imag)) + D * u
            if (C := self.map_back()) is not None:
                h = linear_recurrence(a, w * driven, cu_seqlens=ctx.cu_seqlens, reverse=True)
                assert isinstance(h, torch.Tensor)
                y = y + self.readout * (F.linear(h.real, C.real) - F.linear(h.imag, C.imag))
        return y.to(x.dtype), {"ssm": last} if self.recurrent else None

    def kernel(self, length: int) -> Float[Tensor, "l d d"]:
        """The core's answer to single ones at time 0.

        Args:
            length: Number of steps, l.
        Returns:
            kernel[t, i, j]: output channel i at time t for a one in channel j, skip included, shape (l, d, d).
        Raises:
            ValueError: length < 0.
        """
        B, C = self.maps()
        weights = self.readout * torch.einsum("in,n,nj->ijn", C, self.modes(None)[1], B).flatten(0, 1)
        taps = damped_modes(weights, self.exponents().expand_as(weights), length).real
        taps = taps.reshape(length, self.d_model, self.d_model)
        return torch.cat([taps[:1] + torch.diag(at_least_float32(self.D)), taps[1:]])


def complex_of(pair: Float[Tensor, "... 2"]) -> Complex[Tensor, "..."]:
    """Re and Im side by side, (..., 2), as complex numbers, (...). Raises nothing."""
    return torch.view_as_complex(at_least_float32(pair).contiguous())
