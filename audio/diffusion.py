"""One run of `python -m audio.train --network diffwave`: as audio.experiment, of waveforms in place of levels.

DiffWave has no likelihood. It is scored by the squared error of the noise (variance 1) that it finds in the test part,
over eight noise levels evenly spread, beside the best linear filter that knows the spectrum S of the training part:

    noise(f) = sqrt(1 - a) / (a S(f) + 1 - a) x(f)          x = sqrt(a) wave + sqrt(1 - a) noise

Source of the filter: Wiener 1949, Extrapolation, interpolation and smoothing of stationary time series.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ssmcore.engine import make_loader

from .checkpoint import Checkpoint
from .chunks import WaveWindows, first
from .config import DiffWaveConfig
from .data import Recording
from .experiment import SCORING_BATCH, Experiment
from .models.diffwave import DiffWave
from .task import NoiseTask

NOISE_LEVELS = 8

Find = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Says which noise is in windows (b, t), given their steps (b,) and labels (b, k)."""


class DiffusionExperiment(Experiment):
    """A run of DiffWave. Holds the recordings as waveforms; arguments and errors as `Experiment`."""

    unit = "squared error of the noise"

    def sizes(self) -> DiffWaveConfig:
        """The network's configuration, for these recordings."""
        return replace(self.config.diffwave, labels=tuple(len(values) for values in self.names.values()))

    def decode(self, recordings: tuple[Recording, ...]) -> list[Tensor]:
        """Waveforms, float32, (t,)."""
        return [recording.wave(self.rate, self.config.recordings.normalize)[0] for recording in recordings]

    def build(self) -> DiffWave:
        """The network before its first step."""
        return DiffWave(self.sizes())

    def task(self, model: torch.nn.Module, steps: int, draw: Callable[[torch.nn.Module, int], None] | None):
        """What a step is."""
        return NoiseTask(model, self.config.optim, steps, self.config.recordings.hide_labels, draw)

    def loaders(self) -> tuple[Iterable, Iterable]:
        """Training and validation batches."""
        config = self.config
        windows = self._windows("train", config.batch_size, config.seed)
        limit = config.steps_per_epoch
        train = make_loader(windows, 1, seed=config.seed, steps_per_epoch=limit, collate_fn=first)
        return train, make_loader(self._windows("validation"), 1, seed=0, shuffle=False, collate_fn=first)

    def report(self) -> dict[str, float]:
        """Print and write the test scores.

        Returns:
            Squared errors of the noise by model, the trained one first.
        """
        model, test = Checkpoint.load(self.run_dir, "diffwave").model, self._windows("test")
        filtered = linear_filter(self._windows("train"), model.kept)
        scores = {"diffwave": noise_error(model, model.kept, test)}
        if self.names and self.config.recordings.hide_labels:
            scores["diffwave, labels hidden"] = noise_error(lambda x, step, _: model(x, step), model.kept, test)
        scores["linear filter (Wiener)"] = noise_error(filtered, model.kept, test)
        scores["nothing found"] = noise_error(lambda x, *_: torch.zeros_like(x), model.kept, test)
        self.show(scores, "noise_error")
        return scores

    def _windows(self, part: str, batch_size: int = SCORING_BATCH, seed: int | None = None) -> WaveWindows:
        options = {"length": self.length, "batch_size": batch_size, "seed": seed}
        return WaveWindows(self.sounds[part], self.labels[part], **options)


@torch.no_grad()
def noise_error(find: Find, kept: Tensor, windows: WaveWindows) -> float:
    """Mean squared error of the noise that is found in all windows at every NOISE_LEVELS-th noise level.

    Args:
        find: What finds it.
        kept: Share of the wave's power that is left at each step, shape (steps,).
        windows: The recordings; noise is drawn from a seed, so that all who find meet the same.
    """
    generator, total = torch.Generator().manual_seed(0), 0.0
    levels = torch.linspace(0, len(kept) - 1, NOISE_LEVELS).round().long()
    for index in range(len(windows)):
        wave, label = windows[index]
        for level in levels:
            noise, step = torch.randn(wave.shape, generator=generator), level.expand(len(wave))
            a = float(kept[level])
            error = find(a**0.5 * wave + (1 - a) ** 0.5 * noise, step, label) - noise
            total += float(error.double().square().mean(1).sum())
    return total / NOISE_LEVELS / sum(len(batch) for batch in windows.batches)


def linear_filter(windows: WaveWindows, kept: Tensor) -> Find:
    """The linear filter that finds noise with the least squared error where a wave's spectrum is all that is known.

    Args:
        windows: Recordings to measure the spectrum of.
        kept: As `noise_error`.
    """
    power = torch.zeros(windows.length // 2 + 1, dtype=torch.float64)
    for index in range(len(windows)):
        power += torch.fft.rfft(windows[index].wave.double()).abs().square().sum(0)
    power /= windows.length * sum(len(batch) for batch in windows.batches)

    def find(x: Tensor, step: Tensor, label: Tensor) -> Tensor:
        a = kept[step].double()[:, None]
        gain = (1 - a).sqrt() / (a * power + 1 - a)
        return torch.fft.irfft(torch.fft.rfft(x.double()) * gain, windows.length).float()

    return find
