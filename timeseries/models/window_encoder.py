"""Encoders that look at a finite window: cutting, normalisation and the ring of latest values around any network.

    x = (past - mean) / std                     of each channel's observed values in the window; a missing one is 0
    features = network(x, observed, inputs)
    forecast = mean + std features              where the network stands alone; a head decides elsewhere (window.py)

A network has three attributes, `context_length`, `horizon` and `head` (the linear map that its features come from),
and a method

    encode(x, observed, inputs)  (r, c, t), (r, c, t) and (r, k, t) to (r, c, h, e)

Source: normalisation Kim et al. 2022, RevIN, without its affine map.

    r  windows      c  channels      t  context_length      k  inputs      h  prediction_length      e  width
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from ssmcore.state import State

from .window import Hidden, Window

SMALLEST_SCALE = 1e-3
"""Of standard units; a window flatter than this is not blown up further."""
ROWS_AT_ONCE = 4096
"""Channels of windows that are encoded together when there is no gradient to keep."""


class WindowNetwork(Protocol):
    """What stands in the middle; see the head of this file."""

    context_length: int
    horizon: int

    @property
    def head(self) -> nn.Linear:
        """The last linear map: h e rows, or e where its input brings the steps."""
        ...

    def encode(self, x: Tensor, observed: Tensor, inputs: Tensor) -> Tensor:
        """(r, c, t), bool (r, c, t), (r, k, t) to (r, c, h, e)."""
        ...


class WindowEncoder(nn.Module):
    """A window network as an encoder of a forecaster: from Window to Hidden.

    Args:
        network: The network; `start_at_zero` makes it add nothing at first.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @property
    def context_length(self) -> int:
        """t."""
        return self.network.context_length

    @property
    def head(self) -> nn.Linear:
        """The linear map that the features come from."""
        return self.network.head

    def forward(self, window: Window) -> Hidden:
        """See Hidden. The window holds context_length + o - 1 steps, or fewer: what is not there is missing.

        Raises:
            ValueError: The steps are irregular, which a window network cannot tell.
        """
        _refuse(window.dt)
        (b, c, t), o, length = window.target.shape, window.scale.shape[-1], self.context_length
        short = max(length + o - 1 - t, 0)
        past = nn.functional.pad(window.target[..., -(length + o - 1) :], (short, 0), value=torch.nan)
        past = past.unfold(-1, length, 1).transpose(1, 2).flatten(0, 1)  # (b o, c, t)
        inputs = nn.functional.pad(window.inputs[:, -(length + o - 1) :], (0, 0, short, 0))
        inputs = inputs.unfold(1, length, 1).flatten(0, 1)  # (b o, k, t)
        least = 0.1 * window.scale.transpose(1, 2).reshape(b * o, c, 1)
        rows = len(past) if torch.is_grad_enabled() else max(1, ROWS_AT_ONCE // c)
        pieces = zip(past.split(rows), inputs.split(rows), least.split(rows), strict=True)
        features, scale = (torch.cat(parts) for parts in zip(*(self.encode(*piece) for piece in pieces), strict=True))
        return Hidden(
            features=features.unflatten(0, (b, o)).transpose(1, 2),
            scale=scale[..., 0].unflatten(0, (b, o)).transpose(1, 2),
        )

    def read(self, window: Window) -> tuple[Hidden, State]:
        """`forward`, and what `step` goes on from: the latest values and inputs."""
        pad = self.context_length
        target = nn.functional.pad(window.target, (pad, 0), value=torch.nan)[..., -pad:]
        return self(window), {"target": target, "inputs": nn.functional.pad(window.inputs, (0, 0, pad, 0))[:, -pad:]}

    def step(
        self, value: Tensor, inputs: Tensor, scale: Tensor, state: State, dt: Tensor | None
    ) -> tuple[Hidden, State]:
        """Take in one value of every channel and encode the window that it ends.

        Args:
            value: Less the first value, NaN where missing, shape (b, c).
            inputs: Shape (b, k).
            scale: Running scale, shape (b, c).
            state: From `read` or `step`; not changed.
            dt: Must be None.
        Raises:
            ValueError: dt is given.
        """
        _refuse(dt)
        target = torch.cat([state["target"][..., 1:], value[..., None]], -1)
        past = torch.cat([state["inputs"][:, 1:], inputs[:, None]], 1)
        features, local = self.encode(target, past.transpose(1, 2), 0.1 * scale[..., None])
        return Hidden(features=features[:, :, None], scale=local), {"target": target, "inputs": past}

    def encode(self, past: Tensor, inputs: Tensor, least: Tensor | float) -> tuple[Tensor, Tensor]:
        """The same for windows.

        Args:
            past: NaN where missing, shape (r, c, t).
            inputs: Shape (r, k, t).
            least: Smallest scale, shape (r, c, 1) or one number.
        Returns:
            Features, shape (r, c, h, e); scale, shape (r, c, 1).
        """
        x, observed, _, scale = normalise(past, least)
        weight = self.head.weight
        return self.network.encode(x.to(weight), observed, inputs.to(weight)), scale


def start_at_zero(network: nn.Module) -> nn.Module:
    """The same network, whose head gives zeros until it is trained; no shapes."""
    for parameter in (network.head.weight, network.head.bias):
        if parameter is not None:
            nn.init.zeros_(parameter)
    return network


def stand_alone(network: WindowNetwork, past: Tensor, inputs: Tensor | None = None) -> Tensor:
    """The forecast of a network of width 1 by itself.

    Args:
        network: Which.
        past: In any units, NaN where missing, shape (r, c, t).
        inputs: Covariates, shape (r, k, t); None without any.
    Returns:
        In the same units, shape (r, c, h).
    Raises:
        ValueError: past does not hold context_length steps.
    """
    if past.ndim != 3 or past.shape[-1] != network.context_length:
        raise ValueError(
            f"{type(network).__name__}: past has shape {tuple(past.shape)}, expected (windows, channels, "
            f"{network.context_length}), the context_length it was built for"
        )
    weight = network.head.weight
    x, observed, mean, scale = normalise(past, SMALLEST_SCALE)
    inputs = past.new_zeros(len(past), 0, past.shape[-1]) if inputs is None else inputs
    return mean + scale * network.encode(x.to(weight), observed, inputs.to(weight))[..., 0].to(past)


def normalise(past: Tensor, least: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Zero mean and unit variance over the observed values; missing ones become 0, the mean.

    Args:
        past: NaN where missing, shape (..., t).
        least: Smallest scale.
    Returns:
        The normalised window (..., t); what was observed (..., t); mean and scale, both (..., 1).
    """
    observed = ~past.isnan()
    count = observed.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(observed, past, 0.0).sum(-1, keepdim=True) / count
    centred = torch.where(observed, past - mean, 0.0)
    scale = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    scale = scale.clamp_min(least) if isinstance(least, float) else torch.maximum(scale, least)
    return centred / scale, observed, mean, scale


def check_sizes(name: str, **sizes: float) -> None:
    """Raise unless all are at least 1; no shapes.

    Raises:
        ValueError: One is not.
    """
    for size, value in sizes.items():
        if not value >= 1 or math.isinf(value):
            raise ValueError(f"{name}: {size}={value}, expected at least 1")


def _refuse(dt: Tensor | None) -> None:
    if dt is not None:
        raise ValueError("WindowEncoder: takes no dt; irregular steps need the stream encoder")
