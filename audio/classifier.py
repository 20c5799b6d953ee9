"""A small classifier of log-mel spectrograms, trained here in a minute: the eyes of the metrics."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spectrogram import BANDS, log_mel

FEATURES = 64
EPOCHS, BATCH = 15, 64


class MelClassifier(nn.Module):
    """Convolutions over bands and time, the mean and the largest of each channel, a linear map.

    Args:
        classes: Number of classes, c.
    """

    def __init__(self, classes: int):
        super().__init__()
        sizes = (1, 16, 32, FEATURES // 2)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, stride=2) for before, after in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for after in sizes[1:])
        self.head = nn.Linear(FEATURES, classes)

    def features(self, mel: Tensor) -> Tensor:
        """Spectrograms (b, bands, frames) to features (b, 64)."""
        x = mel[:, None]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x)))
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def forward(self, mel: Tensor) -> Tensor:
        """Logits (b, c) of spectrograms (b, bands, frames)."""
        return self.head(self.features(mel))


def spectrograms(waves: Sequence[Tensor], rate: int, seconds: float = 1.0) -> Tensor:
    """Clips as pictures of one size: the middle of longer ones, silence around shorter ones.

    Args:
        waves: float32, shape (t,) each; scaled to a largest sample of 1 here.
        rate: In Hz.
        seconds: Length of a picture.
    Returns:
        Log-mel energies, about 0 on average, shape (n, bands, frames).
    """
    length = round(seconds * rate)
    pictures = []
    for wave in waves:
        wave = wave / wave.abs().max().clamp_min(1e-6)
        spare = length - len(wave)
        wave = wave[-spare // 2 :][:length] if spare < 0 else F.pad(wave, (spare // 2, spare - spare // 2))
        pictures.append(log_mel(wave, rate, BANDS))
    return (F.avg_pool1d(torch.stack(pictures), 2) + 6) / 4  # a frame each 24 ms is enough for words


def train_classifier(
    pictures: Tensor, classes: Tensor, count: int, seed: int = 0, epochs: int = EPOCHS
) -> MelClassifier:
    """Fit a classifier; clips are shifted in time at random while it learns.

    Args:
        pictures: From `spectrograms`, shape (n, bands, frames).
        classes: int64, shape (n,).
        count: Number of classes.
        seed: Of weights, order and shifts; the global random state stays as it is.
        epochs: Passes.
    Returns:
        The classifier, in evaluation mode.
    """
    from tqdm import tqdm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MelClassifier(count)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        steps = epochs * -(-len(pictures) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in tqdm(range(epochs), "classifier", leave=False, disable=None, unit="epoch"):
            for chosen in torch.randperm(len(pictures)).split(BATCH):
                shift = int(torch.randint(-4, 5, ()))
                logits = model(pictures[chosen].roll(shift, -1))
                loss = F.cross_entropy(logits, classes[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


@torch.no_grad()
def look(model: MelClassifier, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, 64) and class probabilities (n, c) of spectrograms (n, bands, frames)."""
    features = torch.cat([model.features(part) for part in pictures.split(256)])
    return features, model.head(features).softmax(-1)
