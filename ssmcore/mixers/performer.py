"""Performer: softmax attention with its kernel e^(q . k) as an inner product of positive random features.

    phi(x) = e^(w_i . x - |x|^2 / 2) / sqrt m,  i = 1 .. m
    o[t] = sum_s phi(q[t]) . phi(k[s]) v[s] / (the same without v)

q and k are scaled by p^(-1/4) each. The w_i are normal vectors made orthogonal in blocks, which lowers the variance;
they are drawn once and are no parameters. In expectation this is softmax attention, with a state of fixed size.
Source: Choromanski et al. 2021, Rethinking attention with Performers, sec. 2.3-2.4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..array_types import Float, HeadTokens, Tokens
from ..functional import at_least_float32
from ..mixer import Context
from ..state import State
from .matrix_memory import MatrixMemory, MatrixMemoryConfig, Weights


@dataclass(frozen=True, kw_only=True)
class PerformerConfig(MatrixMemoryConfig):
    """Options of the Performer."""

    features: int = 64
    """Random features m of a head."""


class Performer(MatrixMemory):
    """The Performer layer, (b, l, d_model) to (b, l, d_model). State: memory (b, h, m, p + 1).

    Raises:
        ValueError: The heads do not divide the keys or the values.
    """

    title = "Softmax attention by random features"
    operator = "chunked_scan"
    Config = PerformerConfig
    examples = ({"features": 6}, {"num_heads": 2, "features": 5, "expand_v": 1.5, "chunk": 4})
    gate = None
    normalised = True
    directions: Tensor

    def __init__(self, d_model: int, config: PerformerConfig | None = None):
        super().__init__(d_model, config)
        self.width = self.d_key
        self.d_key = self.config.features  # what the memory is indexed by
        self.register_buffer("directions", orthogonal_normal(self.config.features, self.width))

    def weigh(
        self, x: Tokens, q: HeadTokens, k: HeadTokens, v: HeadTokens, state: State | None, ctx: Context
    ) -> Weights:
        """Features of queries and keys; see MatrixMemory.weigh."""
        return Weights(self.features(q), self.features(k), v)

    def features(self, x: HeadTokens) -> HeadTokens:
        """phi(x p^(-1/4)), shape (b, l, h, p) to (b, l, h, m). Raises nothing."""
        x = x * self.width**-0.25
        along = x @ at_least_float32(self.directions).to(x.dtype).T
        return (along - x.square().sum(-1, keepdim=True) / 2).exp() * self.config.features**-0.5


def orthogonal_normal(m: int, p: int) -> Float[Tensor, "m p"]:
    """m vectors of p normal numbers each, orthogonal within blocks of p, shape (m, p). Raises nothing."""
    blocks = []
    for _ in range(-(-m // p)):
        directions, triangle = torch.linalg.qr(torch.randn(p, p))
        directions = directions * triangle.diagonal().sign()  # without, they are not evenly spread
        blocks.append(directions.T * torch.randn(p, p).norm(dim=1, keepdim=True))
    return torch.cat(blocks)[:m]
