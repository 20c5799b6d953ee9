"""What the mixers with a matrix-valued state share: a memory of key-value pairs for each head.

    q, k, v = (maps of x);   S[t] = T[t] S[t-1] + k[t] v[t]^T,   o[t] = S[t]^T q[t];   y = out_proj(norm(o) gate)

A mixer of this family says in `weigh` what its queries, keys and values are, how the memory decays, and how strongly a
key's old value is erased. The rest stands here: maps, short convolution, scan, norm of each head, gate, state.
Names: h heads, n key width of a head, p its value width.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, HeadTokens, Tokens
from ..blocks import RMSNorm
from ..functional import at_least_float32, chunked_scan
from ..mixer import Context, Mixer
from ..state import State
from .short_conv import ShortConv


@dataclass(frozen=True, kw_only=True)
class MatrixMemoryConfig:
    """Options of all mixers with a matrix-valued state."""

    num_heads: int | None = None
    """Heads h; None is about one for 128 channels of keys."""
    expand_k: float = 1.0
    """Channels of queries and keys, h n, in multiples of d_model."""
    expand_v: float = 1.0
    """Channels of values, h p, in multiples of d_model."""
    chunk: int = 64
    """Tokens that the scan computes at once, a power of two: a matter of speed only."""


class Weights(NamedTuple):
    """What the scan is run with, in float32 or float64."""

    q: HeadTokens
    """Queries, shape (b, l, h, n)."""
    k: HeadTokens
    """Keys, shape (b, l, h, n)."""
    v: HeadTokens
    """Values, shape (b, l, h, p)."""
    log_decay: Float[Tensor, "b l h"] | Float[Tensor, "b l h n"] | None = None
    """Logarithm of the decay of a head, (b, l, h), or of each key channel, (b, l, h, n)."""
    beta: Float[Tensor, "b l h"] | None = None
    """Strength of the delta rule, shape (b, l, h)."""
    floor: Float[Tensor, "b l h"] | None = None
    """Of a normalised memory, the least size of what is divided by, shape (b, l, h); None is no limit."""
    left: State | None = None
    """What of the new state is not the scan's, tensors (b, ...) or (r, ...)."""


