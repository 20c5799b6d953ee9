"""RWKV-7 (Goose): a matrix memory that decays and erases along two different vectors, a generalised delta rule.

    S[t] = (Diag(w) - (a kk) kk^T) S[t-1] + k' v^T,   o[t] = S[t]^T r[t] + (sum r k' r_k) v,   y = out_proj(norm(o) g)
    w = exp(-e^(-1/2) sigmoid(.)),  a = sigmoid(.),  kk = unit(k k_k),  k' = k (1 + (a - 1) k_a)

w stays in (0.545, 1), so decays over a chunk are quotients that float32 holds, and the chunk is one triangular system.
With a up to 1 an eigenvalue may be negative: the memory can track a state. All layers but the first mix the first
layer's values into theirs: it exports "v_first", the others need it, and a Stack passes it on.
Source: Peng et al. 2025, RWKV-7 "Goose" with expressive dynamic state evolution, sec. 3-4.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, HeadTokens, Tokens
from ..functional import at_least_float32
from ..mixer import Context, ParamSpec
from ..state import State
from ..token_shift import last_token, previous
from .rwkv6 import LowRank, RwkvHeads

CHUNK = 32
"""Tokens of a triangular system: the decay over them is at least e^-20."""


@dataclass(frozen=True, kw_only=True)
class Rwkv7Config:
    """Options of RWKV-7's time mixing."""

    num_heads: int | None = None
    """Heads; None is one for 64 channels."""
    rank: int | None = None
    """Rank of the maps to decays, strengths, shares of the first layer's values and gates; None is 2.5, 2.5, 1.7 and 5
    times the root of d_model, in multiples of 32."""
    layer_index: int = 0
    """The layer's place in its stack, from 0; a Stack fills it in. Decays and mixes start by it."""
    num_layers: int = 1
    """Layers of the stack."""


class Rwkv7(RwkvHeads):
    """RWKV-7's time mixing, (b, l, d) to (b, l, d). State: shift (b, d), memory (b, h, p, p).

    Raises:
        ValueError: The heads do not divide d_model.
    """

    title = "Generalised delta rule (Goose)"
    operator = "loop over chunks"
    selective = True
    Config = Rwkv7Config
    examples = ({"rank": 3}, {"num_heads": 2, "rank": 2})

    def __init__(self, d_model: int, config: Rwkv7Config | None = None):
        super().__init__(d_model, config)
        c: Rwkv7Config = self.config
        channel, depth, above = self.ramp()
        # Each channel's place in the model from 0 to 1 and from -1/2 to 1/2, and in its head from -1 to 1, squared.
        place = torch.arange(d_model) / max(1, d_model - 1)
        middle = (self.d_head - 1) / 2
        zigzag = ((torch.arange(d_model) % self.d_head) - middle) / max(0.5, middle)
        zigzag, linear = zigzag * zigzag.abs(), place - 0.5
        powers = torch.tensor([0.9, 0.7, 0.7, 0.2, 0.9, 0.2])[:, None]  # of w, k, v, r, a, g
        self.mixes = nn.Parameter(1 - channel ** (powers * above))
        self.w_map = LowRank(d_model, self.rank(2.5), activation="tanh")
        self.a_map = LowRank(d_model, self.rank(2.5))
        self.g_map = LowRank(d_model, self.rank(5), bias=None, activation="sigmoid")
        self.exports = frozenset({"v_first"}) if c.layer_index == 0 else frozenset()
        self.needs = frozenset() if c.layer_index == 0 else frozenset({"v_first"})
        self.v_map = None if c.layer_index == 0 else LowRank(d_model, self.rank(1.7))
        starts = {"w_map": -6 + 6 * place ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag}
        starts |= {"a_map": -0.19 + 0.3 * zigzag + 0.4 * linear, "v_map": 0.73 - 0.4 * linear}
        for name, start in starts.items():
            if getattr(self, name) is not None:
                getattr(self, name).bias.data.copy_(start)
        self.k_k, self.k_a = nn.Parameter(0.71 - 0.1 * linear), nn.Parameter(torch.full((d_model,), 1.02))
        self.r_k = nn.Parameter(torch.full((self.num_heads, self.d_head), -0.04))
        nn.init.orthogonal_(self.r_proj.weight)
        nn.init.orthogonal_(self.v_proj.weight)
        nn.init.orthogonal_(self.k_proj.weight, gain=0.1)
        nn.init.zeros_(self.out_proj.weight)

    def rank(self, share: float) -> int:
        """Rank of a map: the configured one, or `share` times the root of d_model as published. Raises nothing."""
        return self.config.rank or max(32, round(share * self.d_model**0.5 / 32) * 32)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Mixes and the weights of single channels do not decay. No shapes, raises nothing."""
        return dict.fromkeys(("mixes", "k_k", "k_a", "r_k", "w_map.bias"), ParamSpec(decay=False))

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """One pass over x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        before = state or {}
        step = previous(x, before.get("shift"), ctx) - x
        w, k, v, r, a, g = (x[:, :, None] + step[:, :, None] * self.mixes.to(x.dtype)).unbind(2)
        g = self.g_map(g)
        a, log_w = self.a_map(a).sigmoid(), -math.exp(-0.5) * self.w_map(w).sigmoid()
        k, v, r = at_least_float32(self.k_proj(k)), self.values(v, ctx), self.heads(self.r_proj(r))
        with torch.autocast(x.device.type, enabled=False):
            kk = F.normalize(self.heads(k * at_least_float32(self.k_k)), dim=-1, eps=1e-12)
            k = self.heads(k * (1 + (a - 1) * at_least_float32(self.k_a)))
            v, a, log_w = self.heads(v), self.heads(a), self.heads(log_w)
            steps, rows = (r, k, v, log_w, a * kk, kk), ctx.rows
            if rows is not None:
                steps = tuple(rows.to_padded(t) for t in steps)  # padding has no key, no erasure and no decay
            o, memory = erasing_scan(steps, before.get("memory"))
            o = o if rows is None else rows.from_padded(o)
            o = self.normed(o) + ((r * k * at_least_float32(self.r_k)).sum(-1, keepdim=True) * v).flatten(-2)
        y = self.out_proj((o * g).to(x.dtype))
        return y, {"shift": last_token(x, before.get("shift"), ctx), "memory": memory}

    def values(self, x: Tokens, ctx: Context) -> Tokens:
        """The layer's values, mixed with the first layer's where it is not the first, (b, l, d). Raises nothing."""
        v = at_least_float32(self.v_proj(x))
        if self.v_map is None:
            if isinstance(ctx.shared, dict):
                ctx.shared["v_first"] = v
            return v
        return torch.lerp(v, (ctx.shared or {})["v_first"].to(v.dtype), self.v_map(x).sigmoid())


