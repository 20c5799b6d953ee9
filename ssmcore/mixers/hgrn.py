"""HGRN, hierarchically gated recurrent network: a complex recurrence whose smallest forget gate rises with depth.

    λ = gamma + (1 - gamma) sigmoid(f_proj x),   h[t] = λ[t] e^(i theta) h[t-1] + (1 - λ[t]) c[t]
    c = silu(c_proj x), complex;   y = out_proj norm(silu(g_proj x) * [Re h, Im h])

As for HGRN2, gamma stands at where the published model starts learning it: k / K in layer k of K.
Source: Qin et al. 2023, Hierarchically gated recurrent neural network for sequence modeling, sec. 3.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..array_types import Tokens
from ..blocks import LayerNorm
from ..functional import at_least_float32, linear_recurrence
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from .hgrn2 import DepthConfig


class Hgrn(Mixer):
    """The HGRN layer, (b, l, d) to (b, l, d). State: h (b, d), complex. Raises nothing of its own."""

    title = "Hierarchically gated linear RNN, complex"
    operator = "linear_recurrence"
    selective = True
    Config = DepthConfig
    examples = ({}, {"lower_bound": 0.5})
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: DepthConfig | None = None):
        super().__init__(d_model, config)
        self.c_proj = nn.Linear(d_model, 2 * d_model, bias=False)
        self.f_proj = nn.Linear(d_model, d_model, bias=False)
        self.g_proj = nn.Linear(d_model, 2 * d_model, bias=False)
        self.theta = nn.Parameter(10000.0 ** (-torch.arange(d_model) / d_model))
        self.norm = LayerNorm(2 * d_model)
        self.out_proj = nn.Linear(2 * d_model, d_model, bias=False)

    def param_spec(self) -> dict[str, ParamSpec]:
        """The angles do not decay. No shapes, raises nothing."""
        return {"theta": ParamSpec(decay=False)}

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: h (b, d). Raises nothing."""
        return {"h": self._zeros(batch, self.d_model, device=device, dtype=dtype, complex_pairs=True)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """One pass over x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        c, f, g = F.silu(self.c_proj(x)), self.f_proj(x), F.silu(self.g_proj(x))
        gamma = self.config.gamma
        with torch.autocast(x.device.type, enabled=False):
            write = (1 - gamma) * torch.sigmoid(-at_least_float32(f))  # 1 - λ
            theta = at_least_float32(self.theta)
            turn = torch.polar(torch.ones_like(theta), theta)
            h, last = linear_recurrence(
                (1 - write) * turn,
                write * torch.complex(*at_least_float32(c).chunk(2, -1)),
                initial_state=None if state is None else state["h"],
                cu_seqlens=ctx.cu_seqlens,
                return_last_state=True,
            )
        parts = torch.cat([h.real, h.imag], -1).to(x.dtype)
        return self.out_proj(self.norm(g * parts).to(x.dtype)), {"h": last}
