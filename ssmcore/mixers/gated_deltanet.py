"""Gated DeltaNet: the delta rule on a memory that each head can also forget as a whole.

    S' = alpha[t] S[t-1],   S[t] = S' + beta[t] k[t] (v[t] - S'^T k[t])^T
    alpha = exp(-e^A_log softplus(a x + dt_bias))

Source: Yang, Kautz & Hatamizadeh 2024, Gated delta networks: improving Mamba2 with delta rule, sec. 3.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..functional import at_least_float32
from ..mixer import ParamSpec
from ..steps import inverse_softplus, log_uniform
from .deltanet import DeltaConfig, DeltaNet
from .matrix_memory import wide_linear


@dataclass(frozen=True, kw_only=True)
class GatedDeltaConfig(DeltaConfig):
    """Options of the gated delta rule."""

    expand_k: float = 0.75
    """Channels of queries and keys, h n, in multiples of d_model."""
    expand_v: float = 1.5
    """Channels of values, h p, in multiples of d_model."""


class GatedDeltaNet(DeltaNet):
    """The Gated DeltaNet layer, (b, l, d_model) to (b, l, d_model). State: memory (b, h, n, p), conv (b, w - 1, c).

    Raises:
        ValueError: The heads do not divide the keys or the values.
    """

    title = "Delta rule with a decay a head"
    operator = "chunked_scan"
    selective = True
    Config = GatedDeltaConfig
    examples = ({}, {"num_heads": 2, "d_conv": 2, "beta_max": 2.0, "chunk": 4})
    gate = "silu"

    def __init__(self, d_model: int, config: DeltaConfig | None = None):
        super().__init__(d_model, config)
        self.a_proj = self.decay_map()
        self.A_log = nn.Parameter(torch.empty(self.num_heads).uniform_(1e-2, 16).log())
        steps = list(self.a_proj.parameters())[-1].shape[0]
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(steps, 1e-3, 0.1)))

    def decay_map(self) -> nn.Module:
        """One number a head from a token, d_model channels to h. Raises nothing."""
        return nn.Linear(self.d_model, self.num_heads, bias=False)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Decay rates and step bias do not decay. No shapes, raises nothing."""
        return dict.fromkeys(("A_log", "dt_bias"), ParamSpec(decay=False))

    def log_decay(self, x: Tokens) -> Float[Tensor, "b l h"] | Float[Tensor, "b l h n"]:
        """-e^A_log softplus(a x + dt_bias), (b, l, h) from x (b, l, d_model). Raises nothing."""
        return -at_least_float32(self.A_log).exp() * self.steps(x)

    def steps(self, x: Tokens) -> Tokens:
        """softplus(a x + dt_bias), shape (b, l, h), or (b, l, h n) with a wider map. Raises nothing."""
        return F.softplus(wide_linear(self.a_proj, x) + at_least_float32(self.dt_bias))
