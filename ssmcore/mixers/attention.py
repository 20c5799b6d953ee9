"""Softmax attention: all of the past, or a window of it, with rotary positions and shared key and value heads.

    y[t] = out_proj( sum_s softmax_s(q[t] . k[s] / sqrt p) v[s] ),   s <= t, and s > t - window where there is one

A window counts the token itself: window = 1 sees nothing else. The state holds keys before they are rotated, the newest
last, so positions are always relative to the tokens at hand and a stream may run for ever.
Names: q, k, v as in the paper; b batch, l length, h heads, p head width; c cached tokens.
Source: Vaswani et al. 2017; Su et al. 2021, RoFormer (rotary); Ainslie et al. 2023, GQA; Beltagy et al. 2020 (window).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Bool, Float, HeadTokens, Int, Tokens
from ..mixer import Context, Mixer
from ..state import State


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Options of attention."""

    num_heads: int | None = None
    """Query heads; None is about one for 64 channels."""
    num_kv_heads: int | None = None
    """Key and value heads, a divisor of num_heads; None is one for each query head."""
    window: int | None = None
    """Tokens that a query sees, itself among them; None is all."""
    rope_base: float | None = 10000.0
    """Longest wavelength of the rotary positions, in tokens over 2 pi; None gives no positions."""
    rope_fraction: float = 1.0
    """Share of a head's channels that is rotated, the first ones; one half in RecurrentGemma."""
    causal: bool = True
    """Whether a query sees no later token. Without, a window reaches as far ahead as back, and there is no state."""
    bias: bool = False
    """Biases of the four maps."""
    init_std: float | None = None
    """Initial standard deviation of the four maps' weights, 0.02 as in GPT-2; None is Glorot's, which follows d_model
    (the Transformer's). At a width of 32 two layers of 0.02 need five times the steps to find an induction head."""

    def __post_init__(self):
        if self.window is not None and self.window < 1:
            raise ValueError(f"AttentionConfig: window={self.window}, expected at least 1")
        if not 0 < self.rope_fraction <= 1:
            raise ValueError(f"AttentionConfig: rope_fraction={self.rope_fraction}, expected above 0 and at most 1")


