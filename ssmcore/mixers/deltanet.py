"""DeltaNet: linear attention that replaces what it knew of a key instead of adding to it.

    S[t] = (1 - beta[t] k[t] k[t]^T) S[t-1] + beta[t] k[t] v[t]^T,   o[t] = S[t]^T q[t]

q and k are unit vectors. With beta up to 2 a step may also flip a sign, which lets the memory count modulo 2.
Source: Schlag et al. 2021, Linear transformers are secretly fast weight programmers; Yang et al. 2024, Parallelizing
linear transformers with the delta rule; Grazzi et al. 2024 for negative eigenvalues.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from ..array_types import Float, HeadTokens, Tokens
from ..mixer import Context
from ..state import State
from .matrix_memory import MatrixMemory, MatrixMemoryConfig, Weights, unit, wide_linear


@dataclass(frozen=True, kw_only=True)
class DeltaConfig(MatrixMemoryConfig):
    """Options of all mixers with the delta rule."""

    d_conv: int = 4
    """Width of the short convolution of q, k and v, in tokens."""
    beta_max: float = 1.0
    """Largest strength of the delta rule: 1 erases at most all, 2 allows negative eigenvalues."""

    def __post_init__(self):
        if not 0 < self.beta_max <= 2:
            raise ValueError(f"{type(self).__name__}: beta_max={self.beta_max}, expected in (0, 2]")


class DeltaNet(MatrixMemory):
    """The DeltaNet layer, (b, l, d_model) to (b, l, d_model). State: memory (b, h, n, p), conv (b, d_conv - 1, c).

    Raises:
        ValueError: The heads do not divide the keys or the values.
    """

    title = "Linear attention that overwrites (delta rule)"
    operator = "chunked_scan"
    selective = True
    Config = DeltaConfig
    examples = ({}, {"num_heads": 2, "d_conv": 2, "beta_max": 2.0, "expand_k": 0.5, "chunk": 4})
    gate = None

    def __init__(self, d_model: int, config: DeltaConfig | None = None):
        super().__init__(d_model, config)
        self.b_proj = nn.Linear(d_model, self.num_heads, bias=False)

    def weigh(
        self, x: Tokens, q: HeadTokens, k: HeadTokens, v: HeadTokens, state: State | None, ctx: Context
    ) -> Weights:
        """Unit queries and keys, and the strength of the delta rule; see MatrixMemory.weigh."""
        beta = self.config.beta_max * wide_linear(self.b_proj, x).sigmoid()
        return Weights(unit(q) * self.d_key**-0.5, unit(k), v, self.log_decay(x), beta)

    def log_decay(self, x: Tokens) -> Float[Tensor, "b l h"] | Float[Tensor, "b l h n"] | None:
        """None: nothing is forgotten but what is overwritten; x (b, l, d_model). Raises nothing."""
        return None
