"""RWKV-4: an average of the past values, weighted by e^key and fading at a fixed rate, in each channel.

    k, v, r = (maps of mix x[t] + (1 - mix) x[t-1])
    wkv[t] = (sum over i < t of e^(k[i] - (t-1-i) w) v[i] + e^(u + k[t]) v[t]) / (the same without v)
    y = out_proj(sigmoid(r) wkv),   w = exp(decay)

Numerator and denominator are kept as multiples of e^top, the largest weight seen, so that no key overflows them; they
are one associative scan. Its channel mixer is `rwkv_channel_mix`.
Source: Peng et al. 2023, RWKV: reinventing RNNs for the transformer era, eq. 11-19 and appendix D.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..functional import associative_scan, at_least_float32
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..token_shift import last_token, previous

NOTHING = -1e38
"""The exponent of a weight that is not there."""


@dataclass(frozen=True, kw_only=True)
class Rwkv4Config:
    """Options of RWKV-4's time mixing."""

    layer_index: int = 0
    """The layer's place in its stack, from 0; a Stack fills it in. Decays and mixes start by it."""
    num_layers: int = 1
    """Layers of the stack."""


class Average(NamedTuple):
    """A stretch of tokens: num e^top and den e^top, and the exponent by which what came before it fades."""

    fade: Float[Tensor, "b l d"]
    top: Float[Tensor, "b l d"]
    num: Float[Tensor, "b l d"]
    den: Float[Tensor, "b l d"]


class Rwkv4(Mixer):
    """RWKV-4's time mixing, (b, l, d) to (b, l, d). State: shift, num, den, top (b, d). Raises nothing of its own."""

    title = "Fading average weighted by e^key"
    operator = "associative_scan"
    selective = True
    Config = Rwkv4Config
    examples = ({}, {"layer_index": 2, "num_layers": 3})
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: Rwkv4Config | None = None):
        super().__init__(d_model, config)
        c: Rwkv4Config = self.config
        depth, fade = c.layer_index / max(1, c.num_layers - 1), 1 - c.layer_index / c.num_layers
        channel = torch.arange(d_model) / d_model
        self.mix_k = nn.Parameter(channel**fade)
        self.mix_v = nn.Parameter(channel**fade + 0.3 * depth)
        self.mix_r = nn.Parameter(channel ** (0.5 * fade))
        ramp = torch.arange(d_model) / max(1, d_model - 1)
        self.decay = nn.Parameter(-5 + 8 * ramp ** (0.7 + 1.3 * depth))
        zigzag = (torch.arange(d_model) + 1) % 3 - 1
        self.bonus = nn.Parameter(torch.full((d_model,), 0.3).log() + 0.5 * zigzag)
        self.k_proj, self.v_proj, self.r_proj, self.out_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )

    def param_spec(self) -> dict[str, ParamSpec]:
        """Decays, bonus and mixes do not decay. No shapes, raises nothing."""
        return dict.fromkeys(("decay", "bonus", "mix_k", "mix_v", "mix_r"), ParamSpec(decay=False))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: shift, the last token; num and den; top, at its least; (b, d) each. Raises nothing."""
        zeros = {name: self._zeros(batch, self.d_model, device=device, dtype=dtype) for name in ("shift", "num", "den")}
        return {**zeros, "top": torch.full_like(zeros["num"], NOTHING)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """One pass over x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        before = state or self.init_state(x.shape[0] if ctx.rows is None else ctx.rows.count, device=x.device)
        past = previous(x, before["shift"], ctx)
        k, v, r = (
            proj(torch.lerp(past, x, mix.to(x.dtype)))
            for proj, mix in ((self.k_proj, self.mix_k), (self.v_proj, self.mix_v), (self.r_proj, self.mix_r))
        )
        with torch.autocast(x.device.type, enabled=False):
            k, v = at_least_float32(k), at_least_float32(v)
            if ctx.rows is None:
                wkv, new = self.average(k, v, before, torch.full_like(k[:, 0, 0], k.shape[1], dtype=torch.int64))
            else:
                padded, new = self.average(ctx.rows.to_padded(k), ctx.rows.to_padded(v), before, ctx.rows.lengths)
                wkv = ctx.rows.from_padded(padded)
        y = self.out_proj(torch.sigmoid(r) * wkv.to(x.dtype))
        return y, {"shift": last_token(x, before["shift"], ctx), **new}

    def average(self, k: Tokens, v: Tokens, before: State, lengths: Tensor) -> tuple[Tokens, State]:
        """wkv and what is left, from keys and values (r, l, d) of right-padded rows of `lengths`, (r,)."""
        w = at_least_float32(self.decay).exp()
        fade = torch.cat([torch.zeros_like(k[:, :1]), w.expand_as(k)], 1)
        start = [before[name].to(k.dtype)[:, None] for name in ("top", "num", "den")]
        steps = [torch.cat(pair, 1) for pair in zip(start, (k, v, torch.ones_like(v)), strict=True)]
        upto = associative_scan(joined, Average(fade, *steps))
        past = Average(*(t[:, :-1] for t in upto))
        now = Average(past.fade, at_least_float32(self.bonus) + k, v, torch.ones_like(v))
        both = joined(past, now._replace(fade=torch.zeros_like(k)))
        left = {
            name: getattr(upto, name).gather(1, lengths[:, None, None].expand(-1, 1, k.shape[-1]))[:, 0]
            for name in ("top", "num", "den")
        }
        return both.num / both.den, left


def joined(earlier: Average, later: Average) -> Average:
    """Two stretches as one, (b, l, d) each: the earlier fades, and the larger exponent is taken out. Raises nothing."""
    faded = earlier.top - later.fade
    top = torch.maximum(faded, later.top)
    old, new = (faded - top).exp(), (later.top - top).exp()
    return Average(
        earlier.fade + later.fade, top, earlier.num * old + later.num * new, earlier.den * old + later.den * new
    )