class Attention(Mixer):
    """Multi-head attention, (b, l, d_model) to (b, l, d_model).

    State: k and v (b, c, h, p), right-aligned, and pos (b,), the number of tokens seen. c is window - 1, or grows.

    Raises:
        ValueError: The heads do not divide d_model or each other, or a rotated head has odd width.
    """

    title = "Softmax attention: windows, shared key heads, rotary positions"
    operator = "torch"
    selective = True
    Config = AttentionConfig
    examples = (
        {},
        {"num_heads": 4, "num_kv_heads": 2, "window": 3},
        {"num_heads": 2, "rope_base": None, "causal": False},
        {"num_heads": 2, "rope_fraction": 0.5, "init_std": 0.02},
    )
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: AttentionConfig | None = None):
        super().__init__(d_model, config)
        c: AttentionConfig = self.config
        self.causal = self.recurrent = c.causal
        self.bounded_state = c.window is not None
        even = 1 if c.rope_base is None else 2
        fitting = [h for h in range(1, max(1, d_model // 64) + 1) if d_model % (even * h) == 0]
        self.num_heads = h = c.num_heads or max(fitting, default=1)
        self.num_kv_heads = c.num_kv_heads or h
        if d_model % h or h % self.num_kv_heads or d_model // h % even:
            raise ValueError(
                f"Attention: d_model={d_model} in {h} heads and {self.num_kv_heads} key heads, expected one to divide "
                "the other and an even head width for rotary positions"
            )
        self.d_head = d_model // h
        kv = self.num_kv_heads * self.d_head
        self.d_rotary = max(2, int(c.rope_fraction * self.d_head) // 2 * 2)
        self.q_proj = nn.Linear(d_model, d_model, bias=c.bias)
        self.k_proj = nn.Linear(d_model, kv, bias=c.bias)
        self.v_proj = nn.Linear(d_model, kv, bias=c.bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=c.bias)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            if c.init_std is None:
                nn.init.xavier_uniform_(linear.weight)
            else:
                nn.init.normal_(linear.weight, std=c.init_std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """An empty cache: k, v (b, c, h, p) with c = window - 1 or 0, pos (b,).

        Raises:
            Unsupported: Not causal.
        """
        if not self.causal:
            self._refuse("has no state when it is not causal")
        shape = (0 if self.config.window is None else self.config.window - 1, self.num_kv_heads, self.d_head)
        k = self._zeros(batch, *shape, device=device, dtype=dtype)
        return {"k": k, "v": torch.zeros_like(k), "pos": torch.zeros(batch, dtype=torch.int64, device=k.device)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """Attend within x, (b, l, d_model) or packed, and to what the state holds; see Mixer.mix."""
        rows = ctx.rows
        if rows is not None:
            x = rows.to_padded(x)
        b, l, _ = x.shape
        q = self.q_proj(x).view(b, l, self.num_heads, self.d_head)
        k = self.k_proj(x).view(b, l, self.num_kv_heads, self.d_head)
        v = self.v_proj(x).view(b, l, self.num_kv_heads, self.d_head)
        lengths = None if rows is None else rows.lengths
        if state is None:
            y = self._attend(q, k, v, None, lengths)
        else:
            k, v = (torch.cat([state[name].to(new.dtype), new], 1) for name, new in (("k", k), ("v", v)))
            y = self._attend(q, k, v, state["pos"].clamp(max=k.shape[1] - l), lengths)
        y = self.out_proj(y.reshape(b, l, self.d_model))
        left = self._remember(k, v, state, l, lengths) if ctx.return_state else None
        return (y if rows is None else rows.from_padded(y)), left

    def _remember(self, k: HeadTokens, v: HeadTokens, state: State | None, l: int, lengths: Tensor | None) -> State:
        """The newest keys and values of each row, right-aligned, zeros before them."""
        cached = k.shape[1] - l
        seen = torch.full((k.shape[0],), l, device=k.device) if lengths is None else lengths
        pos = seen if state is None else state["pos"] + seen
        size = k.shape[1] if self.config.window is None else self.config.window - 1
        age = torch.arange(size, 0, -1, device=k.device)
        valid = age <= pos[:, None]
        index = (cached + seen[:, None] - age).clamp(min=0)[..., None, None].expand(-1, -1, *k.shape[2:])
        like = self._zeros(0)  # for its dtype

        def newest(t: Tensor) -> Tensor:
            return torch.where(valid[..., None, None], t.gather(1, index), 0).to(like.dtype)

        return {"k": newest(k), "v": newest(v), "pos": pos}

    def _attend(
        self,
        q: HeadTokens,
        k: HeadTokens,
        v: HeadTokens,
        known: Int[Tensor, "b"] | None,
        lengths: Int[Tensor, "b"] | None,
    ) -> HeadTokens:
        """Queries (b, l, h, p) on the c + l keys; `known` cached ones and `lengths` new ones are real."""
        l, total, w = q.shape[1], k.shape[1], self.config.window
        if self.config.rope_base is not None:
            cos, sin = rotary_table(total, self.d_rotary, self.config.rope_base, q.device)
            q, k = rotate(q, cos[total - l :], sin[total - l :]), rotate(k, cos, sin)
        if self.causal and w is not None and total > 2 * w:
            return self._attend_in_blocks(q, k, v, known)
        if self.causal and w is None and known is None:
            return _softmax_attention(q, k, v, None)
        at = torch.arange(total, device=q.device)
        behind = at[total - l :, None] - at
        seen = behind >= 0 if self.causal else behind > -total
        if w is not None:
            seen = seen & (behind.abs() < w)
        if known is not None:
            seen = seen & (at >= total - l - known[:, None, None])
        if lengths is not None and not self.causal:
            seen = (seen & (at < lengths[:, None, None])) | (behind == 0)  # a query that sees nothing would be nan
        return _softmax_attention(q, k, v, seen if seen.ndim == 2 else seen[:, None])

    def _attend_in_blocks(
        self, q: HeadTokens, k: HeadTokens, v: HeadTokens, known: Int[Tensor, "b"] | None
    ) -> HeadTokens:
        """A window w over a long sequence: each block of w queries looks at the 2w keys around it."""
        (b, l, h, p), w = q.shape, self.config.window
        blocks = -(-l // w)
        cached, tail = k.shape[1] - l, blocks * w - l
        q = F.pad(q, (0, 0, 0, 0, 0, tail)).view(b * blocks, w, h, p)

        def around(t: Tensor) -> Tensor:
            t = F.pad(t, (0, 0, 0, 0, w - cached, tail)).unfold(1, 2 * w, w)
            return t.permute(0, 1, 4, 2, 3).reshape(b * blocks, 2 * w, *t.shape[2:4])

        query, key = torch.arange(w, device=q.device)[:, None], torch.arange(2 * w, device=q.device)
        seen = (key <= query + w) & (key > query)
        real = torch.arange(blocks, device=q.device)[:, None, None] * w + key >= w
        if known is not None:
            first = w - known[:, None, None, None]
            real = torch.arange(blocks, device=q.device)[:, None, None] * w + key >= first
        mask = (seen & real).expand(b, blocks, w, 2 * w).reshape(b * blocks, 1, w, 2 * w)
        return _softmax_attention(q, around(k), around(v), mask).reshape(b, blocks * w, h, p)[:, :l]


def _softmax_attention(q: HeadTokens, k: HeadTokens, v: HeadTokens, seen: Bool[Tensor, "..."] | None) -> HeadTokens:
    """torch's attention on (b, l, h, p); causal when `seen` is None."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    grouped = bool(q.shape[1] != k.shape[1])  # a tracer makes tensors of sizes
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, enable_gqa=grouped)
    return y.transpose(1, 2)


def rotary_table(
    length: int, d_head: int, base: float, device: torch.device | None = None
) -> tuple[Float[Tensor, "l f"], Float[Tensor, "l f"]]:
    """cos and sin of position times frequency, float64, each (l, p / 2). Raises nothing."""
    frequency = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64, device=device) / d_head)
    angle = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: HeadTokens, cos: Float[Tensor, "l f"], sin: Float[Tensor, "l f"]) -> HeadTokens:
    """Turn the channel pairs (i, i + f) of x, (b, l, h, p), by their f angles; channels from 2 f on stay as they are.

    Raises nothing.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin, f = cos.to(wide)[:, None], sin.to(wide)[:, None], cos.shape[-1]
    first, second, rest = x.to(wide).split([f, f, x.shape[-1] - 2 * f], dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1).to(x.dtype)
