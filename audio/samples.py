"""Clips drawn from a model while it trains: sound files and a picture, so that one can hear and see it learn."""

from pathlib import Path

import torch

from .checkpoint import Checkpoint
from .files import write_audio
from .spectrogram import draw_clips


@torch.no_grad()
def draw(checkpoint: Checkpoint, count: int, seconds: float, seed: int = 0, temperature: float = 1.0) -> torch.Tensor:
    """Clips sample by sample; every clip has a random stream of its own and leaves the global one alone.

    Args:
        checkpoint: Model and quantiser.
        count: Clips, b.
        seconds: Length of each.
        seed: Of the first clip; the others count up.
        temperature: Divides the logits.
    Returns:
        Waveforms, float32, shape (b, t).
    """
    model, quantizer = checkpoint.model, checkpoint.quantizer
    training = model.training
    model.eval()
    streams = [torch.Generator().manual_seed(seed + i) for i in range(count)]
    labels = [[i % len(names) for names in checkpoint.labels] for i in range(count)]
    state = model.init_state(count, label=torch.tensor(labels, dtype=torch.int64).reshape(count, -1))
    level = torch.full((count,), quantizer.zero, device=model.head.weight.device)
    levels = []
    for _ in range(max(1, round(seconds * checkpoint.sample_rate))):
        logits, state = model.step(level, state)
        p = (logits.float().cpu() / temperature).softmax(-1)
        drawn = [torch.multinomial(row, 1, generator=stream) for row, stream in zip(p, streams, strict=True)]
        level = torch.cat(drawn).to(level.device)
        levels.append(level)
    model.train(training)
    return quantizer.decode(torch.stack(levels, 1).cpu())


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
    waves = draw(checkpoint, count, seconds)
    for i, wave in enumerate(waves):
        write_audio(folder / f"clip-{i}.wav", wave, checkpoint.sample_rate)
    titles = [" ".join(names[i % len(names)] for names in checkpoint.labels) or f"clip {i}" for i in range(count)]
    draw_clips(folder / "clips.png", list(waves), checkpoint.sample_rate, titles)
