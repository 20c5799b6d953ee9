"""Mixers made of mixers: run one in both directions of time, or along several orders of a grid's tokens.

    create_mixer("bidirectional", 64, mixer="mamba", share=False, combine="sum")
    create_mixer("scan_order", 64, mixer={"name": "mamba", "d_state": 8}, orders=("raster", "column"), grid=(14, 14))

No mixer has a flag for direction; any mixer can be wrapped. The wrapped sums see tokens of the future: no state.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from ssm_kernels.checks import check_choice
from torch import nn

from .array_types import TimeSteps, Tokens
from .functional import Rows
from .mixer import Context, Mixer
from .routes import Route
from .state import State

Combine = Literal["sum", "mean", "concat"]
"""How several outputs become one; concat is followed by a linear map."""


@dataclass(frozen=True, kw_only=True)
class BidirectionalConfig:
    """Options of the two-way wrapper."""

    mixer: str | Mapping[str, Any] | Callable[[int], Mixer] = "mamba"
    """What is run both ways, as `build_mixer` takes it."""
    share: bool = False
    """One set of weights for both directions."""
    combine: Combine = "sum"
    """How the two outputs become one."""


@dataclass(frozen=True, kw_only=True)
class ScanOrderConfig:
    """Options of the scan along token orders."""

    mixer: str | Mapping[str, Any] | Callable[[int], Mixer] = "mamba"
    """What is run along each order, as `build_mixer` takes it."""
    orders: Sequence[str] = ("raster", "column", "raster_reversed", "column_reversed")
    """Names of routes: keys of `ssmcore.orders.ORDERS`, each possibly with "_reversed"."""
    share: bool = False
    """One set of weights for all orders."""
    combine: Combine = "sum"
    """How the outputs become one."""
    grid: Sequence[int] | None = None
    """Height and width in tokens; None reads shared["grid"] at each call, so that the size may change."""


class Combiner(nn.Module):
    """Several outputs (b, l, d) to one.

    Raises:
        ValueError: Unknown way to combine.
    """

    def __init__(self, how: Combine, count: int, d_model: int):
        super().__init__()
        check_choice("Combiner", "combine", how, get_args(Combine))
        self.how = how
        self.proj = nn.Linear(count * d_model, d_model, bias=False) if how == "concat" else None

    def forward(self, outputs: Sequence[Tokens]) -> Tokens:
        """Combine, shape (b, l, d). Raises nothing."""
        if self.proj is not None:
            return self.proj(torch.cat(list(outputs), -1))
        total = functools.reduce(torch.add, outputs)
        return total / len(outputs) if self.how == "mean" else total


class Wrapper(Mixer):
    """Copies of one mixer whose outputs are combined, (b, l, d) to (b, l, d). Raises nothing of its own."""

    causal = recurrent = False

    def _build(self, copies: int, outputs: int) -> None:
        from .mixers import build_mixer  # that module registers this one's classes

        self.mixers = nn.ModuleList(build_mixer(self.config.mixer, self.d_model) for _ in range(copies))
        self.combiner = Combiner(self.config.combine, outputs, self.d_model)
        inner = self._mixer(0)
        self.needs, self.takes_rows, self.takes_dt = inner.needs, inner.takes_rows, inner.takes_dt
        if self.combiner.proj is not None:
            self.residual_out = ("combiner.proj.weight",)
        else:
            self.residual_out = tuple(f"mixers.{i}.{name}" for i in range(copies) for name in inner.residual_out)

    def _mixer(self, i: int) -> Mixer:
        """The mixer of pass i; the only one where weights are shared."""
        mixer = self.mixers[min(i, len(self.mixers) - 1)]
        assert isinstance(mixer, Mixer)
        return mixer


class Bidirectional(Wrapper):
    """A mixer over the tokens and over the tokens reversed, (b, l, d) to (b, l, d).

    Raises:
        ValueError: The mixer is unknown, or the way to combine.
    """

    Config = BidirectionalConfig
    examples = ({}, {"mixer": {"name": "s4d", "d_state": 4}, "share": True, "combine": "concat"})

    def __init__(self, d_model: int, config: BidirectionalConfig | None = None):
        super().__init__(d_model, config)
        self._build(copies=1 if self.config.share else 2, outputs=2)

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """Both passes over x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        turned = Context(ctx.rows, None if ctx.dt is None else _reverse_steps(ctx.dt, ctx.rows), ctx.shared)
        ahead, back = self._mixer(0).mix_pair(self._mixer(1), x, _reverse(x, ctx.rows), ctx, turned)
        return self.combiner([ahead, _reverse(back, ctx.rows)]), None


class ScanOrder(Wrapper):
    """A mixer along several orders of the tokens of a grid, (b, h * w, d) to (b, h * w, d).

    Raises:
        ValueError: The mixer, an order or the way to combine is unknown, or there is no order.
    """

    Config = ScanOrderConfig
    examples = (
        {"orders": ("raster", "column")},
        {"mixer": {"name": "gru"}, "share": True, "combine": "mean", "orders": ("snake", "hilbert")},
    )

    def __init__(self, d_model: int, config: ScanOrderConfig | None = None):
        super().__init__(d_model, config)
        c: ScanOrderConfig = self.config
        if not c.orders:
            raise ValueError("ScanOrder: orders is empty, expected at least one")
        self.routes = tuple(map(Route.of, c.orders))
        self._build(copies=1 if c.share else len(self.routes), outputs=len(self.routes))
        # Tokens that do not exist, and time between tokens, have no place on a grid.
        self.takes_rows = self.takes_dt = False
        if c.grid is None:
            self.needs = self.needs | {"grid"}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """One pass an order over x, (b, l, d); see Mixer.mix.

        Raises:
            ValueError: The grid does not have l tokens.
        """
        h, w = grid = tuple(self.config.grid or (ctx.shared or {})["grid"])
        if h * w != x.shape[1]:
            raise ValueError(f"ScanOrder: x has {x.shape[1]} tokens, expected h * w = {h} * {w}")
        turned = [_turn(route.gather(x, grid), route) for route in self.routes]
        if len(self.mixers) == 1:  # all orders in one batch
            passes = self._mixer(0).mix(torch.cat(turned), None, ctx)[0].chunk(len(turned))
        else:
            passes = [self._mixer(i).mix(v, None, ctx)[0] for i, v in enumerate(turned)]
        outputs = [route.scatter(_turn(y, route), grid) for route, y in zip(self.routes, passes, strict=True)]
        return self.combiner(outputs), None


def _turn(x: Tokens, route: Route) -> Tokens:
    """The tokens of a route from its end, where it is reversed: a mixer runs forwards only."""
    return x.flip(1) if route.reverse else x


def _reverse(x: Tokens, rows: Rows | None) -> Tokens:
    return x.flip(1) if rows is None else rows.reverse(x)


def _reverse_steps(dt: TimeSteps, rows: Rows | None) -> TimeSteps:
    """The time from each token to its successor, read backwards. A row's first step, which leads in, stays first."""
    if rows is None:
        return dt.flip(1).roll(1, 1)
    starts = rows.cu_seqlens.to(dt.device)[rows.row]
    place = (rows.lengths[rows.row] - rows.time) % rows.lengths[rows.row]
    return dt[:, starts + place]
