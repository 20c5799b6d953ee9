"""Channel mixers of a dense hidden layer: the MLP and its gated forms.

A channel mixer is a Mixer whose tokens do not see each other: its state is empty, and it may stand anywhere in a
pattern.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from ssm_kernels.checks import check_choice
from torch import Tensor, nn

from ..array_types import Float, Tokens
from ..mixer import Context, Mixer
from ..state import State


class PositionWise(Mixer):
    """A mixer whose tokens do not see each other: everything but the channels passes through it untouched."""

    takes_dt = True  # no time passes between tokens that do not meet

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Empty. Raises nothing."""
        return {}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """The map of each token, (b, l, d) or packed. Raises nothing of its own."""
        return self.map_channels(x), {}

    def map_channels(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """One token at a time, any leading axes. Raises nothing of its own."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """Options of the MLP."""

    expand: float = 4.0
    """Hidden channels, in multiples of d_model."""
    bias: bool = True
    """Biases of both maps."""


class Mlp(PositionWise):
    """out_proj gelu(in_proj x), (b, l, d) to (b, l, d). Raises nothing of its own."""

    Config = MlpConfig
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: MlpConfig | None = None):
        super().__init__(d_model, config)
        hidden = int(self.config.expand * d_model)
        self.in_proj = nn.Linear(d_model, hidden, bias=self.config.bias)
        self.out_proj = nn.Linear(hidden, d_model, bias=self.config.bias)

    def map_channels(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Shape (..., d). Raises nothing of its own."""
        return self.out_proj(F.gelu(self.in_proj(x)))


ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": functools.partial(F.gelu, approximate="tanh")}
"""Of a gate, by name."""


@dataclass(frozen=True, kw_only=True)
class GluConfig:
    """Options of a gated linear unit."""

    expand: float = 8 / 3
    """Hidden channels, in multiples of d_model: 8/3 has the parameters of an MLP with 4."""
    bias: bool = False
    """Biases of both maps."""
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    """On the gate; gelu_tanh is the approximation that JAX models are trained with."""


@dataclass(frozen=True, kw_only=True)
class GegluConfig(GluConfig):
    """Options of the GELU-gated unit."""

    activation: Literal["silu", "gelu", "gelu_tanh"] = "gelu"
    """On the gate."""


class Glu(PositionWise):
    """out_proj(act(gate) value) with gate, value = in_proj x, (b, l, d) to (b, l, d). Raises nothing of its own.

    Source: Shazeer 2020, GLU variants improve Transformer.
    """

    Config = GluConfig
    residual_out = ("out_proj.weight",)

    def __init__(self, d_model: int, config: GluConfig | None = None):
        super().__init__(d_model, config)
        hidden = int(self.config.expand * d_model)
        self.in_proj = nn.Linear(d_model, 2 * hidden, bias=self.config.bias)
        self.out_proj = nn.Linear(hidden, d_model, bias=self.config.bias)
        check_choice(type(self).__name__, "activation", self.config.activation, tuple(ACTIVATIONS))
        self.activation = ACTIVATIONS[self.config.activation]

    def map_channels(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Shape (..., d). Raises nothing of its own."""
        gate, value = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(self.activation(gate) * value)


class Geglu(Glu):
    """A Glu with GELU on the gate, (b, l, d) to (b, l, d). Raises nothing of its own."""

    Config = GegluConfig
