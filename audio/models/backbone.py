"""SaShiMi's backbone: stages of residual layers at several rates, between pools that trade length for channels.

    tier 0   x ──────────── [stage] ─┬─ skip ──────────────────── + ─ stage ─ + ─ y        rate 1
                                   down                           up
    tier 1                           └─ [stage] ─┬─ skip ── + ─ stage ─ + ─┘               rate 1/p
                                               down         up
    centre                                       └── stage ─┘                              rate 1/p^2

A down-pool makes one token of p neighbours. An up-pool makes p tokens of one, handed out one pooled step late: the
group that a token belongs to is complete only after it. So the state between two calls holds the tokens that still wait
for their group (`pending`, fewer than p) and the up-pool's outputs that still wait for their token (`ready`, p less the
former), and any number of tokens goes on from any state: one step is not a case of its own.

A U-Net has stages on the way down too, and every branch on the way up is followed by a skip from the mirrored one.

    b  batch      l  tokens at this rate      n  groups      p  pooling factor      d, e  channels outside and inside
Source: Goel et al. 2022, It's raw! Audio generation with state-space models (SaShiMi), sec. 4.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from ssmcore import Stack
from ssmcore.array_types import Float, Tokens
from ssmcore.mixer import Context, Mixer
from ssmcore.mixers import MixerSpec
from ssmcore.state import State

from ..config import SaShiMiConfig


class DownPool(nn.Module):
    """p neighbouring tokens to one with more channels, (b, n * p, d) to (b, n, e). Raises nothing of its own."""

    def __init__(self, d: int, e: int, factor: int):
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(d * factor, e)

    def forward(self, x: Tokens) -> Tokens:
        """Pool, shape (b, n * p, d) to (b, n, e). Raises nothing of its own."""
        return self.linear(rearrange(x, "b (n p) d -> b n (d p)", p=self.factor))


class UpPool(nn.Module):
    """One token to p with fewer channels, (b, n, e) to (b, n * p, d). Raises nothing of its own."""

    def __init__(self, d: int, e: int, factor: int):
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(e, d * factor)

    def forward(self, x: Tokens) -> Tokens:
        """Expand, shape (b, n, e) to (b, n * p, d). Raises nothing of its own."""
        return rearrange(self.linear(x), "b n (d p) -> b (n p) d", p=self.factor)


class Stage(Stack):
    """A Stack that can tell what entered each of its branches, and add something after each, (b, l, d) to (b, l, d)."""

    def descend(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, list[Tokens], State]:
        """Way down: the output, what entered each branch, and the new state. Shapes (b, l, d); raises as the mixers."""
        entered: list[Tokens] = []
        y, new = self._each(x, state, ctx, lambda before, after: entered.append(before) or after)
        return y, entered, new

    def ascend(self, x: Tokens, skips: list[Tokens], state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """Way up: after each branch the last one left of `skips` is added. Shapes (b, l, d); raises as the mixers."""
        left = list(skips)
        return self._each(x, state, ctx, lambda before, after: after + left.pop())

    def _each(self, x: Tokens, state: State | None, ctx: Context, then) -> tuple[Tokens, State]:
        ctx = Context(ctx.rows, ctx.dt, dict(ctx.shared or {}), ctx.return_state)
        new: State = {}
        for i, layer in enumerate(self._layers()):
            new[str(i)] = {}
            for j, branch in enumerate(layer.each()):
                after, left = branch(x, None if state is None else state[str(i)][str(j)], ctx)
                x = then(x, after)
                if left is not None:
                    new[str(i)][str(j)] = left
        return x, new


class Tier(nn.Module):
    """One rate, and all slower ones inside it, (b, l, d) to (b, l, d).

    Args:
        config: Sizes.
        index: Which tier, 0 the outermost.
        mixers: What the names in the patterns stand for.
        causal: Hand pooled tokens out one step late, so that nothing sees its future.
    Raises:
        ValueError: A pattern, a name or an option is unknown.
        Unsupported: `causal`, and a mixer is not.
    """

    def __init__(self, config: SaShiMiConfig, index: int, mixers: dict[str, MixerSpec], causal: bool):
        super().__init__()
        self.width, self.causal = config.widths[index], causal

        def stage() -> Stage:
            pattern = config.pattern(index)
            used = {name: spec for name, spec in mixers.items() if name in pattern.replace("(", " ").replace(")", " ")
                    .replace("/", " ").split()}  # fmt: skip
            options = {"norm": config.norm, "final_norm": False, "dropout": config.dropout, "causal": causal}
            return Stage(self.width, pattern, mixers=used, **options)

        self.is_centre = index == len(config.pool)
        self.stage = stage()
        if self.is_centre:
            return
        inner = config.widths[index + 1]
        self.way_down = stage() if config.form == "unet" else None
        self.down = DownPool(self.width, inner, config.pool[index])
        self.inner = Tier(config, index + 1, mixers, causal)
        self.up = UpPool(self.width, inner, config.pool[index])

    def init_state(self, batch: int, like: Tensor) -> State:
        """Before any token; see the head of this file. `like` gives device and dtype. Raises nothing of its own."""
        state = {"stage": self.stage.init_state(batch, device=like.device)}
        if not self.is_centre:
            if self.way_down is not None:
                state["way_down"] = self.way_down.init_state(batch, device=like.device)
            state["pending"] = like.new_zeros(batch, 0, self.width)
            state["ready"] = like.new_zeros(batch, self.up.factor if self.causal else 0, self.width)
            state["inner"] = self.inner.init_state(batch, like)
        return state

    def forward(
        self, x: Tokens, state: State | None, ctx: Context, bias: list[Float[Tensor, "b 1 d"]]
    ) -> tuple[Tokens, State]:
        """Run the tier.

        Args:
            x: Tokens at this rate, shape (b, l, d).
            state: What an earlier call left; None starts anew.
            ctx: Goes to the mixers.
            bias: Added to the tokens that enter each tier, this one's first; empty for none.
        Returns:
            y, shape (b, l, d); and the new state, partly filled unless ctx.return_state.
        Raises:
            Unsupported: A mixer cannot do what ctx asks.
        """
        x = x + bias[0] if bias else x
        if self.is_centre:
            y, left = self.stage.mix(x, state and state["stage"], ctx)
            return x + y, {"stage": left}
        new: State = {}
        skips: list[Tokens] = []
        if self.way_down is not None:
            x, skips, new["way_down"] = self.way_down.descend(x, state and state["way_down"], ctx)
        slow, more = self._slower(x, state, ctx, bias[1:])
        merged = slow + x
        if self.way_down is not None:
            y, new["stage"] = self.stage.ascend(merged, skips, state and state["stage"], ctx)
        else:
            y, new["stage"] = self.stage.mix(merged, state and state["stage"], ctx)
            y = y + merged
        return y, {**new, **more}

    def _slower(self, x: Tokens, state: State | None, ctx: Context, bias: list[Tensor]) -> tuple[Tokens, State]:
        """What the slower tiers say to these tokens, (b, l, d), and the state of everything between the pools."""
        factor, length = self.down.factor, x.shape[1]
        if state is None:
            pending, ready, before = x, x.new_zeros(x.shape[0], factor if self.causal else 0, self.width), None
        else:
            pending, ready, before = torch.cat([state["pending"], x], 1), state["ready"], state["inner"]
        whole = pending.shape[1] // factor * factor
        if not self.causal and whole != pending.shape[1]:
            raise ValueError(f"Tier: {length} tokens, expected a multiple of {factor} where nothing is causal")
        if whole:
            y, inner = self.inner(self.down(pending[:, :whole]), before, ctx, bias)
            ready = torch.cat([ready, self.up(y).to(ready.dtype)], 1)
        else:
            inner = before if before is not None or not ctx.return_state else self.inner.init_state(x.shape[0], x)
        return ready[:, :length], {"pending": pending[:, whole:], "ready": ready[:, length:], "inner": inner}


def backbone(config: SaShiMiConfig, mixers: dict[str, MixerSpec] | None = None, causal: bool = True) -> Tier:
    """All tiers of a model, as its outermost one.

    Args:
        config: Sizes.
        mixers: What the names in the patterns stand for; None takes `config.mixers`.
        causal: See Tier.
    Returns:
        Maps tokens (b, l, d_model) to (b, l, d_model).
    Raises:
        ValueError: A pattern, a name or an option is unknown, or no tier uses a name of `mixers`.
    """
    return Tier(config, 0, dict(config.mixers if mixers is None else mixers), causal)


def cores(tier: Tier) -> list[Mixer]:
    """The mixers of all stages, outermost first. No shapes, raises nothing."""
    return [module for module in tier.modules() if isinstance(module, Mixer) and not isinstance(module, Stack)]
