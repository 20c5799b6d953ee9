"""Mamba along several routes: one pair of projections around a convolution and a selective scan for each route.

    u, z = in_proj x
    y = sum over routes r of (scan_r silu(conv_r u)) silu(z)          or their mean
    out = out_proj y

With the routes "raster" and "raster_reversed" it is the bidirectional block of Vision Mamba; with four routes, the
mixer of LocalVim. Convolutions look back along their own route.

Code to paper: as in selective.py; b batch, l length, d inner channels, n state size.
Source: Zhu et al. 2024, Vision Mamba, Alg. 1; Huang et al. 2024, LocalMamba, sec. 4.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from ssm_kernels.checks import check_choice
from torch import nn

from ..array_types import Tokens
from ..functional import causal_conv1d
from ..mixer import Context, Mixer, ParamSpec
from ..routes import Route
from ..selective import SelectiveScan
from ..state import State
from .short_conv import ShortConv


@dataclass(frozen=True, kw_only=True)
class RoutedMambaConfig:
    """Options of Mamba along routes."""

    routes: Sequence[str] = ("raster", "raster_reversed")
    """Token orders (`ssmcore.orders`), each possibly with "_reversed". All but raster need shared["grid"]."""
    combine: Literal["sum", "mean"] = "mean"
    """How the routes' outputs become one."""
    d_state: int = 16
    """State size of a channel, n."""
    d_conv: int = 4
    """Width of the short convolutions, in tokens."""
    expand: float = 2.0
    """Inner channels d, in multiples of d_model."""
    dt_rank: int | None = None
    """Rank of the map to the steps; None is d_model / 16, rounded up."""
    bias: bool = False
    """Biases of in_proj and out_proj."""
    conv_bias: bool = True
    """Bias of the short convolutions."""


class RoutedMamba(Mixer):
    """Mamba along routes, (b, l, d_model) to (b, l, d_model).

    Raises:
        ValueError: There is no route, an order or the way to combine is unknown, or d_model < 1.
    """

    title = "Mamba along routes through the tokens, as in Vim"
    operator = "selective_scan"
    selective = True
    Config = RoutedMambaConfig
    examples = ({}, {"routes": ("raster_reversed",), "combine": "sum", "d_state": 4, "d_conv": 2, "expand": 1.5})
    causal = recurrent = False
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: RoutedMambaConfig | None = None):
        super().__init__(d_model, config)
        c: RoutedMambaConfig = self.config
        if not c.routes:
            raise ValueError("RoutedMamba: routes is empty, expected at least one")
        check_choice("RoutedMamba", "combine", c.combine, get_args(Literal["sum", "mean"]))
        self.routes = tuple(map(Route.of, c.routes))
        self.d_inner = d = int(c.expand * d_model)
        dt_rank = math.ceil(d_model / 16) if c.dt_rank is None else c.dt_rank
        self.in_proj = nn.Linear(d_model, 2 * d, bias=c.bias)
        self.convs = nn.ModuleList(ShortConv(d, c.d_conv, bias=c.conv_bias) for _ in self.routes)
        self.scans = nn.ModuleList(SelectiveScan(d, dt_rank=dt_rank, d_state=c.d_state) for _ in self.routes)
        self.out_proj = nn.Linear(d, d_model, bias=c.bias)
        if any(route.needs_grid for route in self.routes):
            self.needs, self.takes_rows = frozenset({"grid"}), False

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles, skips and step biases do not decay. No shapes, raises nothing."""
        scans = [(i, scan) for i, scan in enumerate(self.scans) if isinstance(scan, SelectiveScan)]
        names = [f"scans.{i}.{name}" for i, scan in scans for name in scan.no_decay()]
        return {name: ParamSpec(decay=False) for name in names}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """All routes over x, (b, l, d_model) or packed; see Mixer.mix. Raises nothing of its own."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        grid = (ctx.shared or {}).get("grid")
        outputs = []
        for route, conv, scan in zip(self.routes, self.convs, self.scans, strict=True):
            assert isinstance(conv, ShortConv)
            v = causal_conv1d(
                route.gather(u, grid),
                conv.weight[:, 0],
                conv.bias,
                activation=conv.activation,
                cu_seqlens=ctx.cu_seqlens,
                reverse=route.reverse,
            )
            y = scan(v, z=route.gather(z, grid), reverse=route.reverse, cu_seqlens=ctx.cu_seqlens)
            outputs.append(route.scatter(y, grid))
        y = functools.reduce(torch.add, outputs)
        if self.config.combine == "mean":
            y = y.mul_(1 / len(outputs)) if len(outputs) > 1 else y
        return self.out_proj(y), None
