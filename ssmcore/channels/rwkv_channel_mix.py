"""RWKV's channel mixer: a squared ReLU between two maps and a gate, on tokens mixed with those before them.

    k = k_proj(mix_k x[t] + (1 - mix_k) x[t-1]),  r likewise;   y = sigmoid(r) * v_proj(relu(k)^2)

Source: Peng et al. 2023, RWKV: reinventing RNNs for the transformer era, eq. 17-18.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..array_types import Tokens
from ..mixer import Context, Mixer, ParamSpec
from ..state import State
from ..token_shift import last_token, previous


@dataclass(frozen=True, kw_only=True)
class RwkvChannelMixConfig:
    """Options of RWKV's channel mixer."""

    expand: float = 4.0
    """Hidden channels, in multiples of d_model."""
    layer_index: int = 0
    """The layer's place in its stack, from 0; a Stack fills it in."""
    num_layers: int = 1
    """Layers of the stack."""


class RwkvChannelMix(Mixer):
    """The channel mixer of RWKV, (b, l, d) to (b, l, d). State: shift (b, d). Raises nothing of its own."""

    Config = RwkvChannelMixConfig
    residual_out = ("v_proj.weight",)

    def __init__(self, d_model: int, config: RwkvChannelMixConfig | None = None):
        super().__init__(d_model, config)
        c: RwkvChannelMixConfig = self.config
        hidden = int(c.expand * d_model)
        ramp = torch.arange(d_model) / d_model
        fade = 1 - c.layer_index / max(1, c.num_layers)
        self.mix_k, self.mix_r = nn.Parameter(ramp**fade), nn.Parameter(ramp**fade)
        self.k_proj = nn.Linear(d_model, hidden, bias=False)
        self.r_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(hidden, d_model, bias=False)

    def param_spec(self) -> dict[str, ParamSpec]:
        """The mixes do not decay. No shapes, raises nothing."""
        return dict.fromkeys(("mix_k", "mix_r"), ParamSpec(decay=False))

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: shift (b, d), the last token. Raises nothing."""
        return {"shift": self._zeros(batch, self.d_model, device=device, dtype=dtype)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State]:
        """One pass over x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        before = None if state is None else state["shift"]
        past = previous(x, before, ctx)
        k, r = (torch.lerp(past, x, mix.to(x.dtype)) for mix in (self.mix_k, self.mix_r))
        y = torch.sigmoid(self.r_proj(r)) * self.v_proj(F.relu(self.k_proj(k)).square())
        return y, {"shift": last_token(x, before, ctx)}
