"""RWKV-6 (Finch): a matrix memory whose decays, and what is taken from the token before, depend on the token.

    x_i = x[t] + (x[t-1] - x[t]) (mu_i + lora_i(x)),  i = w, k, v, r, g
    S[t] = Diag(w[t]) S[t-1] + k[t] v[t]^T,   o[t] = (S[t-1] + Diag(u) k[t] v[t]^T)^T r[t]
    w = exp(-exp(d + up tanh(down x_w))),   y = out_proj(norm(o) silu(g))

The memory is read before the token is written, the token itself counts by its bonus u. Code to paper: n = p.
Source: Peng et al. 2024, Eagle and Finch: RWKV with matrix-valued states and dynamic recurrence, sec. 4.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, HeadTokens, Tokens
from ..functional import at_least_float32, chunked_scan
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..token_shift import last_token, previous


@dataclass(frozen=True, kw_only=True)
class Rwkv6Config:
    """Options of RWKV-6's time mixing."""

    num_heads: int | None = None
    """Heads; None is one for 64 channels."""
    rank: int = 32
    """Rank of the maps that make a token's own mixes."""
    decay_rank: int = 64
    """Rank of the map to the decays."""
    chunk: int = 64
    """Tokens that the scan computes at once, a power of two: a matter of speed only."""
    layer_index: int = 0
    """The layer's place in its stack, from 0; a Stack fills it in. Decays and mixes start by it."""
    num_layers: int = 1
    """Layers of the stack."""