def erasing_scan(
    steps: tuple[HeadTokens, ...], initial_state: Float[Tensor, "b h n p"] | None
) -> tuple[HeadTokens, Float[Tensor, "b h n p"]]:
    """S[t] = (Diag(e^w) - b c^T) S[t-1] + k v^T,  o[t] = S[t]^T q[t], in chunks, for w > -0.61.

    With P the sum of w from the chunk's start and S' = e^-P S, a token adds k e^-P v^T and takes away b e^-P u^T, where
    u = (c e^(P - w))^T S' is what it finds: of a chunk, one unit triangular system.

    Args:
        steps: q, k, v, w, b, c, shape (b, l, h, n), v (b, l, h, p), in float32 or wider.
        initial_state: S before the first step, shape (b, h, n, p); zeros when None.
    Returns:
        o, shape (b, l, h, p); and the last state, shape (b, h, n, p).
    """
    l, (b, _, h, n), p = steps[0].shape[1], steps[0].shape, steps[2].shape[-1]
    state = steps[2].new_zeros(b, h, n, p) if initial_state is None else initial_state.to(steps[2].dtype)
    chunks = [F.pad(t, (0, 0, 0, 0, 0, -l % CHUNK)).unflatten(1, (-1, CHUNK)).transpose(2, 3).unbind(1) for t in steps]
    outputs = []
    for q, k, v, w, erase, find in zip(*chunks, strict=True):
        P = w.cumsum(-2)
        fade = P.neg().exp()
        k, erase, q, find = k * fade, erase * fade, q * P.exp(), find * (P - w).exp()
        right = find @ state + (find @ k.mT).tril(-1) @ v
        found = torch.linalg.solve_triangular((find @ erase.mT).tril(-1), right, upper=False, unitriangular=True)
        outputs.append(q @ state + (q @ k.mT).tril() @ v - (q @ erase.mT).tril() @ found)
        state = P[..., -1:, :].mT.exp() * (state + k.mT @ v - erase.mT @ found)
    return torch.cat(outputs, 2).transpose(1, 2)[:, :l], state
