"""A window network added to LinearSSM, or alone: the models of `timeseries.train` that are trained by gradient.

    y = LinearSSM(past) + std network(past)        std and network: see window_encoder.py

Before training the sum is LinearSSM exactly. Adding a network to a linear forecast that is already fitted is ours;
alone it is the network as published, but for what its file says.

    b  windows      c  channels      t  context_length      k  inputs      h  prediction_length
"""

from typing import Any

import torch
from torch import Tensor, nn

from ssmcore.mixers import MixerSpec

from ..config import PatchConfig, SimbaConfig, SMambaConfig, TimeMachineConfig
from .linear_ssm import LinearSSM
from .patch_network import PatchNetwork
from .s_mamba import SMamba
from .simba import Simba
from .time_machine import TimeMachine
from .window import Sizes
from .window_encoder import SMALLEST_SCALE, WindowEncoder, stand_alone, start_at_zero

NETWORKS: dict[type, tuple[str, type[nn.Module]]] = {
    PatchConfig: ("patch", PatchNetwork),
    SMambaConfig: ("s_mamba", SMamba),
    TimeMachineConfig: ("time_machine", TimeMachine),
    SimbaConfig: ("simba", Simba),
}
"""Configuration -> its name on disk, and the network."""
MIXERS: dict[str, MixerSpec] = {
    "s4d": "s4d",
    "mamba": "mamba",
    "s_mamba": {"name": "mamba", "d_state": 2, "d_conv": 2, "expand": 1},
    "time_machine": {"name": "mamba", "d_state": 256, "d_conv": 2, "expand": 1},
    "simba": {"name": "mamba", "d_state": 16},
}
"""The sequence mixer of each model of `timeseries.train`, as published where there is a publication."""
WindowConfig = PatchConfig | SMambaConfig | TimeMachineConfig | SimbaConfig


def read_config(model: str, options: dict[str, Any]) -> WindowConfig:
    """The configuration of a model of `timeseries.train` from plain data; no shapes, raises as the class does.

    Args:
        model: Its name.
        options: The fields.
    """
    kinds = {name: kind for kind, (name, _) in NETWORKS.items()}
    return kinds.get(model, PatchConfig)(**options)


def build_network(config: WindowConfig, sizes: Sizes, width: int, mixer: MixerSpec, context_length: int) -> nn.Module:
    """The window network of a configuration; no shapes.

    Args:
        config: Which, and its sizes.
        sizes, width, mixer, context_length: As the networks' constructors have them.
    Raises:
        ValueError: As the constructor does.
    """
    return NETWORKS[type(config)][1](sizes, width, mixer, context_length, config)


class WindowForecaster(nn.Module):
    """Forecast the channels of a window, in standard units.

    Args:
        linear: A fitted LinearSSM with a finite context; its read-out stays as it is.
        mixer: Sequence mixer of the network.
        config: Which network, and its sizes.
        inputs: Covariates of every past step, k.
        alone: Whether the network stands by itself, and LinearSSM only says how long windows are.
    Raises:
        ValueError: `linear` has unlimited memory, or the sizes do not fit the context.
    """

    def __init__(self, linear: LinearSSM, mixer: MixerSpec, config: WindowConfig, inputs: int = 0, alone: bool = False):
        super().__init__()
        if linear.context_length is None:
            raise ValueError(
                "WindowForecaster: needs a finite context_length, such as 336; `free` is for linear_ssm only"
            )
        self.linear, self.config, self.alone = linear, config, alone
        sizes = Sizes(prediction_length=linear.prediction_length, inputs=inputs)
        network = build_network(config, sizes, 1, mixer, linear.context_length)
        self.encoder = WindowEncoder(network if alone else start_at_zero(network))

    @property
    def head(self) -> nn.Linear:
        """The last linear map of the network."""
        return self.encoder.head

    def forward(self, past: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Forecast what follows each window.

        Args:
            past: Values in standard units, NaN where missing, shape (b, c, t).
            inputs: Covariates, shape (b, k, t); None without any.
        Returns:
            dtype of the weights, shape (b, c, h).
        """
        if self.alone:
            return stand_alone(self.encoder.network, past, inputs).to(self.head.weight.dtype)
        with torch.no_grad():
            base = self.linear(past.flatten(0, 1)).view(*past.shape[:2], -1)
        inputs = past.new_zeros(len(past), 0, past.shape[-1]) if inputs is None else inputs
        features, scale = self.encoder.encode(past, inputs, SMALLEST_SCALE)
        return (base + scale * features[..., 0]).to(features.dtype)
