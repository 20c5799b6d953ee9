"""Clips drawn from a model while it trains: sound files and a picture, so that one can hear and see it learn."""

from pathlib import Path

import torch

from .checkpoint import Checkpoint
from .files import write_audio
from .generation import Draw, Generator
from .spectrogram import draw_clips

QUICK_STEPS = 25
"""Steps of a DiffWave's clips while it trains."""


def draw_waves(
    checkpoint: Checkpoint,
    count: int,
    seconds: float,
    seed: int = 0,
    draw: Draw | None = None,
    steps: int | None = None,
):
    """Clips of all labels in turn. The global random state and the model's mode stay as they are.

    Args:
        checkpoint: Model and quantiser.
        count: Clips, b.
        seconds: Length of each.
        seed: Of the first clip; the others count up.
        draw: How SaShiMi's samples are drawn; None takes the model's own distribution.
        steps: How many steps DiffWave takes; None takes all.
    Returns:
        Waveforms, float32, shape (b, t); and the labels, int64, shape (b, k).
    """
    model, training = checkpoint.model, checkpoint.model.training
    labels = [[i % len(names) for names in checkpoint.labels] for i in range(count)]
    label = torch.tensor(labels, dtype=torch.int64).reshape(count, -1)
    told = {"label": label if label.numel() else None}
    seeds, samples = list(range(seed, seed + count)), max(1, round(seconds * checkpoint.sample_rate))
    try:
        if checkpoint.network == "diffwave":
            return model.eval().sample(samples, seeds, steps=steps, **told).cpu(), label
        made = Generator.of(checkpoint).start(seeds, **told).advance(samples, draw)
    finally:
        model.train(training)
    return checkpoint.quantizer.decode(made.tokens), label


def write_samples(checkpoint: Checkpoint, folder: Path, count: int, seconds: float) -> None:
    """Draw clips and leave clip-N.wav and clips.png in a folder.

    Args:
        checkpoint: Model and quantiser.
        folder: Made if absent.
        count: Clips.
        seconds: Length of each.
    Raises:
        AudioError: The disk refuses a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    steps = min(QUICK_STEPS, checkpoint.model.config.steps) if checkpoint.network == "diffwave" else None
    waves, labels = draw_waves(checkpoint, count, seconds, steps=steps)
    for i, wave in enumerate(waves):
        write_audio(folder / f"clip-{i}.wav", wave, checkpoint.sample_rate)
    titles = [
        " ".join(names[j] for names, j in zip(checkpoint.labels, row, strict=True)) or f"clip {i}"
        for i, row in enumerate(labels.tolist())
    ]
    draw_clips(folder / "clips.png", list(waves), checkpoint.sample_rate, titles)
