"""A bidirectional state-space stack on patches, added to LinearSSM; before training it is LinearSSM exactly.

    x = (past - mean) / std                     of each window's observed values (reversible normalisation)
    e = patches(x, observed) W_in               patches of `patch_length` steps every `stride`, series independent
    r = flatten(stack(e)) W_out                 W_out starts at zero
    y = LinearSSM(past) + std r

Source: patches as in Nie et al. 2023, PatchTST; normalisation Kim et al. 2022, RevIN; a bidirectional Mamba on patches
Liang et al. 2024, Bi-Mamba+. Adding it to a linear forecast that is already fitted is ours.

    b  windows      c  series      t  context_length      p  patches      d  d_model      h  prediction_length
"""

import torch
from torch import Tensor, nn

from ssmcore import Stack
from ssmcore.mixers import MixerSpec

from ..config import PatchConfig
from .linear_ssm import LinearSSM

SMALLEST_SCALE = 1e-3
"""Standard units; a window flatter than this is not blown up further."""


class PatchForecaster(nn.Module):
    """Forecast every series of a window from its own past.

    Args:
        linear: A fitted LinearSSM with a finite context; its read-out stays as it is.
        mixer: Name of the sequence mixer.
        config: Sizes.
    Raises:
        ValueError: `linear` has unlimited memory, or the patches do not fit the context.
    """

    def __init__(self, linear: LinearSSM, mixer: str, config: PatchConfig):
        super().__init__()
        length = linear.context_length
        if length is None:
            raise ValueError(
                "PatchForecaster: needs a finite context_length, such as 336; `free` is for linear_ssm only"
            )
        if not 1 <= config.patch_length <= length or config.stride < 1:
            raise ValueError(
                f"PatchForecaster: patch_length={config.patch_length}, stride={config.stride}, expected "
                f"1 <= patch_length <= context_length={length} and stride >= 1"
            )
        self.linear, self.config = linear, config
        patches = (length - config.patch_length) // config.stride + 1
        # The newest value must be in a patch, so what does not fit is cut off at the old end.
        self.used = (patches - 1) * config.stride + config.patch_length
        self.embed = nn.Linear(2 * config.patch_length, config.d_model)
        self.stack = Stack(
            config.d_model,
            f"(M/glu)*{config.num_layers}",
            mixers={"M": _bidirectional(mixer, config)},
            dropout=config.dropout,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(patches * config.d_model, linear.prediction_length)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, past: Tensor) -> Tensor:
        """Forecast what follows each window.

        Args:
            past: Values in standard units, NaN where missing, shape (b, c, t).
        Returns:
            dtype of the weights, shape (b, c, h).
        """
        b, c, t = past.shape
        series = past.reshape(b * c, t)
        with torch.no_grad():
            base = self.linear(series)
        observed = ~series.isnan()
        x, scale = _normalise(series, observed)
        x = torch.stack([x, observed.to(x)], dim=1)[..., -self.used :].to(self.head.weight.dtype)
        patches = x.unfold(-1, self.config.patch_length, self.config.stride)  # (bc, 2, p, patch_length)
        tokens, _ = self.stack(self.embed(patches.transpose(1, 2).flatten(2)))
        residual = self.head(self.dropout(tokens.flatten(1)))
        return (base + scale * residual).to(residual.dtype).view(b, c, -1)


def _normalise(series: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Zero mean and unit variance over the observed values; missing ones become 0, the mean."""
    count = observed.sum(-1, keepdim=True).clamp_min(1)
    clean = torch.where(observed, series, 0.0)
    mean = clean.sum(-1, keepdim=True) / count
    centred = torch.where(observed, series - mean, 0.0)
    scale = (centred.square().sum(-1, keepdim=True) / count).sqrt().clamp_min(SMALLEST_SCALE)
    return centred / scale, scale


def _bidirectional(mixer: str, config: PatchConfig) -> MixerSpec:
    return {"name": "bidirectional", "mixer": {"name": mixer, "d_state": config.d_state}}
