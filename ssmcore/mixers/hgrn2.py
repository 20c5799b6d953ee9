"""HGRN2: a gated linear RNN with an outer-product state, whose input gate is what the forget gate leaves.

    S[t] = Diag(f[t]) S[t-1] + (1 - f[t]) v[t]^T,   o[t] = S[t]^T silu(q[t]);   f = gamma + (1 - gamma) sigmoid(k)

gamma rises with depth from 0, so that deep layers remember longer: by default as at the start of the published model,
which learns it; here it is fixed.
Source: Qin et al. 2024, HGRN2: gated linear RNNs with state expansion, sec. 3.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..array_types import HeadTokens, Tokens
from ..mixer import Context
from ..state import State
from .matrix_memory import MatrixMemory, MatrixMemoryConfig, Weights


@dataclass(frozen=True, kw_only=True)
class DepthConfig:
    """Options of a forget gate whose lower bound rises with depth."""

    lower_bound: float | None = None
    """gamma, the smallest forget gate, in [0, 1): the larger, the longer the layer remembers. None rises with depth."""
    layer_index: int = 0
    """The layer's place in its stack, from 0; a Stack fills it in."""
    num_layers: int = 1
    """Layers of the stack."""

    def __post_init__(self):
        if not 0 <= self.gamma < 1:
            raise ValueError(f"{type(self).__name__}: the lower bound is {self.gamma}, expected in [0, 1)")

    @property
    def gamma(self) -> float:
        """The lower bound that holds. No shapes, raises nothing."""
        return self.layer_index / self.num_layers if self.lower_bound is None else self.lower_bound


@dataclass(frozen=True, kw_only=True)
class Hgrn2Config(MatrixMemoryConfig, DepthConfig):
    """Options of HGRN2."""


class Hgrn2(MatrixMemory):
    """The HGRN2 layer, (b, l, d_model) to (b, l, d_model). State: memory (b, h, n, p).

    Raises:
        ValueError: The heads do not divide the keys or the values.
    """

    title = "Gated linear RNN with an outer-product state"
    operator = "chunked_scan"
    selective = True
    Config = Hgrn2Config
    examples = ({}, {"num_heads": 2, "lower_bound": 0.5, "expand_v": 1.5, "chunk": 4})
    gate = None
    norm_each_head = False

    def weigh(
        self, x: Tokens, q: HeadTokens, k: HeadTokens, v: HeadTokens, state: State | None, ctx: Context
    ) -> Weights:
        """Keys and decays of one forget gate; see MatrixMemory.weigh."""
        gamma = self.config.gamma
        write = (1 - gamma) * torch.sigmoid(-k)
        # Without a bound, the logarithm of a closed gate is out of reach for 1 - write.
        log_forget = torch.log1p(-write) if gamma > 0 else F.logsigmoid(k)
        return Weights(F.silu(q), write, v, log_forget)
