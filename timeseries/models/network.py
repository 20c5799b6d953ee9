"""A forecaster: the linear base, an encoder that looks for what it left over, and a head; new, it is the linear base.

features = encoder(window) + per-step constants + known future + static numbers + categories
forecast = head(base, features)

b  items      c  channels      o  origins      h  prediction_length      e  width
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from .linear_base import LinearBase
from .window import Hidden, Sizes, Window

FAR = 1e4
"""Scales; what is further off says that the scale was not known yet (after a first value of 0), and is not learnt."""


class StepFeatures(nn.Module):
    """What does not depend on the past: features of each step to forecast, (b, o, h, e); all start at zero.

    Args:
        sizes: What the windows bring.
        width: e.
    """

    def __init__(self, sizes: Sizes, width: int):
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(sizes.prediction_length, width))
        self.known = nn.Linear(sizes.known, width, bias=False) if sizes.known else None
        self.static = nn.Linear(sizes.static, width, bias=False) if sizes.static else None
        # One row more: categories that training has not seen.
        self.categories = nn.ModuleList(nn.Embedding(count + 1, width) for count in sizes.cardinalities)
        for module in (self.known, self.static, *self.categories):
            if module is not None:
                nn.init.zeros_(module.weight)

    def forward(self, window: Window) -> Tensor:
        """Shape (b, o, h, e)."""
        b, o = window.known.shape[:2]
        features = self.steps.expand(b, o, -1, -1)
        if self.known is not None:
            features = features + self.known(window.known)
        if self.static is not None:
            features = features + self.static(window.static)[:, None, None]
        for column, table in zip(window.category.unbind(1), self.categories, strict=True):
            unknown = table.num_embeddings - 1
            index = torch.where((column >= 0) & (column < unknown), column, unknown)
            features = features + table(index)[:, None, None]
        return features


class Network(nn.Module):
    """Base, encoder and head in one module; its state dict is the whole forecaster.

    Args:
        base: The linear forecaster.
        encoder: From Window to Hidden, or None: then the base is all there is, but for the head's own features.
        head: See heads.py.
        sizes: What the windows bring.
    """

    def __init__(self, base: LinearBase, encoder: nn.Module | None, head: nn.Module, sizes: Sizes):
        super().__init__()
        self.base, self.encoder, self.head, self.sizes = base, encoder, head, sizes
        self.horizon = sizes.prediction_length
        # Without an encoder the closed form has said all about the median.
        self.closed_form = encoder is None and head.width == 1
        self.steps = None if self.closed_form else StepFeatures(sizes, head.width)

    def forward(self, window: Window) -> Hidden:
        """What the head needs, shapes in Hidden; raises as the encoder does."""
        if self.encoder is None:
            return self.hidden(window, None)
        return self.hidden(window, self.encoder(window))

    def hidden(self, window: Window, encoded: Hidden | None) -> Hidden:
        """Add what does not depend on the past."""
        if encoded is None:
            zeros = torch.zeros(*window.base.shape, self.head.width, device=window.base.device)
            encoded = Hidden(features=zeros, scale=window.scale)
        if self.steps is None:
            return encoded
        return replace(encoded, features=encoded.features + self.steps(window)[:, None])

    def known_effect(self, known: Tensor, scale: Tensor, local: Tensor) -> Tensor:
        """What known-future covariates add to a point forecast.

        Args:
            known: The covariates, shape (b, ..., q).
            scale: Running scale, shape (b, c, ...) or with axes of 1.
            local: The encoder's scale, likewise.
        Returns:
            Shape (b, c, ...).
        """
        if not self.sizes.known:
            return torch.zeros_like(scale)
        effect = self.base.known_effect(known, scale)
        if self.steps is None:
            return effect
        learned = self.steps.known.weight[0].to(known.device)
        return effect + local * (known.to(learned) @ learned)[:, None]

    def loss(self, window: Window, future: Tensor) -> Tensor:
        """Training loss; future is (b, c, o, h), less the first value, NaN where missing."""
        far = (future - window.base).abs() > FAR * window.scale[..., None]
        return self.head.loss(window, self(window), future.masked_fill(far, torch.nan))
