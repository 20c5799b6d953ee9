"""KDA, Kimi delta attention: the gated delta rule with a decay of its own for each channel of the keys.

    S' = Diag(alpha[t]) S[t-1],   S[t] = S' + beta[t] k[t] (v[t] - S'^T k[t])^T;   y = o_proj(norm(o) sigmoid(gate))

Source: Kimi team 2025, Kimi linear: an expressive, efficient attention architecture, sec. 3.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..functional import at_least_float32
from .deltanet import DeltaConfig
from .gated_deltanet import GatedDeltaNet
from .matrix_memory import low_rank


@dataclass(frozen=True, kw_only=True)
class KdaConfig(DeltaConfig):
    """Options of Kimi delta attention."""

    rank: int | None = None
    """Rank of the maps to the decays and to the gate; None is the value width of a head."""


class Kda(GatedDeltaNet):
    """The KDA layer, (b, l, d_model) to (b, l, d_model). State: memory (b, h, n, p), conv (b, d_conv - 1, c).

    Raises:
        ValueError: The heads do not divide the keys or the values.
    """

    title = "Kimi delta attention: a decay a key channel"
    operator = "chunked_scan"
    selective = True
    Config = KdaConfig
    examples = ({}, {"num_heads": 2, "d_conv": 2, "rank": 3, "expand_v": 1.5, "beta_max": 2.0, "chunk": 4})
    gate = "sigmoid"

    def __init__(self, d_model: int, config: KdaConfig | None = None):
        super().__init__(d_model, config)
        self.g_proj = low_rank(d_model, self.num_heads * self.d_value, self.rank, bias=True)
        nn.init.uniform_(self.A_log, 1, 16).data.log_()  # not from 0, as in Gated DeltaNet

    @property
    def rank(self) -> int:
        """Rank of the maps to decays and gate. No shapes, raises nothing."""
        return self.config.rank or self.d_value

    def decay_map(self) -> nn.Module:
        """One number for each channel of the keys, d_model channels to h n. Raises nothing."""
        return low_rank(self.d_model, self.num_heads * self.d_key, self.rank)

    def log_decay(self, x: Tokens) -> Float[Tensor, "b l h n"]:
        """-e^A_log softplus(f x + dt_bias), (b, l, h, n) from x (b, l, d_model). Raises nothing."""
        return -at_least_float32(self.A_log).exp()[:, None] * self.steps(x).unflatten(-1, (self.num_heads, -1))
