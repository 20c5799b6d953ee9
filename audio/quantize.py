"""Waveforms as levels and back: the mu-law of telephones, and even steps.

Mu-law is torchaudio's, encoder and decoder: levels are evenly spread on a logarithmic scale, and each decodes to the
centre of its cell there. Linear cells have even width and decode to their centres, so the error is at most half a cell.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmcore.array_types import Float, Int

from .config import QuantizerKind


@dataclass(frozen=True)
class Quantizer:
    """Between float waveforms in [-1, 1] and int64 levels.

    Raises:
        ValueError: kind is unknown, or bits not in 1..16.
    """

    kind: QuantizerKind = "mu-law"
    """The spacing of the levels."""
    bits: int = 8
    """log2 of their number."""

    def __post_init__(self):
        if self.kind not in ("mu-law", "linear") or not 1 <= self.bits <= 16:
            raise ValueError(
                f"Quantizer: kind={self.kind!r}, bits={self.bits}, expected 'mu-law' or 'linear' and 1 to 16 bits"
            )

    @property
    def levels(self) -> int:
        """Number of levels."""
        return 2**self.bits

    @property
    def zero(self) -> int:
        """The level of silence, which also stands before the first sample of a clip."""
        return self.levels // 2

    def encode(self, wave: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Samples to levels; what lies outside [-1, 1] is clipped.

        Args:
            wave: Samples, any shape.
        Returns:
            Levels 0 .. levels - 1, int64, shape of wave.
        Raises:
            ValueError: A sample is NaN.
        Source: ITU-T G.711 for the law; its levels as torchaudio.functional.mu_law_encoding.
        """
        if wave.isnan().any():
            raise ValueError("Quantizer.encode: wave holds NaN, expected samples in [-1, 1]")
        wave = wave.clamp(-1, 1)
        if self.kind == "linear":
            return ((wave + 1) / 2 * self.levels).long().clamp(max=self.levels - 1)
        mu = torch.tensor(self.levels - 1.0, dtype=wave.dtype, device=wave.device)
        squeezed = wave.sign() * (mu * wave.abs()).log1p() / mu.log1p()
        return ((squeezed + 1) / 2 * mu + 0.5).long()

    def decode(self, level: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Levels to the centres of their cells.

        Args:
            level: 0 .. levels - 1, any shape.
        Returns:
            Samples, float32, shape of level.
        Raises:
            ValueError: A level lies outside.
        """
        if level.numel() and not 0 <= int(level.min()) <= int(level.max()) < self.levels:
            came = f"{int(level.min())} to {int(level.max())}"
            raise ValueError(f"Quantizer.decode: levels from {came}, expected 0 to {self.levels - 1}")
        if self.kind == "linear":
            return (level + 0.5) / self.levels * 2 - 1
        mu = self.levels - 1.0
        squeezed = level / mu * 2 - 1
        return squeezed.sign() * torch.expm1(squeezed.abs() * math.log1p(mu)) / mu

    def table(self) -> Float[Tensor, "levels"]:
        """The sample that each level decodes to, shape (levels,), float32. Raises nothing."""
        return self.decode(torch.arange(self.levels))