class MatrixMemory(Mixer):
    """Base of the family, (b, l, d_model) to (b, l, d_model). State: memory (b, h, n, p), and conv (b, w - 1, c) where

    q, k and v, c channels together, go through a short convolution of width w.

    Raises:
        ValueError: The heads do not divide the keys or the values.
    """

    Config = MatrixMemoryConfig
    residual_out = ("o_proj.weight",)
    gate: ClassVar[Literal["silu", "sigmoid"] | None] = "silu"
    """Activation of the output gate, where there is one."""
    normalised: bool = False
    """Divide by the sum of the weights: a column of ones is kept beside the values, memory (b, h, n, p + 1)."""
    gate_rank: int | None = None
    """Rank of the gate's map; None is full."""
    norm_each_head: ClassVar[bool] = True
    """Normalise each head by itself; else all heads together."""

    def __init__(self, d_model: int, config: MatrixMemoryConfig | None = None):
        super().__init__(d_model, config)
        c: MatrixMemoryConfig = self.config
        keys, values = int(c.expand_k * d_model), int(c.expand_v * d_model)
        fitting = [h for h in range(1, max(1, keys // 128) + 1) if keys % h == 0 and values % h == 0]
        self.num_heads = h = c.num_heads or max(fitting)
        if keys < h or values < h or keys % h or values % h:
            raise ValueError(
                f"{type(self).__name__}: {h} heads do not divide {keys} channels of keys and {values} of values"
            )
        self.d_key, self.d_value = keys // h, values // h
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, values, bias=False)
        width = getattr(c, "d_conv", None)
        self.conv1d = None if width is None else ShortConv(2 * keys + values, width, bias=False)
        self.g_proj = None if self.gate is None else low_rank(d_model, values, self.gate_rank)
        self.o_norm = RMSNorm(self.d_value if self.norm_each_head else values)
        self.o_proj = nn.Linear(values, d_model, bias=False)

    def weigh(
        self, x: Tokens, q: HeadTokens, k: HeadTokens, v: HeadTokens, state: State | None, ctx: Context
    ) -> Weights:
        """What the scan is run with.

        Args:
            x: Tokens, shape (b, l, d_model) or packed.
            q, k, v: Their maps, cut into heads, in float32 or float64, shapes (b, l, h, n), (b, l, h, n), (b, l, h, p).
            state: As in `mix`.
            ctx: As in `mix`.
        """
        raise NotImplementedError

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: memory (b, h, n, p); conv (b, w - 1, c) where there is a convolution. Raises nothing."""
        state = {
            "memory": self._zeros(
                batch, self.num_heads, self.d_key, self.d_value + self.normalised, device=device, dtype=dtype
            ),
        }
        if self.conv1d is not None:
            c, _, width = self.conv1d.weight.shape
            state["conv"] = self._zeros(batch, width - 1, c, device=device, dtype=dtype)
        return state

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """One pass over x, (b, l, d_model) or packed; see Mixer.mix. Raises nothing of its own."""
        before, new = state or {}, {}
        maps = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        if self.conv1d is not None:
            joined, new["conv"] = self.conv1d(torch.cat(maps, -1), before.get("conv"), ctx)
            maps = joined.split([m.shape[-1] for m in maps], -1)
        q, k, v = (at_least_float32(m).unflatten(-1, (self.num_heads, -1)) for m in maps)
        with torch.autocast(x.device.type, enabled=False):
            o, left = self.remember(x, q, k, v, state, ctx)
        o = self.o_norm(o).flatten(-2) if self.norm_each_head else self.o_norm(o.flatten(-2))
        if self.g_proj is not None:
            o = o * {"silu": F.silu, "sigmoid": F.sigmoid}[self.gate or "silu"](self.g_proj(x))
        return self.o_proj(o.to(x.dtype)), {**new, **left}

    def remember(
        self, x: Tokens, q: HeadTokens, k: HeadTokens, v: HeadTokens, state: State | None, ctx: Context
    ) -> tuple[HeadTokens, State]:
        """Write to the memory and read it: o (b, l, h, p) and the new state; arguments as in `weigh`."""
        weights = self.weigh(x, q, k, v, state, ctx)
        v = weights.v
        if self.normalised:
            v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        o, memory = chunked_scan(
            weights.q,
            weights.k,
            v,
            log_decay=weights.log_decay,
            beta=weights.beta,
            initial_state=None if state is None else state["memory"],
            cu_seqlens=ctx.cu_seqlens,
            return_last_state=True,
            chunk=self.config.chunk,
        )
        if self.normalised:
            o, weight = o.split([o.shape[-1] - 1, 1], -1)
            o = o / (weight if weights.floor is None else torch.maximum(weight.abs(), weights.floor[..., None]))
        return o, {"memory": memory, **(weights.left or {})}


def low_rank(d: int, out: int, rank: int | None, bias: bool = False) -> nn.Module:
    """A linear map of d channels to `out`, through `rank` of them where it is given. No shapes, raises nothing."""
    if rank is None:
        return nn.Linear(d, out, bias=bias)
    return nn.Sequential(nn.Linear(d, rank, bias=False), nn.Linear(rank, out, bias=bias))


def wide_linear(module: nn.Module, x: Tokens) -> Tokens:
    """A map in the dtype of its weights, for what is exponentiated after it: float32 also in a bfloat16 region.

    Shape (b, l, d) to (b, l, out). Raises nothing.
    """
    return at_least_float32(module(x.to(next(module.parameters()).dtype)))


def unit(x: HeadTokens) -> HeadTokens:
    """x / |x| over the last axis, smooth at zero, shape (b, l, h, n). Raises nothing.

    Source: the 1e-6 under the root is that of the published delta-rule models.
    """
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
