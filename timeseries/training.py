"""The part of a fit that needs gradients: windows around the origins of every series, and the engine's Trainer.

Nothing is left in the working folder: what the Trainer writes goes to a temporary one.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from .config import FitConfig
from .fitting import Item, base_forecasts, targets_after
from .models.network import Network
from .models.window import Window

MOST_NUMBERS = 2.5e8
"""Of all stored linear forecasts together; beyond it the latest origins of every series are kept."""


class Windows(Dataset):
    """Pieces of series with o origins each, and what came after.

    Args:
        network: Its base is fitted.
        items: Series and origins.
        part: `train` or `validation`.
        context: Steps before and at the first origin of a window.
        origins: o.
    """

    def __init__(self, network: Network, items: Sequence[Item], part: str, context: int, origins: int):
        self.context, self.origins, self.horizon = context, origins, network.horizon
        total = sum(len(getattr(item, part)) * len(item.series.first) for item in items) * self.horizon
        share = min(1.0, MOST_NUMBERS / max(total, 1))
        self.items: list[tuple] = []
        self.places: list[tuple[int, int]] = []
        for item in items:
            where = getattr(item, part)
            where = where[len(where) - max(1, int(share * len(where))) :] if len(where) else where
            if not len(where):
                continue
            picked = torch.tensor(list(where))
            base, scale, level = base_forecasts(network.base, item.series, picked)
            # In units of the scale: a float32 holds those whatever the unit of the series.
            self.items.append((item.series, where.start, (base / scale[:, picked, None]).float(), scale, level))
            ends = range(where.stop - 1, where.start - 1, -origins)
            self.places += [(len(self.items) - 1, end) for end in ends]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number, end = self.places[index]
        series, start, base, scale, level = self.items[number]
        where = torch.arange(end + 1 - self.origins, end + 1)
        inside = where >= start  # the first window of a series may reach back before its first origin
        kept = where.clamp_min(start)
        first = max(end + 2 - self.origins - self.context, 0)
        short = self.context + self.origins - 1 - (end + 1 - first)
        future = targets_after(series, kept, self.horizon)
        known = F.pad(series.known, (0, 0, 0, max(0, end + 1 + self.horizon - len(series.known))))
        window = {
            "target": F.pad(series.target[:, first : end + 1], (short, 0), value=math.nan),
            "inputs": F.pad(series.inputs[first : end + 1], (0, 0, short, 0)),
            "known": known[kept[:, None] + 1 + torch.arange(self.horizon)],
            "static": series.static,
            "category": series.category,
            "base": base[:, kept - start].double() * scale[:, kept, None],
            "scale": scale[:, kept],
            "level": level[:, kept],
            "first": series.first,
            "future": torch.where(inside[:, None], future, math.nan),
        }
        if series.dt is not None:
            window["dt"] = F.pad(series.dt[first : end + 1], (short, 0), value=1.0)
        return window


def collate(windows: Sequence[dict[str, Tensor]]) -> tuple[Window, Tensor]:
    """A batch: the window, and the future (b, c, o, h)."""
    if any("dt" in window for window in windows):
        for window in windows:
            window.setdefault("dt", torch.ones(window["target"].shape[1], dtype=torch.float64))
    batch = {key: torch.stack([window[key] for window in windows]) for key in windows[0]}
    future = batch.pop("future")
    return Window(**batch), future


def train_network(
    network: Network, items: Sequence[Item], context: int, origins: int, config: FitConfig, callbacks: Sequence[Any]
) -> None:
    """Train in place; the best weights on the validation windows are kept.

    Args:
        network: Its base is fitted and stays as it is.
        items: Series and origins.
        context: Steps of a training window before its first origin, and that one.
        origins: Forecasts that one window is asked for.
        config: Epochs, rates, seed.
        callbacks: Lightning callbacks of the user.
    Raises:
        ValueError: There is no training window.
    """
    from ssmcore.engine import RunSettings, fit, load_weights, make_loader

    from .task import NetworkTask

    train = Windows(network, items, "train", context, origins)
    validation = Windows(network, items, "validation", context, origins)
    if not len(train):
        raise ValueError("train: no series is long enough for a training window; give longer series")
    loader = make_loader(
        train, config.batch_size, seed=config.seed, steps_per_epoch=config.steps_per_epoch, collate_fn=collate
    )
    check = None
    if len(validation):
        check = make_loader(validation, config.batch_size, seed=0, shuffle=False, collate_fn=collate)
    settings = RunSettings(
        epochs=config.epochs,
        seed=config.seed,
        monitor="train_loss" if check is None else "val_loss",
        patience=None if check is None else config.patience,
        accelerator=config.accelerator,
        silent=True,
    )
    task = NetworkTask(network, config.lr, config.weight_decay, config.epochs * len(loader))
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = _loss(network, check) if check is not None and network.encoder is not None else math.inf
    with tempfile.TemporaryDirectory() as folder:
        outcome = fit(task, loader, check, settings, Path(folder), callbacks)
        best = Path(folder) / "best.safetensors"
        network.load_state_dict(load_weights(best)[0] if best.is_file() else start)
    if not outcome.best_score < before:  # nothing that was learnt helped: the linear base alone, or where it started
        network.load_state_dict(start)
    network.cpu().eval()


@torch.no_grad()
def _loss(network: Network, loader: Any) -> float:
    """Mean loss over a loader."""
    network.eval()
    losses = [(float(network.loss(*batch)), len(batch[1])) for batch in loader]
    return sum(loss * count for loss, count in losses) / max(1, sum(count for _, count in losses))