class LowRank(nn.Module):
    """bias + up(act(down x)), down starting at zero, (b, l, d) to (b, l, d), in float32 or wider. Raises nothing."""

    def __init__(self, d: int, rank: int, bias: float | None = 0.0, activation: str = "none"):
        super().__init__()
        self.down = nn.Parameter(torch.zeros(d, rank))
        self.up = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, d), gain=0.1))
        self.bias = None if bias is None else nn.Parameter(torch.full((d,), bias))
        self.activation = {"none": lambda t: t, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[activation]

    def forward(self, x: Tokens) -> Tokens:
        """The map, shape (b, l, d). Raises nothing."""
        with torch.autocast(x.device.type, enabled=False):
            down, up = at_least_float32(self.down), at_least_float32(self.up)
            y = self.activation(at_least_float32(x).to(down.dtype) @ down) @ up
            return y if self.bias is None else y + at_least_float32(self.bias)


class RwkvHeads(Mixer):
    """What RWKV-6 and RWKV-7 share: heads, the token shift and the norm of each head, (b, l, d) to (b, l, d).

    State: shift (b, d), memory (b, h, p, p).

    Raises:
        ValueError: The heads do not divide d_model.
    """

    residual_out = ("out_proj.weight",)
    norm_eps: float = 64e-5
    """Of the norm of each head: 1e-5 times the square of the published head_size_divisor, 8."""

    def __init__(self, d_model: int, config=None):
        super().__init__(d_model, config)
        wanted = max(1, d_model // 64)
        self.num_heads = h = self.config.num_heads or max(i for i in range(1, wanted + 1) if d_model % i == 0)
        if d_model % h:
            raise ValueError(f"{type(self).__name__}: {h} heads do not divide d_model={d_model}")
        self.d_head = d_model // h
        self.k_proj, self.v_proj, self.r_proj, self.out_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        share = (self.config.layer_index + 1) / self.config.num_layers
        self.norm_weight = nn.Parameter(torch.full((d_model,), share**0.7))
        self.norm_bias = nn.Parameter(torch.zeros(d_model))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: shift (b, d), the last token; memory (b, h, p, p), keys first. Raises nothing."""
        shape = (self.num_heads, self.d_head, self.d_head)
        return {
            "shift": self._zeros(batch, self.d_model, device=device, dtype=dtype),
            "memory": self._zeros(batch, *shape, device=device, dtype=dtype),
        }

    def heads(self, x: Tokens) -> HeadTokens:
        """Cut into heads, in float32 or wider, (b, l, d) to (b, l, h, p). Raises nothing."""
        return at_least_float32(x).unflatten(-1, (self.num_heads, -1))

    def normed(self, o: HeadTokens) -> Tokens:
        """Layer norm of each head, with weights of each channel, (b, l, h, p) to (b, l, d). Raises nothing."""
        y = F.layer_norm(o, (self.d_head,), eps=self.norm_eps).flatten(-2)
        return y * at_least_float32(self.norm_weight) + at_least_float32(self.norm_bias)

    def ramp(self) -> tuple[Float[Tensor, "d"], float, float]:
        """Each channel's place, i / d; how deep the layer lies, 0 to 1; how much is above it, 1 to near 0."""
        c = self.config
        depth, above = c.layer_index / max(1, c.num_layers - 1), 1 - c.layer_index / c.num_layers
        return torch.arange(self.d_model) / self.d_model, depth, above


class Rwkv6(RwkvHeads):
    """RWKV-6's time mixing, (b, l, d) to (b, l, d). State: shift (b, d), memory (b, h, p, p).

    Raises:
        ValueError: The heads do not divide d_model.
    """

    title = "Matrix memory with decays by the token (Finch)"
    operator = "chunked_scan"
    selective = True
    Config = Rwkv6Config
    examples = (
        {"rank": 3, "decay_rank": 3},
        {"num_heads": 2, "rank": 2, "decay_rank": 2, "chunk": 4, "layer_index": 1, "num_layers": 2},
    )

    def __init__(self, d_model: int, config: Rwkv6Config | None = None):
        super().__init__(d_model, config)
        c: Rwkv6Config = self.config
        channel, depth, above = self.ramp()
        mixes = [1 - channel**above] * 3 + [1 - channel**above - 0.3 * depth, 1 - channel ** (0.5 * above)]
        self.mix_x = nn.Parameter(mixes[0].clone())
        self.mixes = nn.Parameter(torch.stack([mixes[i] for i in (1, 2, 3, 4, 4)]))  # w, k, v, r, g
        self.lora_in = nn.Parameter(torch.zeros(d_model, 5 * c.rank))
        self.lora_out = nn.Parameter(torch.empty(5, c.rank, d_model).uniform_(-0.01, 0.01))
        place = torch.arange(d_model) / max(1, d_model - 1)
        self.decay = nn.Parameter(-6 + 5 * place ** (0.7 + 1.3 * depth))
        self.w_map = LowRank(d_model, c.decay_rank, bias=None, activation="tanh")
        nn.init.uniform_(self.w_map.up, -0.01, 0.01)
        zigzag = 0.1 * ((torch.arange(d_model) + 1) % 3 - 1)
        self.bonus = nn.Parameter((depth * (1 - place) + zigzag).view(self.num_heads, -1))
        self.g_proj = nn.Linear(d_model, d_model, bias=False)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Decays, bonus and mixes do not decay. No shapes, raises nothing."""
        return dict.fromkeys(("decay", "bonus", "mix_x", "mixes"), ParamSpec(decay=False))

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """One pass over x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        before = state or {}
        w, k, v, r, g = self.shifted(x, before.get("shift"), ctx)
        g = F.silu(self.g_proj(g))
        k, v, r = self.heads(self.k_proj(k)), self.heads(self.v_proj(v)), self.heads(self.r_proj(r))
        log_w = -(at_least_float32(self.decay) + self.w_map(w)).exp()
        log_w = log_w.unflatten(-1, (self.num_heads, -1))
        with torch.autocast(x.device.type, enabled=False):
            # At each token the memory holds what the tokens before wrote: everything but r comes a token late.
            o, memory = chunked_scan(
                r,
                *(previous(t, None, ctx) for t in (k, v)),
                log_decay=previous(log_w, None, ctx),
                initial_state=before.get("memory"),
                cu_seqlens=ctx.cu_seqlens,
                return_last_state=True,
                chunk=self.config.chunk,
            )
            o = o + (r * at_least_float32(self.bonus) * k).sum(-1, keepdim=True) * v
            fade, key, value = (last_token(t, None, ctx) for t in (log_w, k, v))
            memory = fade.exp()[..., None] * memory + key[..., None] * value[..., None, :]
            o = self.normed(o)
        y = self.out_proj(o.to(x.dtype) * g)
        return y, {"shift": last_token(x, before.get("shift"), ctx), "memory": memory}

    def shifted(self, x: Tokens, before: Float[Tensor, "r d"] | None, ctx: Context) -> tuple[Tokens, ...]:
        """The five mixes of each token with the one before it, (b, l, d) each. Raises nothing."""
        step = previous(x, before, ctx) - x
        inner = ((x + step * self.mix_x.to(x.dtype)) @ self.lora_in.to(x.dtype)).tanh().unflatten(-1, (5, -1))
        own = torch.einsum("blir,ird->blid", inner, self.lora_out.to(inner.dtype))
        return (x[:, :, None] + step[:, :, None] * (self.mixes.to(x.dtype) + own)).unbind(2)
