"""A byte model, trained before or not, made to answer a GLUE task from the state after the last byte."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssmcore.engine import RunSettings, make_loader

from .. import running
from . import glue
from .config import BytesConfig, GlueConfig
from .model import ByteModel
from .run import build, trained
from .task import Batch, GlueModel, GlueTask, decided


@dataclass(frozen=True, kw_only=True)
class GlueResult:
    """How a run ended."""

    task: str
    score: str
    """What is measured."""
    val: float
    """Best over the epochs, on the tenth that was held out."""
    dev: float
    """Of those weights, on the dev part."""


def run(config: GlueConfig, silent: bool = False) -> GlueResult:
    """Fine-tune, or go on, and score the dev part.

    Args:
        config: What to do.
        silent: Print nothing.
    Returns:
        The result, which also lies in the run folder. No shapes.
    Raises:
        ValueError: A name or the data are not what they should be.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
        NonFiniteError: NaN or infinity came up.
    """
    if len(config.task) != 1 or config.data_dir is None:
        raise ValueError("glue: expected one task and --data-dir, the folder of its files")
    running.check_sizes("glue", config, "d_model", "num_layers", "length", "batch_size", "epochs")
    name = config.task[0]
    train, val, dev = glue.load(name, Path(config.data_dir), config.length)
    torch.manual_seed(config.seed)
    model = GlueModel(_body(config), len(glue.TASKS[name].labels))
    folder = running.opened(config, f"glue-{name}")
    loader = make_loader(train, config.batch_size, seed=config.seed, collate_fn=collate)
    looks = make_loader(val, config.batch_size, seed=0, shuffle=False, collate_fn=collate)
    task = GlueTask(model, name, config.lr, config.weight_decay, config.epochs * len(loader))
    plan = RunSettings(
        epochs=config.epochs,
        seed=config.seed,
        monitor="val_score",
        mode="max",
        accelerator=config.accelerator,
        silent=silent,
    )
    outcome = running.trained(task, loader, looks, plan, folder).outcome
    result = GlueResult(
        task=name,
        score=glue.TASKS[name].score,
        val=round(outcome.best_score, 4),
        dev=round(_reported(model, name, dev, config.batch_size), 4),
    )
    return running.kept(folder, result)


def collate(items: Sequence[tuple[tuple[Tensor, ...], float]]) -> Batch:
    """Items as a batch, padded on the right. Shapes at `Batch`, raises nothing."""
    from ..lra.model import collate as padded

    x, mask, _ = padded([(sequences, 0) for sequences, _ in items])
    return x, mask, torch.tensor([answer for _, answer in items])


def _body(config: GlueConfig) -> ByteModel:
    if config.start is not None:
        return trained(Path(config.start)).train()
    return build(
        BytesConfig(mixer=config.mixer, d_model=config.d_model, num_layers=config.num_layers, seed=config.seed)
    )


def _reported(model: GlueModel, name: str, dev: Dataset, batch_size: int) -> float:
    device = next(model.parameters()).device
    answers, truth = [], []
    for batch in DataLoader(dev, batch_size, collate_fn=collate):
        answers.append(decided(model, (batch[0].to(device), batch[1].to(device), batch[2]), name))
        truth.append(batch[2])
    return glue.score(name, np.asarray(torch.cat(answers)), np.asarray(torch.cat(truth)))
