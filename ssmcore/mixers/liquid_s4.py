"""Liquid-S4: S4D whose state moves by its input too, h' = (A + B u) h + B u; exactly, or to some degree in the input.

    exact  h[t] = (a + w u[t]) h[t-1] + w u[t]                      a, w as S4D samples A and B
    kb     h[t] = a h[t-1] + sum over p <= P of w^p u[t] u[t-1] .. u[t-p+1]
    pb     S4D, and y[t] += sum over 2 <= p <= P of 2 Re(C . w^p) u[t] .. u[t-p+1]

kb is the paper's kernel C a^i w^p on products of p neighbours, pb takes a = 1 in it. Degree 1 is S4D. In the exact form
|a + w u| is cut below 1, so that no input makes the state grow. The released code, unlike the paper, multiplies inputs
from the end of the sequence and turns the correction round in time, so that it sees the future; this does not.
Source: Hasani et al. 2023, Liquid structural state-space models, sec. 3.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..array_types import Float, Tokens
from ..discretization import discretize_diagonal
from ..functional import at_least_float32, causal_conv1d, linear_recurrence
from ..mixer import Context
from ..state import State
from .s4d import S4D, S4DConfig


@dataclass(frozen=True, kw_only=True)
class LiquidS4Config(S4DConfig):
    """Options of Liquid-S4."""

    mode: Literal["exact", "kb", "pb"] = "pb"
    """How the input moves the state."""
    degree: int = 3
    """Longest product of inputs P, of the forms kb and pb."""
    most: float = 0.999
    """Largest |a + w u| of the exact form, below 1."""

    def __post_init__(self):
        if self.mode not in ("exact", "kb", "pb") or self.degree < 1 or self.init == "real":
            raise ValueError(
                f"LiquidS4Config: mode={self.mode!r}, degree={self.degree}, init={self.init!r}, "
                "expected exact, kb or pb, a degree >= 1 and complex poles"
            )


class LiquidS4(S4D):
    """The Liquid-S4 layer, (b, l, d) to (b, l, d). State: ssm (b, d, n), complex; kb and pb: recent (b, P - 1, d).

    Raises:
        ValueError: As S4D.
    """

    title = "S4D whose state also moves by products of inputs"
    operator = "linear_recurrence"
    selective = True
    Config = LiquidS4Config
    examples = (
        {"d_state": 8},
        {"d_state": 4, "mode": "kb", "degree": 2},
        {"d_state": 4, "mode": "exact", "most": 0.99},
    )
    lti = takes_dt = False

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: ssm (b, d, n); recent (b, P - 1, d), the last inputs. Raises nothing."""
        state = super().init_state(batch, device=device, dtype=dtype)
        if self.config.mode != "exact":
            state["recent"] = self._zeros(batch, self.config.degree - 1, self.d_model, device=device, dtype=dtype)
        return state

    def core(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """The map before the output's: x and state to y and state, shapes as in `mix`. Raises nothing of its own."""
        before, mode = state or {}, self.config.mode
        with torch.autocast(x.device.type, enabled=False):
            A, B, C, dt = self.continuous()
            a, w = discretize_diagonal(A, B, dt[:, None], self.config.rule)
            u = at_least_float32(x).to(dt.dtype)
            move, write, direct, new = a.flatten(), u[..., None] * w, at_least_float32(self.D) * u, {}
            if mode == "exact":
                move = a + write
                move = (move / (move.abs() / self.config.most).clamp(min=1)).flatten(2)
            else:
                products, new["recent"] = self.products(u, before.get("recent"), ctx)
                for p, product in enumerate(products, 2):
                    if mode == "kb":
                        write = write + product[..., None] * w**p
                    else:
                        direct = direct + product * 2 * (C * w**p).sum(-1).real
            initial = None if "ssm" not in before else before["ssm"].flatten(1)
            h, last = linear_recurrence(
                move, write.flatten(2), initial_state=initial, cu_seqlens=ctx.cu_seqlens, return_last_state=True
            )
            y = 2 * (h.unflatten(-1, C.shape) * C).sum(-1).real + direct
        return y.to(x.dtype), {"ssm": last.unflatten(1, C.shape), **new}

    def products(
        self, u: Tokens, recent: Float[Tensor, "r past d"] | None, ctx: Context
    ) -> tuple[list[Tokens], Float[Tensor, "r past d"]]:
        """u[t] u[t-1], u[t] u[t-1] u[t-2], ... up to P factors, (b, l, d) each, and the last inputs. Raises nothing."""
        width, found = self.config.degree, []
        product, last = u, u.new_zeros(u.shape[0] if ctx.rows is None else ctx.rows.count, 0, u.shape[-1])
        for delay in range(1, width):
            pick = torch.zeros(u.shape[-1], width, dtype=u.dtype, device=u.device)
            pick[:, width - 1 - delay] = 1
            earlier, last = causal_conv1d(
                u, pick, initial_state=recent, cu_seqlens=ctx.cu_seqlens, return_last_state=True
            )
            product = product * earlier
            found.append(product)
        return found, last
