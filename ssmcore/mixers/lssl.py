"""LSSL, the linear state-space layer that S4 made fast: a dense HiPPO matrix, sampled by a bilinear transform.

    h' = A h + B u,  y_m = C_m . h + D_m u for m outputs a channel,   out = out_proj gelu(y)

Its kernel is computed by powers of the sampled matrix (Krylov, by doubling), with memory and time that S4 avoids: for
small states, and as the oracle of S4's kernel.
Source: Gu et al. 2021, Combining recurrent, convolutional, and continuous-time models with linear state-space layers.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Tokens
from ..discretization import GeneralizedBilinear, discretize_dense
from ..functional import at_least_float32
from ..hippo import hippo
from ..mixer import Context, ParamSpec
from ..state import State
from ..steps import log_uniform
from .channel_lti import ChannelLti, Discrete


@dataclass(frozen=True, kw_only=True)
class LsslConfig:
    """Options of the LSSL."""

    d_state: int = 64
    """State size of a channel, n."""
    measure: Literal["legs", "legt", "lagt", "fout"] = "legs"
    """The initial HiPPO system."""
    outputs: int = 1
    """Outputs m of each channel."""
    learn: bool = False
    """Train A and B; without, only C, D and the steps."""
    alpha: float = 0.5
    """How much of a sampling step is implicit, in [0, 1]: 1/2 is the bilinear rule."""
    dt_min: float = 1e-3
    """Smallest initial step."""
    dt_max: float = 0.1
    """Largest initial step."""
    lr_scale: float = 0.1
    """Factor on the learning rate of A, B and the steps, which do not decay."""


class Lssl(ChannelLti):
    """The LSSL, (b, l, d) to (b, l, d). State: ssm (b, d m, n), real; the m outputs of a channel each keep a copy.

    Raises:
        ValueError: The measure is unknown, or d_state does not fit it.
    """

    title = "State space a channel, dense HiPPO matrix"
    operator = "fft_conv"
    Config = LsslConfig
    A: Tensor
    B: Tensor
    examples = ({"d_state": 6}, {"d_state": 4, "outputs": 2, "learn": True, "measure": "fout", "alpha": 1.0})

    def __init__(self, d_model: int, config: LsslConfig | None = None):
        super().__init__(d_model, config)
        c: LsslConfig = self.config
        self.d_state, self.channels = c.d_state, d_model * c.outputs
        self.lti = c.outputs == 1
        A, B = hippo(c.measure, c.d_state)
        for name, t in (("A", A.float()), ("B", B.float())):
            if c.learn:
                self.register_parameter(name, nn.Parameter(t))
            else:
                self.register_buffer(name, t)
        self.log_dt = nn.Parameter(log_uniform(d_model, c.dt_min, c.dt_max).log())
        self.C = nn.Parameter(torch.randn(self.channels, c.d_state))
        self.D = nn.Parameter(torch.randn(self.channels))
        self.out_proj = nn.Linear(self.channels, d_model)

    def param_spec(self) -> dict[str, ParamSpec]:
        """The system and its steps learn slowly and do not decay. No shapes, raises nothing."""
        names = ("log_dt", *(("A", "B") if self.config.learn else ()))
        return dict.fromkeys(names, ParamSpec(decay=False, lr_scale=self.config.lr_scale))

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """Core and output map on x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        return super().mix(x.repeat_interleave(self.config.outputs, -1), state, ctx)

    def activate(self, y: Tokens) -> Tokens:
        """out_proj gelu(y), shape (b, l, d m) to (b, l, d). Raises nothing."""
        return self.out_proj(F.gelu(y))

    def discrete(self) -> Discrete:
        """Sampled in double precision, as A is far from normal; see ChannelLti."""
        dt = at_least_float32(self.log_dt).exp()
        rule = GeneralizedBilinear(self.config.alpha)
        A, B = discretize_dense(self.A.double(), self.B.double()[:, None], dt.double(), rule)
        C = at_least_float32(self.C)
        A, B = (t.to(C.dtype).repeat_interleave(self.config.outputs, 0) for t in (A, B[..., 0]))
        return Discrete(A, B, C)
