"""RetNet (retention): linear attention with rotary positions, whose memory decays at a fixed rate in each head.

    S[t] = gamma S[t-1] + k[t] v[t]^T,   o[t] = S[t]^T q[t];   gamma = 1 - 2^(-5 - i) in head i

q and k are turned by their position's angle, so a pair's weight depends on their distance alone.
Source: Sun et al. 2023, Retentive network, sec. 2.1-2.2. Its per-head GroupNorm is an RMS norm here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..array_types import Float, HeadTokens, Int, Tokens
from ..mixer import Context
from ..state import State
from .matrix_memory import MatrixMemory, MatrixMemoryConfig, Weights


@dataclass(frozen=True, kw_only=True)
class RetNetConfig(MatrixMemoryConfig):
    """Options of retention."""

    expand_v: float = 2.0
    """Channels of values, h p, in multiples of d_model."""
    rope_base: float | None = 10000.0
    """Longest wavelength of the rotary positions, in tokens over 2 pi; None gives no positions."""


class RetNet(MatrixMemory):
    """Multi-scale retention, (b, l, d_model) to (b, l, d_model). State: memory (b, h, n, p), pos (b,).

    Raises:
        ValueError: The heads do not divide keys or values, or a rotated key has odd width.
    """

    title = "Retention: linear attention, fixed decays"
    operator = "chunked_scan"
    Config = RetNetConfig
    examples = ({}, {"num_heads": 2, "expand_v": 1.5, "rope_base": None, "chunk": 4})

    def __init__(self, d_model: int, config: RetNetConfig | None = None):
        super().__init__(d_model, config)
        if self.config.rope_base is not None and self.d_key % 2:
            raise ValueError(f"RetNet: keys of width {self.d_key}, expected an even width for rotary positions")

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: memory (b, h, n, p); pos (b,), the tokens seen. Raises nothing."""
        state = super().init_state(batch, device=device, dtype=dtype)
        return {**state, "pos": torch.zeros(batch, dtype=torch.int64, device=state["memory"].device)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """One pass over x, (b, l, d_model) or packed; see Mixer.mix. Raises nothing of its own."""
        y, new = super().mix(x, state, ctx)
        length = torch.full_like(x[:, 0, 0], x.shape[1], dtype=torch.int64) if ctx.rows is None else ctx.rows.lengths
        return y, {**new, "pos": length if state is None else state["pos"] + length}

    def weigh(
        self, x: Tokens, q: HeadTokens, k: HeadTokens, v: HeadTokens, state: State | None, ctx: Context
    ) -> Weights:
        """Fixed decay, rotated queries and keys; see MatrixMemory.weigh."""
        q = q / math.sqrt(self.d_key)
        base = self.config.rope_base
        if base is not None:
            pair = torch.arange(0, self.d_key, 2, dtype=torch.float64, device=x.device)
            angle = self._positions(x, state, ctx)[..., None, None] * base ** (-pair / self.d_key)
            q, k = turn(q, angle), turn(k, angle)
        head = torch.arange(self.num_heads, dtype=q.dtype, device=x.device)
        log_gamma = torch.log1p(-torch.exp2(-5 - head))
        return Weights(q, k, v, log_gamma.expand(*x.shape[:2], -1))

    def _positions(self, x: Tokens, state: State | None, ctx: Context) -> Int[Tensor, "b l"]:
        """Each token's place in its sequence, from 0."""
        if ctx.rows is not None:
            start = 0 if state is None else state["pos"][ctx.rows.row]
            return (ctx.rows.time + start)[None]
        time = torch.arange(x.shape[1], device=x.device)
        return time.expand(x.shape[0], -1) if state is None else time + state["pos"][:, None]


def turn(x: HeadTokens, angle: Float[Tensor, "b l h f"]) -> HeadTokens:
    """Turn the channel pairs (i, i + f) of x, (b, l, h, 2 f), by `angle`, (b, l, h, f). Raises nothing."""
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
