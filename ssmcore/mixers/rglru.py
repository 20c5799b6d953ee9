"""RG-LRU, the recurrence of Hawk and Griffin: a real diagonal recurrence with gates on decay and input, in its block.

    u = conv(x_proj x);  r, i = sigmoid(gates u);  a = exp(-8 softplus(Λ) r)
    h[t] = a[t] h[t-1] + sqrt(1 - a[t]^2) i[t] u[t],   y = out_proj(gelu(y_proj x) * h)

The gates' maps are block-diagonal. sqrt(1 - a^2) keeps the state's variance; a sequence's first token has no state to
make room for, and counts whole.
Source: De et al. 2024, Griffin: mixing gated linear recurrences with local attention, sec. 2.3-2.4.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..functional import at_least_float32, linear_recurrence
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..steps import inverse_softplus
from .short_conv import ShortConv


@dataclass(frozen=True, kw_only=True)
class RgLruConfig:
    """Options of the RG-LRU block."""

    expand: float = 4 / 3
    """Channels of the recurrence, in multiples of d_model."""
    num_heads: int | None = None
    """Blocks of the gates' maps, a divisor of the channels; None is about one for 128 of them."""
    d_conv: int = 4
    """Width of the short convolution, in tokens."""
    strength: float = 8.0
    """Factor on the exponent of the decay."""


class RgLru(Mixer):
    """The Hawk block, (b, l, d_model) to (b, l, d_model). State: h (b, d), conv (b, d_conv - 1, d), pos (b,).

    Raises:
        ValueError: The heads do not divide the channels.
    """

    title = "Gated linear recurrence of Hawk and Griffin"
    operator = "linear_recurrence"
    selective = True
    Config = RgLruConfig
    examples = ({}, {"expand": 1.5, "num_heads": 3, "d_conv": 2})
    residual_out = ("out_proj.weight", "out_proj.bias")

    def __init__(self, d_model: int, config: RgLruConfig | None = None):
        super().__init__(d_model, config)
        c: RgLruConfig = self.config
        self.d_inner = d = max(1, int(c.expand * d_model))
        h = c.num_heads or max(h for h in range(1, max(1, d // 128) + 1) if d % h == 0)
        if d % h:
            raise ValueError(f"RgLru: {h} heads do not divide {d} channels")
        self.y_proj, self.x_proj = nn.Linear(d_model, d), nn.Linear(d_model, d)
        self.conv = ShortConv(d, c.d_conv, activation=None)
        nn.init.normal_(self.conv.weight, std=math.sqrt(0.01 / c.d_conv))
        width = d // h
        self.gates = nn.Parameter(torch.randn(2, h, width, width) / math.sqrt(width))
        self.gates_bias = nn.Parameter(torch.zeros(2, d))
        squared = torch.empty(d).uniform_(0.9**2, 0.999**2)  # of the decay where r = 1 / strength
        self.Lambda = nn.Parameter(inverse_softplus(-0.5 * squared.log()))
        self.out_proj = nn.Linear(d, d_model)
        for linear in (self.y_proj, self.x_proj, self.out_proj):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        for biased in (self.y_proj, self.x_proj, self.out_proj, self.conv):
            if biased.bias is not None:
                nn.init.zeros_(biased.bias)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Λ does not decay. No shapes, raises nothing."""
        return dict.fromkeys(("Lambda", "gates_bias"), ParamSpec(decay=False))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: h (b, d); conv (b, d_conv - 1, d); pos (b,), the tokens seen. Raises nothing."""
        h = self._zeros(batch, self.d_inner, device=device, dtype=dtype)
        conv = self._zeros(batch, self.config.d_conv - 1, self.d_inner, device=device, dtype=dtype)
        return {"h": h, "conv": conv, "pos": torch.zeros(batch, dtype=torch.int64, device=h.device)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """One pass over x, (b, l, d_model) or packed; see Mixer.mix. Raises nothing of its own."""
        before = state or {}
        u, conv = self.conv(self.x_proj(x), before.get("conv"), ctx)
        first, seen = _starts(x, before.get("pos"), ctx)
        with torch.autocast(x.device.type, enabled=False):
            wide = at_least_float32(u)
            decay, drive = self.recurrence(wide, first)
            h, last = linear_recurrence(
                decay, drive, initial_state=before.get("h"), cu_seqlens=ctx.cu_seqlens, return_last_state=True
            )
        # JAX's gelu, which the published models were trained with.
        y = self.out_proj(F.gelu(self.y_proj(x), approximate="tanh") * h.to(x.dtype))
        return y, {"h": last, "conv": conv, "pos": seen}

    def recurrence(self, u: Tokens, first: Tensor) -> tuple[Tokens, Tokens]:
        """The decay a and what is added to the state, (b, l, d) each.

        Args:
            u: Inputs of the recurrence, float32 or wider, shape (b, l, d).
            first: True at the first token of a sequence, shape (b, l).
        """
        heads = u.unflatten(-1, (self.gates.shape[1], -1))
        maps = torch.einsum("blhi,ghij->gblhj", heads, at_least_float32(self.gates)).flatten(-2)
        r, i = (maps + at_least_float32(self.gates_bias)[:, None, None]).sigmoid()
        log_a = -self.config.strength * F.softplus(at_least_float32(self.Lambda)) * r
        # Below this the root's gradient would be more than 1000.
        room = (-torch.expm1(2 * log_a)).clamp(min=2.5e-7).sqrt()
        return log_a.exp(), torch.where(first[..., None], 1, room) * i * u


def _starts(x: Tokens, pos: Float[Tensor, "r"] | None, ctx: Context) -> tuple[Tensor, Tensor]:
    """Which tokens are the first of their sequence, (b, l), and how many each item or row has seen in all."""
    if ctx.rows is None:
        time, length = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]), x.shape[1]
        pos = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device) if pos is None else pos
        return time + pos[:, None] == 0, pos + length
    pos = torch.zeros_like(ctx.rows.lengths) if pos is None else pos
    return (ctx.rows.time + pos[ctx.rows.row] == 0)[None], pos + ctx.rows.lengths
