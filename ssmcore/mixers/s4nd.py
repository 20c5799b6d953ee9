"""S4ND: state-space convolutions over the axes of a grid, each by its own S4D kernel that looks both ways.

    y = mean over r of K_1r * (K_2r * x) + D x,   out = glu(out_proj gelu(y)), or y itself

The kernel over the grid is the outer product of those of the axes (a sum of `rank` products), so the axes are filtered
one after the other. Each axis has a kernel ahead and one back; the present counts once. As K comes from a continuous
system, a model runs on another resolution with another `rate`; `bandlimit` silences modes too fast for the grid.
Source: Nguyen et al. 2022, S4ND: modeling images and videos as multidimensional signals using state spaces, sec. 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..discretization import discretize_diagonal
from ..functional import at_least_float32, damped_modes, fft_conv
from ..hippo import s4d_poles
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..steps import log_uniform
from .dense_lti import complex_of


@dataclass(frozen=True, kw_only=True)
class S4NDConfig:
    """Options of S4ND."""

    d_state: int = 64
    """State size of a kernel, counted in real numbers, even."""
    axes: int = 2
    """Axes of the grid."""
    rank: int = 1
    """Outer products that make up the kernel."""
    init: str = "lin"
    """The initial poles: "lin", "inv" or "legs"."""
    dt_min: float = 1e-3
    """Smallest initial step."""
    dt_max: float = 0.1
    """Largest initial step."""
    rate: float = 1.0
    """Length of a token, in tokens of the training data: 2 on a grid of half the resolution."""
    channels: int = 1
    """Kernels of each input channel; the output map reads what all of them make."""
    tied: bool = False
    """One set of poles an axis, for all channels and both ways; each keeps its own step and C."""
    map_out: bool = True
    """Whether a gated map of the channels follows; without, the layer is a linear filter, as a convolution is."""
    bandlimit: float | None = None
    """Highest frequency of a mode, in multiples of the grid's own highest; None keeps all."""
    grid: Sequence[int] | None = None
    """Tokens along each axis; None reads shared["grid"] at each call, so that the size may change. With a single axis
    None is the sequence itself."""
    lr_scale: float = 0.1
    """Factor on the learning rate of poles and steps, which do not decay."""

    def __post_init__(self):
        if self.axes < 1 or self.rank < 1 or self.init == "real" or (self.grid and len(self.grid) != self.axes):
            raise ValueError(
                f"S4NDConfig: axes={self.axes}, rank={self.rank}, init={self.init!r}, grid={self.grid}, expected at "
                "least one axis and product, complex poles, and a size for each axis"
            )
        if self.channels < 1 or (self.channels > 1 and not self.map_out):
            raise ValueError(f"S4NDConfig: channels={self.channels}, expected at least 1, and 1 without an output map")


class S4ND(Mixer):
    """The S4ND layer on a grid's tokens in row-major order, (b, i j .., d) to (b, i j .., d). It has no state.

    Raises:
        ValueError: d_state is odd, or the init is unknown.
    """

    title = "S4D over the axes of a grid, both ways"
    operator = "fft_conv"
    Config = S4NDConfig
    examples = (
        {"d_state": 4},
        {"d_state": 6, "rank": 2, "init": "inv", "bandlimit": 1.0},
        {"d_state": 4, "channels": 2, "tied": True},
        {"d_state": 4, "map_out": False},
    )
    causal = recurrent = takes_rows = False

    def __init__(self, d_model: int, config: S4NDConfig | None = None):
        super().__init__(d_model, config)
        c: S4NDConfig = self.config
        if c.grid is None and c.axes > 1:
            self.needs = frozenset({"grid"})
        poles = s4d_poles(c.init, c.d_state)
        shape = (c.axes, 2, c.rank, c.channels * d_model)  # for each axis: ahead and back
        own = (c.axes, 1, 1, 1) if c.tied else shape
        self.log_dt = nn.Parameter(log_uniform(math.prod(shape), c.dt_min, c.dt_max).log().view(shape))
        self.A_log = nn.Parameter((-poles.real).log().float().expand(*own, -1).clone())
        self.A_imag = nn.Parameter(poles.imag.float().expand(*own, -1).clone())
        self.C = nn.Parameter(torch.randn(*shape, len(poles), 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(shape[-1]))
        self.out_proj = nn.Linear(shape[-1], 2 * d_model) if c.map_out else None

    def param_spec(self) -> dict[str, ParamSpec]:
        """Poles and steps learn slowly; they and the skip do not decay. No shapes, raises nothing."""
        slow = dict.fromkeys(("log_dt", "A_log", "A_imag"), ParamSpec(decay=False, lr_scale=self.config.lr_scale))
        return {**slow, "D": ParamSpec(decay=False)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """Filter and map x, (b, i j .., d); see Mixer.mix.

        Raises:
            ValueError: The grid does not have l tokens.
        """
        alone = (x.shape[1],) if self.config.axes == 1 else None
        grid = tuple(self.config.grid or alone or (ctx.shared or {})["grid"])
        if len(grid) != self.config.axes or math.prod(grid) != x.shape[1]:
            raise ValueError(f"S4ND: x has {x.shape[1]} tokens, expected those of {self.config.axes} axes, {grid}")
        y = self.core(x.repeat(1, 1, self.config.channels), grid)
        return (y if self.out_proj is None else F.glu(self.out_proj(F.gelu(y)), dim=-1)), None

    def core(self, x: Tokens, grid: Sequence[int]) -> Tokens:
        """The linear map over a grid, shape (b, i j .., channels d). Raises nothing."""
        with torch.autocast(x.device.type, enabled=False):
            u = at_least_float32(x).unflatten(1, tuple(grid))
            total = torch.zeros_like(u)
            for r in range(self.config.rank):
                filtered = u
                for axis, length in enumerate(grid):
                    ahead, back = (self.kernel(axis, way, r, length) for way in range(2))
                    lines = filtered.movedim(1 + axis, -2)
                    done = fft_conv(lines.flatten(0, -3), ahead, kernel_back=back, back_lag=1)
                    filtered = done.view(lines.shape).movedim(-2, 1 + axis)
                total = total + filtered
            y = total / self.config.rank + at_least_float32(self.D) * u
        return y.flatten(1, -2).to(x.dtype)

    def kernel(self, axis: int, way: int, r: int, length: int) -> Float[Tensor, "l d"]:
        """Taps along one axis, ahead (0) or back (1), of one product r, shape (l, channels d), in float32 or wider.

        Raises:
            IndexError: No such axis, way or product.
        """
        place = (axis, 0, 0) if self.config.tied else (axis, way, r)
        real, imag = -at_least_float32(self.A_log[place]).exp(), at_least_float32(self.A_imag[place])
        A, C = torch.complex(real, imag), complex_of(self.C[axis, way, r])
        dt = at_least_float32(self.log_dt[axis, way, r]).exp()[:, None] * self.config.rate
        if self.config.bandlimit is not None:  # cycles a token of each mode; half a cycle is the highest
            C = torch.where(dt * imag.abs() / (2 * math.pi) < self.config.bandlimit / 2, C, 0)
        weight = discretize_diagonal(A, torch.ones_like(A), dt, "zoh")[1]
        return 2 * damped_modes(C * weight, dt * A, length).real
