"""Mega: a moving average of each channel feeds one head of gated attention, over all of the past or in chunks.

    m = silu(EMA(x));   z = silu(z_proj m),  q = kq z + mq,  k = kk z + mk,  v = silu(v_proj x)
    o = f(q k^T) v over the past, or over the past of the token's chunk
    y = phi * silu(h_proj m + u_proj(rho * o)) + (1 - phi) * x,   rho = silu(r_proj m),  phi = sigmoid(p_proj m)
    EMA: h[t] = (1 - p a) h[t-1] + p beta x[t],  gamma . h / sqrt n + omega x,  p = sigmoid(delta), a = sigmoid(alpha)

In chunks ("Mega-chunk") attention costs a chunk's length a token; what passes between chunks is the average. f is
softmax, or the paper's Laplace function of the scores over the number of visible keys. Positions are rotary.
The last line is Mega's own residual connection. In a residual block the x in it is the block's stream, which the other
lines see normalised where norms come first: the block then adds phi (silu(..) - stream), as the published block does.
Source: Ma et al. 2023, Mega: moving average equipped gated attention, sec. 3.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..functional import at_least_float32
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from .attention import rotary_table, rotate
from .diagonal_lti import Diagonal, run_diagonal


@dataclass(frozen=True, kw_only=True)
class MegaConfig:
    """Options of Mega."""

    d_state: int = 16
    """Averages of a channel, n."""
    chunk: int | None = None
    """Tokens of a chunk of attention; None attends to all of the past."""
    d_attention: int | None = None
    """Width of queries and keys, even; None is about a quarter of d_model."""
    expand: float = 2.0
    """Channels of the values, in multiples of d_model."""
    attention: Literal["softmax", "laplace"] = "softmax"
    """What turns scores into weights."""
    rope_base: float = 10000.0
    """Longest wavelength of the rotary positions, in tokens over 2 pi."""

    def __post_init__(self):
        if (self.chunk is not None and self.chunk < 1) or (self.d_attention or 2) % 2 or self.d_state < 1:
            raise ValueError(
                f"MegaConfig: chunk={self.chunk}, d_attention={self.d_attention}, d_state={self.d_state}, expected at "
                "least 1, and an even width of attention"
            )


class Mega(Mixer):
    """The Mega layer, its own residual gate included, (b, l, d_model) to (b, l, d_model).

    Outside a residual block, alone or in a wrapper, the stream is its input.

    State: ssm (b, d_model, n); k, v (b, c, width), the current chunk's from its start; pos (b,).

    Raises:
        ValueError: d_attention is odd.
    """

    title = "Moving average and gated attention, full or in chunks"
    operator = "fft_conv, selective_scan, torch"
    selective = True
    Config = MegaConfig
    examples = ({"d_state": 3}, {"d_state": 2, "chunk": 4, "attention": "laplace", "expand": 1.5})
    residual_out = ()

    def __init__(self, d_model: int, config: MegaConfig | None = None):
        super().__init__(d_model, config)
        c: MegaConfig = self.config
        self.bounded_state = c.chunk is not None
        width, values = c.d_attention or max(2, d_model // 8 * 2), int(c.expand * d_model)
        self.d_value = values
        self.delta, self.alpha = (nn.Parameter(0.2 * torch.randn(d_model, c.d_state)) for _ in range(2))
        signs = 1 - 2.0 * (torch.arange(c.d_state) % 2)
        self.beta = nn.Parameter(signs + 0.02 * torch.randn(d_model, c.d_state))
        self.gamma, self.omega = nn.Parameter(torch.randn(d_model, c.d_state)), nn.Parameter(torch.randn(d_model))
        self.z_proj, self.v_proj = nn.Linear(d_model, width), nn.Linear(d_model, values)
        self.scale, self.offset = nn.Parameter(0.02 * torch.randn(2, width)), nn.Parameter(torch.zeros(2, width))
        self.r_proj, self.p_proj = nn.Linear(d_model, values), nn.Linear(d_model, d_model)
        self.h_proj, self.u_proj = nn.Linear(d_model, d_model), nn.Linear(values, d_model, bias=False)
        for linear in (self.z_proj, self.v_proj, self.r_proj, self.p_proj, self.h_proj, self.u_proj):
            nn.init.normal_(linear.weight, std=0.02)

    def param_spec(self) -> dict[str, ParamSpec]:
        """The averages, and scales of single channels, do not decay. No shapes, raises nothing."""
        names = ("delta", "alpha", "beta", "gamma", "omega", "scale", "offset")
        return dict.fromkeys(names, ParamSpec(decay=False))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: ssm (b, d_model, n); k, v (b, c, width), c = chunk or 0; pos (b,). Raises nothing."""
        c: MegaConfig = self.config
        k = self._zeros(batch, c.chunk or 0, self.scale.shape[1], device=device, dtype=dtype)
        v = self._zeros(batch, c.chunk or 0, self.d_value, device=device, dtype=dtype)
        ssm = self._zeros(batch, self.d_model, c.d_state, device=device, dtype=dtype)
        return {"ssm": ssm, "k": k, "v": v, "pos": torch.zeros(batch, dtype=torch.int64, device=k.device)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """One pass over x, (b, l, d_model) or packed; see Mixer.mix. Raises nothing of its own."""
        hidden, phi, state = self.gated(x, state, ctx)
        return torch.lerp(x, hidden.to(x.dtype), phi.to(x.dtype)), state

    def branch(self, x: Tokens, stream: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """What the gate adds to the stream, shape (b, l, d_model); see Mixer.branch. Raises nothing of its own."""
        hidden, phi, state = self.gated(x, state, ctx)
        return phi.to(stream.dtype) * (hidden.to(stream.dtype) - stream), state

    def gated(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, Tokens, State | None]:
        """silu(..) and phi, (b, l, d_model) each, and the new state. Raises nothing of its own."""
        before = None if state is None else state["ssm"]
        average, ssm = run_diagonal(self.averages(), self.omega, x, before, ctx, "euler")
        m = F.silu(average)
        z = F.silu(self.z_proj(m))
        q, k = (z * scale + offset for scale, offset in zip(self.scale, self.offset, strict=True))
        o, cache = self.attend(q, k, F.silu(self.v_proj(x)), state, ctx)
        hidden = F.silu(self.h_proj(m) + self.u_proj(F.silu(self.r_proj(m)) * o.to(x.dtype)))
        return hidden, torch.sigmoid(self.p_proj(m)), None if ssm is None else {"ssm": ssm, **cache}

    def averages(self) -> Diagonal:
        """The moving averages as diagonal systems with steps of 1. Raises nothing."""
        p, a = at_least_float32(self.delta).sigmoid(), at_least_float32(self.alpha).sigmoid()
        C = at_least_float32(self.gamma) * self.config.d_state**-0.5
        return Diagonal(torch.log1p(-p * a), p * at_least_float32(self.beta), C, torch.ones_like(C[:, 0]))

    def attend(self, q: Tokens, k: Tokens, v: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """Attention in chunks that begin where a sequence does, (b, l, values), and the current chunk's k, v, pos."""
        rows = ctx.rows
        if rows is not None:
            q, k, v = (rows.to_padded(t) for t in (q, k, v))
        b, l, _ = q.shape
        lengths = torch.full_like(q[:, 0, 0], l, dtype=torch.int64) if rows is None else rows.lengths
        pos = torch.zeros_like(lengths) if state is None else state["pos"]
        chunk = self.config.chunk or int((pos + l).max())
        into = pos % chunk if self.config.chunk else pos
        count = -(-(int(into.max()) + l) // chunk)
        item = torch.arange(b, device=q.device)[:, None]
        at = into[:, None] + torch.arange(l, device=q.device)

        def placed(t: Tensor, cached: Tensor | None) -> Tensor:
            whole = t.new_zeros(b, count * chunk, t.shape[-1])
            if cached is not None:
                known = cached[:, : whole.shape[1]].to(t.dtype)  # beyond, a cache that grew holds nothing of this row
                whole = torch.cat([known, whole[:, known.shape[1] :]], 1)
            return whole.index_put((item, at), t)

        q, k, v = placed(q, None), placed(k, (state or {}).get("k")), placed(v, (state or {}).get("v"))
        o = self._within_chunks(*(t.unflatten(1, (count, chunk)) for t in (q, k, v))).flatten(1, 2)[item, at]
        o = o if rows is None else rows.from_padded(o)
        return o, self._cache(k, v, into + lengths, pos + lengths)

    def _within_chunks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention inside each chunk, (b, count, chunk, width)."""
        chunk = q.shape[2]
        cos, sin = rotary_table(chunk, q.shape[-1], self.config.rope_base, q.device)
        q, k = (rotate(t.flatten(0, 1)[:, :, None], cos, sin)[:, :, 0].view(t.shape) for t in (q, k))
        if self.config.attention == "softmax":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        visible = torch.arange(1, chunk + 1, dtype=q.dtype, device=q.device)[:, None]
        scores = q @ k.mT / visible
        # The paper's mean sqrt(1/2) and deviation sqrt(1/(4 pi)): close to its squared ReLU.
        weights = 0.5 * (1 + torch.erf((scores - 0.5**0.5) * (2 * torch.pi) ** 0.5))
        return weights.tril() @ v

    def _cache(self, k: Tokens, v: Tokens, end: Float[Tensor, "b"], pos: Float[Tensor, "b"]) -> State:
        """What of keys and values the next token sees: those of its chunk."""
        size = self.config.chunk or int(end.max())
        start = end // size * size if self.config.chunk else torch.zeros_like(end)
        slot = torch.arange(size, device=k.device)
        at = (start[:, None] + slot).clamp(max=k.shape[1] - 1)
        real = (start[:, None] + slot < end[:, None])[..., None]
        item = torch.arange(len(end), device=k.device)[:, None]
        wide = self._zeros(0).dtype
        return {name: torch.where(real, t[item, at], 0).to(wide) for name, t in (("k", k), ("v", v))} | {"pos": pos}
