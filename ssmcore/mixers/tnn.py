"""TNN, Toeplitz neural network: a gated unit whose tokens are mixed by a Toeplitz matrix that a network makes.

    y = out_proj(silu(u_proj x) * T silu(v_proj x)),   T[i, j] = decay^|i - j| rpe(i - j)

rpe is a small network of the signed distance, so parameters do not grow with the length and any length can be run.
Source: Qin et al. 2023, Toeplitz neural network for sequence modeling, sec. 3.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..blocks import RMSNorm
from ..functional import at_least_float32, fft_conv
from ..mixer import Context, Mixer
from ..state import State


@dataclass(frozen=True, kw_only=True)
class TnnConfig:
    """Options of the Toeplitz mixer."""

    expand: float = 3.0
    """Inner channels, in multiples of d_model."""
    decay: float = 0.99
    """Factor on a weight for each token of distance, in [0, 1]."""
    rpe_width: int = 64
    """Hidden units of the network of the distance."""
    rpe_layers: int = 3
    """Its hidden layers."""
    causal: bool = True
    """Whether only the past is seen."""

    def __post_init__(self):
        if not 0 <= self.decay <= 1 or self.rpe_layers < 1:
            raise ValueError(
                f"TnnConfig: decay={self.decay}, rpe_layers={self.rpe_layers}, expected in [0, 1] and >= 1"
            )


class Tnn(Mixer):
    """The gated Toeplitz unit, (b, l, d_model) to (b, l, d_model). It has no state. Raises nothing of its own."""

    title = "Toeplitz matrix made by a network, in a gated unit"
    operator = "fft_conv"
    Config = TnnConfig
    examples = ({"rpe_width": 8}, {"rpe_width": 8, "expand": 1.5, "causal": False})
    recurrent = False
    residual_out = ("out_proj.weight", "out_proj.bias")

    def __init__(self, d_model: int, config: TnnConfig | None = None):
        super().__init__(d_model, config)
        c: TnnConfig = self.config
        self.causal = c.causal
        d, w = int(c.expand * d_model), c.rpe_width
        self.u_proj, self.v_proj, self.out_proj = nn.Linear(d_model, d), nn.Linear(d_model, d), nn.Linear(d, d_model)
        layers: list[nn.Module] = [nn.Linear(1, w)]
        for i in range(c.rpe_layers):
            layers += [RMSNorm(w), nn.ReLU(), nn.Linear(w, d if i == c.rpe_layers - 1 else w)]
        self.rpe = nn.Sequential(*layers)

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, None]:
        """Gate and Toeplitz product on x, (b, l, d_model) or packed; see Mixer.mix. Raises nothing of its own."""
        u, v = F.silu(self.u_proj(x)), F.silu(self.v_proj(x))
        longest = x.shape[1] if ctx.rows is None else int(ctx.rows.lengths.max())
        with torch.autocast(x.device.type, enabled=False):
            distance = torch.arange(longest, device=x.device)
            ahead = None if self.causal or longest < 2 else self.weights(-distance[1:])
            mixed = fft_conv(v, self.weights(distance), kernel_back=ahead, back_lag=1, cu_seqlens=ctx.cu_seqlens)
        return self.out_proj(u * mixed), None

    def weights(self, distance: Float[Tensor, "k"]) -> Float[Tensor, "k d"]:
        """decay^|i - j| rpe(i - j) at signed distances, shape (k,) to (k, d). Raises nothing."""
        dtype = next(self.rpe.parameters()).dtype
        away = distance.to(dtype)[:, None]
        return at_least_float32(self.rpe(away)) * self.config.decay ** at_least_float32(away).abs()
