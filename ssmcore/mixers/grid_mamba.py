"""Mamba on a grid: one 2-D convolution, then selective scans along several routes that each have their own weights.

    u, z = in_proj x;   u = silu(conv2d u)
    y = sum over routes r of scan_r u
    out = out_proj(norm(y) silu(z))          without silu(z) where there is no gate

With the four routes row by row, column by column and both reversed it is the SS2D block of VMamba; with windows among
them, LocalVMamba's.

Code to paper: as in selective.py; b batch, l = i j tokens of a grid of i rows and j columns, d inner channels.
Source: Liu et al. 2024, VMamba, sec. 4.2 and 4.3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from ..array_types import Tokens
from ..blocks import LayerNorm
from ..mixer import Context, Mixer, ParamSpec
from ..routes import Route, route_tables
from ..selective import SelectiveScan, scan_routes
from ..state import State


@dataclass(frozen=True, kw_only=True)
class GridMambaConfig:
    """Options of Mamba on a grid."""

    routes: Sequence[str] = ("raster", "column", "raster_reversed", "column_reversed")
    """Token orders (`ssmcore.orders`), each possibly with "_reversed"."""
    d_state: int = 16
    """State size of a channel, n."""
    d_conv: int = 3
    """Side of the 2-D convolution, in tokens; odd."""
    expand: float = 2.0
    """Inner channels d, in multiples of d_model."""
    dt_rank: int | None = None
    """Rank of the map to the steps; None is d_model / 16, rounded up."""
    gate: bool = True
    """Multiply by silu(z)."""
    conv_bias: bool = True
    """Bias of the convolution."""
    grid: Sequence[int] | None = None
    """Rows and columns; None reads shared["grid"] at each call, so that the size may change."""

    def __post_init__(self):
        if not self.routes:
            raise ValueError("GridMambaConfig: routes is empty, expected at least one")
        if self.d_conv < 1 or self.d_conv % 2 == 0:
            raise ValueError(f"GridMambaConfig: d_conv={self.d_conv}, expected an odd side")


class GridMamba(Mixer):
    """Mamba on a grid of tokens, (b, i j, d_model) to (b, i j, d_model).

    Raises:
        ValueError: There is no route, an order is unknown, d_conv is even, or d_model < 1.
    """

    title = "Mamba along routes over a grid, as in VMamba"
    operator = "selective_scan"
    selective = True
    Config = GridMambaConfig
    examples = ({"d_state": 4}, {"d_state": 4, "gate": False, "routes": ("snake",)})
    causal = recurrent = takes_rows = False
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: GridMambaConfig | None = None):
        super().__init__(d_model, config)
        c: GridMambaConfig = self.config
        self.routes = tuple(map(Route.of, c.routes))
        self.d_inner = d = int(c.expand * d_model)
        dt_rank = math.ceil(d_model / 16) if c.dt_rank is None else c.dt_rank
        self.in_proj = nn.Linear(d_model, 2 * d if c.gate else d, bias=False)
        self.conv2d = nn.Conv2d(d, d, c.d_conv, padding=c.d_conv // 2, groups=d, bias=c.conv_bias)
        self.scans = nn.ModuleList(SelectiveScan(d, dt_rank=dt_rank, d_state=c.d_state) for _ in self.routes)
        self.out_norm = LayerNorm(d)
        self.out_proj = nn.Linear(d, d_model, bias=False)
        self.needs = frozenset() if c.grid else frozenset({"grid"})

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles, skips and step biases do not decay. No shapes, raises nothing."""
        scans = [(i, scan) for i, scan in enumerate(self.scans) if isinstance(scan, SelectiveScan)]
        names = [f"scans.{i}.{name}" for i, scan in scans for name in scan.no_decay()]
        return {name: ParamSpec(decay=False) for name in names}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """All routes over x, (b, l, d_model); see Mixer.mix.

        Raises:
            ValueError: The grid does not have l tokens.
        """
        i, j = grid = tuple(self.config.grid or (ctx.shared or {})["grid"])
        if i * j != x.shape[1]:
            raise ValueError(f"GridMamba: x has {x.shape[1]} tokens, expected i * j = {i} * {j}")
        u = self.in_proj(x)
        u, z = u.chunk(2, dim=-1) if self.config.gate else (u, None)
        u = F.silu(self.conv2d(u.unflatten(1, grid).permute(0, 3, 1, 2))).permute(0, 2, 3, 1).flatten(1, 2)
        y = self.out_norm(self.along_routes(u, grid)).to(u.dtype)
        return self.out_proj(y if z is None else y * F.silu(z)), None

    def along_routes(self, u: Tokens, grid: tuple[int, int]) -> Tokens:
        """The sum of the routes' outputs, shape of u, (b, l, d). Raises nothing."""
        return scan_routes(self.scans, u, route_tables(u, self.routes, grid))
