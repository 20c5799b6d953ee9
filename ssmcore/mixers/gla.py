"""GLA, gated linear attention: each channel of the keys forgets at a rate that the token sets.

    S[t] = Diag(alpha[t]) S[t-1] + k[t] v[t]^T,   o[t] = S[t]^T q[t];   alpha = sigmoid(W x + b)^(1 / tau)

Source: Yang et al. 2024, Gated linear attention transformers with hardware-efficient training, sec. 4.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F

from ..array_types import HeadTokens, Tokens
from ..mixer import Context
from ..state import State
from .matrix_memory import MatrixMemory, MatrixMemoryConfig, Weights, low_rank, wide_linear


@dataclass(frozen=True, kw_only=True)
class GlaConfig(MatrixMemoryConfig):
    """Options of gated linear attention."""

    expand_k: float = 0.5
    """Channels of queries and keys, h n, in multiples of d_model."""
    decay_rank: int = 16
    """Rank of the map to the decays."""
    tau: float = 16.0
    """Temperature: the larger, the slower the memory forgets."""

    def __post_init__(self):
        if self.tau <= 0:
            raise ValueError(f"GlaConfig: tau={self.tau}, expected more than 0")


class Gla(MatrixMemory):
    """Gated linear attention, (b, l, d_model) to (b, l, d_model). State: memory (b, h, n, p).

    Raises:
        ValueError: The heads do not divide the keys or the values.
    """

    title = "Gated linear attention: a decay a key channel"
    operator = "chunked_scan"
    selective = True
    Config = GlaConfig
    examples = ({}, {"num_heads": 2, "expand_k": 1.0, "tau": 1.0, "decay_rank": 3, "chunk": 4})

    def __init__(self, d_model: int, config: GlaConfig | None = None):
        super().__init__(d_model, config)
        self.gk_proj = low_rank(d_model, self.num_heads * self.d_key, self.config.decay_rank, bias=True)

    def weigh(
        self, x: Tokens, q: HeadTokens, k: HeadTokens, v: HeadTokens, state: State | None, ctx: Context
    ) -> Weights:
        """A decay for each channel of the keys; see MatrixMemory.weigh."""
        log_decay = F.logsigmoid(wide_linear(self.gk_proj, x)) / self.config.tau
        return Weights(q / math.sqrt(self.d_key), k, v, log_decay.unflatten(-1, (self.num_heads, -1)))
