"""Mel spectrograms: numbers for the classifier and the metrics, and pictures to look at."""

import functools
import io
from pathlib import Path

import torch
from torch import Tensor

from .files import write_bytes

BANDS = 40
WINDOW_SECONDS, HOP_SECONDS = 0.032, 0.012
FLOOR = 1e-6


@functools.cache
def _transform(rate: int, bands: int):
    from torchaudio.transforms import MelSpectrogram

    window = round(WINDOW_SECONDS * rate)
    size = 1 << (window - 1).bit_length()
    # torchaudio warns where the lowest bands are narrower than a bin of the transform: as many as fit are kept.
    hop = round(HOP_SECONDS * rate)
    return MelSpectrogram(rate, n_fft=size, win_length=window, hop_length=hop, n_mels=bands, pad_mode="constant")


def log_mel(wave: Tensor, rate: int, bands: int = BANDS) -> Tensor:
    """Logarithm of the energy in mel bands.

    Args:
        wave: float32, shape (..., t).
        rate: In Hz.
        bands: Number of bands.
    Returns:
        Natural logarithms of energies, shape (..., bands, frames), a frame each 12 ms.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one mel filterbank")
        return (_transform(rate, bands)(wave) + FLOOR).log()


def draw_clips(path: Path, waves: list[Tensor], rate: int, titles: list[str]) -> None:
    """A picture: a waveform and a mel spectrogram a clip.

    Args:
        path: A .png file, replaced if it exists.
        waves: float32, shape (t,) each.
        rate: In Hz.
        titles: One a clip.
    Raises:
        AudioError: The disk refuses it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(waves), 3.4), layout="constrained", dpi=90)
    axes = figure.subplots(2, len(waves), squeeze=False)
    for column, (wave, title) in enumerate(zip(waves, titles, strict=True)):
        wave, seconds = wave.detach().cpu(), len(wave) / rate
        top, bottom = axes[0][column], axes[1][column]
        top.plot(torch.arange(len(wave)) / rate, wave, linewidth=0.5)
        top.set(title=title, ylim=(-1, 1), xlim=(0, seconds))
        bottom.imshow(
            log_mel(wave, rate), origin="lower", aspect="auto", extent=(0, seconds, 0, BANDS), vmin=-12, vmax=5
        )
        bottom.set(xlabel="seconds")
    axes[0][0].set_ylabel("sample")
    axes[1][0].set_ylabel("mel band")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
