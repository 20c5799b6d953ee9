"""A bidirectional state-space stack on patches, added to LinearSSM; before training it is LinearSSM exactly.

    y = LinearSSM(past) + std encoder(past)        std and encoder: see patch_encoder.py

Adding it to a linear forecast that is already fitted is ours.

    b  windows      c  series      t  context_length      h  prediction_length
"""

import torch
from torch import Tensor, nn

from ..config import PatchConfig
from .linear_ssm import LinearSSM
from .patch_encoder import SMALLEST_SCALE, PatchEncoder
from .window import Sizes


class PatchForecaster(nn.Module):
    """Forecast every series of a window from its own past, in standard units.

    Args:
        linear: A fitted LinearSSM with a finite context; its read-out stays as it is.
        mixer: Name of the sequence mixer.
        config: Sizes.
    Raises:
        ValueError: `linear` has unlimited memory, or the patches do not fit the context.
    """

    def __init__(self, linear: LinearSSM, mixer: str, config: PatchConfig):
        super().__init__()
        if linear.context_length is None:
            raise ValueError(
                "PatchForecaster: needs a finite context_length, such as 336; `free` is for linear_ssm only"
            )
        self.linear, self.config = linear, config
        sizes = Sizes(prediction_length=linear.prediction_length)
        self.encoder = PatchEncoder(sizes, 1, mixer, linear.context_length, config)

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
        features, scale = self.encoder.encode(series, None, SMALLEST_SCALE)
        return (base + scale * features[..., 0]).to(features.dtype).view(b, c, -1)
