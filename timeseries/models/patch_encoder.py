"""A bidirectional state-space stack over patches of each window, series independent.

    x = (past - mean) / std                     of each window's observed values (reversible normalisation)
    e = patches(x, observed) W_in               patches of `patch_length` steps every `stride`
    features = flatten(stack(e)) W_out          W_out starts at zero

Source: patches as in Nie et al. 2023, PatchTST; normalisation Kim et al. 2022, RevIN; a bidirectional Mamba on patches
Liang et al. 2024, Bi-Mamba+.

    r  windows of one series      t  context_length      p  patches      k  inputs      h  prediction_length
    e  width
"""

import torch
from torch import Tensor, nn

from ssmcore import Stack
from ssmcore.mixers import MixerSpec
from ssmcore.state import State

from ..config import PatchConfig
from .window import Hidden, Sizes, Window

SMALLEST_SCALE = 1e-3
"""Of the scale asked for by the caller; a window flatter than this is not blown up further."""


ROWS_AT_ONCE = 4096
"""Windows encoded together when there is no gradient to keep."""


class PatchEncoder(nn.Module):
    """Encode windows of `context_length` values.

    Args:
        sizes: What the windows bring, and the horizon.
        width: Features of every step to forecast.
        mixer: Sequence mixer that is run both ways; a bare name gets the `d_state` of the configuration.
        context_length: Steps a window holds.
        config: Sizes of the stack.
    Raises:
        ValueError: The patches do not fit the context.
    """

    def __init__(self, sizes: Sizes, width: int, mixer: MixerSpec, context_length: int, config: PatchConfig):
        super().__init__()
        if not 1 <= config.patch_length <= context_length or config.stride < 1:
            raise ValueError(
                f"PatchEncoder: patch_length={config.patch_length}, stride={config.stride}, expected "
                f"1 <= patch_length <= context_length={context_length} and stride >= 1"
            )
        self.context_length, self.config, self.width = context_length, config, width
        self.horizon = sizes.prediction_length
        patches = (context_length - config.patch_length) // config.stride + 1
        # The newest value must be in a patch, so what does not fit is cut off at the old end.
        self.used = (patches - 1) * config.stride + config.patch_length
        self.embed = nn.Linear((2 + sizes.inputs) * config.patch_length, config.d_model)
        inner = {"name": mixer, "d_state": config.d_state} if isinstance(mixer, str) else mixer
        self.stack = Stack(
            config.d_model,
            f"(M/glu)*{config.num_layers}",
            mixers={"M": {"name": "bidirectional", "mixer": inner}},
            dropout=config.dropout,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(patches * config.d_model, self.horizon * width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, window: Window) -> Hidden:
        """See Hidden. The window holds context_length + o - 1 steps, or fewer: what is not there is missing.

        Raises:
            ValueError: The steps are irregular, which a patch cannot tell.
        """
        if window.dt is not None:
            raise ValueError("PatchEncoder: takes no dt; irregular steps need the stream encoder")
        (b, c, _), o, length = window.target.shape, window.scale.shape[-1], self.context_length
        short = length + o - 1 - window.target.shape[-1]
        series = nn.functional.pad(window.target[..., -(length + o - 1) :], (max(short, 0), 0), value=torch.nan)
        series = series.unfold(-1, length, 1).reshape(b * c * o, length)
        inputs = nn.functional.pad(window.inputs[:, -(length + o - 1) :], (0, 0, max(short, 0), 0))
        inputs = inputs.unfold(1, length, 1)[:, None].expand(-1, c, -1, -1, -1).reshape(b * c * o, -1, length)
        least = 0.1 * window.scale.reshape(-1, 1)
        rows = len(series) if torch.is_grad_enabled() else ROWS_AT_ONCE
        pieces = zip(series.split(rows), inputs.split(rows), least.split(rows), strict=True)
        features, scale = (torch.cat(parts) for parts in zip(*(self.encode(*piece) for piece in pieces), strict=True))
        return Hidden(features=features.view(b, c, o, self.horizon, self.width), scale=scale.view(b, c, o))

    def read(self, window: Window) -> tuple[Hidden, State]:
        """`forward`, and what `step` goes on from: the latest values and inputs."""
        pad = self.context_length
        target = nn.functional.pad(window.target, (pad, 0), value=torch.nan)[..., -pad:]
        return self(window), {"target": target, "inputs": nn.functional.pad(window.inputs, (0, 0, pad, 0))[:, -pad:]}

    def step(
        self, value: Tensor, inputs: Tensor, scale: Tensor, state: State, dt: Tensor | None
    ) -> tuple[Hidden, State]:
        """Take in one value of every series and encode the window that it ends.

        Args:
            value: Less the first value, NaN where missing, shape (b, c).
            inputs: Shape (b, k).
            scale: Running scale, shape (b, c).
            state: From `read` or `step`; not changed.
            dt: Must be None.
        Raises:
            ValueError: dt is given.
        """
        if dt is not None:
            raise ValueError("PatchEncoder: takes no dt; irregular steps need the stream encoder")
        target = torch.cat([state["target"][..., 1:], value[..., None]], -1)
        past = torch.cat([state["inputs"][:, 1:], inputs[:, None]], 1)
        rows = past.transpose(1, 2).repeat_interleave(value.shape[1], 0)
        features, local = self.encode(target.flatten(0, 1), rows, 0.1 * scale.reshape(-1, 1))
        shape = (*value.shape, 1)
        hidden = Hidden(features=features.view(*shape, self.horizon, self.width), scale=local.view(shape))
        return hidden, {"target": target, "inputs": past}

    def encode(self, series: Tensor, inputs: Tensor | None, least: Tensor | float) -> tuple[Tensor, Tensor]:
        """The same for rows.

        Args:
            series: NaN where missing, shape (r, t).
            inputs: Shape (r, k, t); None without any.
            least: Smallest scale, shape (r, 1) or one number.
        Returns:
            Features, shape (r, h, e); scale, shape (r, 1).
        """
        observed = ~series.isnan()
        x, scale = normalise(series, observed, least)
        tokens = torch.stack([x, observed.to(x)], dim=1).to(self.head.weight.dtype)
        tokens = tokens if inputs is None else torch.cat([tokens, inputs.to(tokens)], 1)
        patches = tokens[..., -self.used :].unfold(-1, self.config.patch_length, self.config.stride)
        mixed, _ = self.stack(self.embed(patches.transpose(1, 2).flatten(2)))  # (r, p, d)
        return self.head(self.dropout(mixed.flatten(1))).view(len(series), self.horizon, -1), scale


def normalise(series: Tensor, observed: Tensor, least: Tensor | float) -> tuple[Tensor, Tensor]:
    """Zero mean and unit variance over the observed values; missing ones become 0, the mean.

    Args:
        series, observed: Shape (r, t).
        least: Smallest scale.
    Returns:
        Shapes (r, t) and (r, 1).
    """
    count = observed.sum(-1, keepdim=True).clamp_min(1)
    clean = torch.where(observed, series, 0.0)
    mean = clean.sum(-1, keepdim=True) / count
    centred = torch.where(observed, series - mean, 0.0)
    scale = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    scale = scale.clamp_min(least) if isinstance(least, float) else torch.maximum(scale, least)
    return centred / scale, scale
