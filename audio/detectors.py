"""What can go wrong in a generated clip: it drowns in noise, hits the ceiling, or copies a training clip."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FRAME = 256
CLIPPED_RUN = 3


@dataclass(frozen=True, kw_only=True)
class Runaway:
    """Where a clip turns into lasting loud noise."""

    start: int | None
    """First sample of it; None where it never comes."""
    share: float
    """Share of the frames that are loud noise."""


def runaway_noise(wave: Tensor, *, loudness: float = 0.25, flatness: float = 0.3, frames: int = 8) -> Runaway:
    """Find noise that does not stop: a model that has lost its way samples loud white noise to the end.

    A frame of 256 samples is loud noise when its root mean square is above `loudness` and the geometric mean of its
    power spectrum is above `flatness` of the arithmetic one (white noise: 0.56; voiced speech: below 0.05).

    Args:
        wave: float32, shape (t,), in [-1, 1].
        loudness: Least root mean square.
        flatness: Least spectral flatness.
        frames: How many such frames in a row count as lasting.
    """
    if len(wave) < FRAME:
        return Runaway(start=None, share=0.0)
    windows = wave.float().unfold(0, FRAME, FRAME)
    power = torch.fft.rfft(windows * torch.hann_window(FRAME)).abs().square()[:, 1:-1] + 1e-12
    flat = power.log().mean(1).exp() / power.mean(1)
    noisy = (windows.square().mean(1).sqrt() > loudness) & (flat > flatness)
    if len(noisy) < frames:
        return Runaway(start=None, share=float(noisy.float().mean()))
    lasting = noisy.float().unfold(0, frames, 1).sum(1) == frames
    where = lasting.nonzero()
    return Runaway(start=int(where[0]) * FRAME if len(where) else None, share=float(noisy.float().mean()))


def clipping(wave: Tensor, ceiling: float = 0.99) -> float:
    """Share of the samples that lie in runs of at least three at the ceiling, where a waveform was cut off.

    Args:
        wave: float32, shape (t,).
        ceiling: Level that counts as the ceiling.
    """
    at = (wave.abs() >= ceiling).int()
    if not at.any():
        return 0.0
    edges = torch.diff(torch.nn.functional.pad(at, (1, 1)))
    runs = (edges == -1).nonzero()[:, 0] - (edges == 1).nonzero()[:, 0]
    return float(runs[runs >= CLIPPED_RUN].sum() / len(wave))


def likeness(clip: Tensor, other: Tensor) -> float:
    """Largest correlation of a clip with a stretch of another one, at any shift: 1 is a copy, at any loudness.

    Args:
        clip: float32, shape (t,).
        other: float32, shape (u,).
    Returns:
        0 to 1: the correlation of the overlapping parts; overlaps shorter than half the shorter clip do not count.
    """
    t, u = len(clip), len(other)
    size = 1 << (t + u - 1).bit_length()
    spectra = torch.fft.rfft(clip.double(), size) * torch.fft.rfft(other.double(), size).conj()
    products = torch.fft.irfft(spectra, size).roll(u - 1)[: t + u - 1]  # shift -(u - 1) first
    shifts = torch.arange(-(u - 1), t)
    begin, end = shifts.clamp(min=0), (shifts + u).clamp(max=t)
    energy = torch.nn.functional.pad(clip.double().square().cumsum(0), (1, 0))
    other_energy = torch.nn.functional.pad(other.double().square().cumsum(0), (1, 0))
    mine = energy[end] - energy[begin]
    theirs = other_energy[end - shifts] - other_energy[begin - shifts]
    long = end - begin >= min(t, u) / 2
    scale = (mine * theirs).clamp_min(1e-12).sqrt()
    return float((products.abs() / scale)[long].max().clamp(max=1))


def nearest_clip(
    clip: Tensor, features: Tensor, waves: Sequence[Tensor], training_features: Tensor, candidates: int = 20
) -> tuple[int, float]:
    """The training clip that a clip is most like.

    Args:
        clip: float32, shape (t,).
        features: Of the clip, shape (d,).
        waves: Training clips, shape (u,) each.
        training_features: Shape (n, d); the nearest few are compared sample by sample.
        candidates: How many.
    Returns:
        Its index, and `likeness`.
    """
    distance = (training_features - features).square().sum(1)
    near = distance.topk(min(candidates, len(distance)), largest=False).indices.tolist()
    scores = [likeness(clip, waves[i]) for i in near]
    best = max(range(len(near)), key=scores.__getitem__)
    return near[best], scores[best]
