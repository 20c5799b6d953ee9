"""One run: data, training, the score of the best weights on the test part."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ssmcore.engine import RunSettings, make_loader

from ..running import check_sizes, kept, opened, trained
from .config import LraConfig, Settings, settings
from .data import Data, draw_listops, draw_pathfinder, load
from .model import LraModel, collate
from .task import LraTask

DRAWN = Path("runs/lra-data")
SIZES = {"pathfinder": 32, "pathx": 128}


@dataclass(frozen=True, kw_only=True)
class LraResult:
    """How a run ended."""

    task: str
    mixer: str
    parameters: int
    epochs: int
    val_accuracy: float
    """Best over the epochs."""
    test_accuracy: float
    """Of the weights that were best on the validation part."""


def prepare(config: LraConfig, how: Settings) -> Data:
    """The data of a run, drawn where no folder is given.

    Args:
        config: The run's.
        how: Its settings. No shapes.
    Raises:
        ValueError: The folder lacks something, or is needed and was not given.
    """
    name = config.task[0]
    size = config.size or SIZES.get(name, 32)
    if config.data_dir is not None:
        folder = Path(config.data_dir)
        if not folder.is_dir():
            raise ValueError(f"lra: --data-dir {folder} is no folder")
    elif name in ("text", "retrieval", "image"):
        raise ValueError(f"lra: {name} cannot be drawn; give --data-dir, a local copy of the original files")
    else:
        count = "-".join(map(str, config.drawn))
        folder = DRAWN / f"{name}-{size if name in SIZES else ''}{count}-seed{config.seed}"
        if name == "listops":
            draw_listops(folder, config.drawn, config.seed)
        else:
            draw_pathfinder(folder, sum(config.drawn), size, config.seed)
    return load(name, folder, how.length, config.limit)


def run(config: LraConfig, silent: bool = False) -> LraResult:
    """Train, or go on, and score the test part.

    Args:
        config: What to do.
        silent: Print nothing.
    Returns:
        The result, which also lies in the run folder. No shapes.
    Raises:
        ValueError: A name, an option or the data are not what they should be.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
        NonFiniteError: NaN or infinity came up.
    """
    how = settings(config)
    check_sizes("lra", how, "d_model", "num_layers", "batch_size", "epochs", "length")
    check_sizes("lra", config, "limit")
    data = prepare(config, how)
    torch.manual_seed(config.seed)
    model = LraModel(data, how)
    folder = opened(config, f"{config.task[0]}-{how.mixer}")
    train = make_loader(data.train, how.batch_size, seed=config.seed, collate_fn=collate)
    val = make_loader(data.val, how.batch_size, seed=0, shuffle=False, collate_fn=collate)
    task = LraTask(model, how, how.epochs * len(train))
    plan = RunSettings(
        epochs=how.epochs,
        seed=config.seed,
        monitor="val_accuracy",
        mode="max",
        accelerator=config.accelerator,
        precision=config.precision,
        silent=silent,
        clip=None,
    )
    outcome = trained(task, train, val, plan, folder).outcome
    result = LraResult(
        task=config.task[0],
        mixer=how.mixer,
        parameters=sum(p.numel() for p in model.parameters()),
        epochs=outcome.epochs,
        val_accuracy=round(outcome.best_score, 4),
        test_accuracy=round(accuracy(model, data, how.batch_size), 4),
    )
    return kept(folder, result)


@torch.no_grad()
def accuracy(model: LraModel, data: Data, batch_size: int) -> float:
    """Part of the test items that are answered right. No shapes, raises nothing."""
    device, right, count = next(model.parameters()).device, 0, 0
    model.eval()
    for x, mask, labels in DataLoader(data.test, batch_size, collate_fn=collate):
        answers = model(x.to(device), mask.to(device)).argmax(-1).cpu()
        right, count = right + int((answers == labels).sum()), count + len(labels)
    return right / count
