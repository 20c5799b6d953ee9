"""One run of the lab: train until solved, then ask about longer sequences."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from ssmcore.engine import RunSettings, make_loader

from .config import LabConfig
from .model import LabModel
from .protocols import Task, Training, task
from .running import check_sizes, kept, opened, trained
from .task import Batches, LabTask, Solved, measure, whole


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended."""

    task: str
    mixer: str
    seed: int
    parameters: int
    steps: int
    """Batches until it was solved, or all."""
    cpu_seconds: float
    """Process time of the training, all threads."""
    length: int
    scores: dict[str, float]
    """Accuracy (or the explained part of the variance) on fresh sequences, by multiple of the training length."""


def chosen(config: LabConfig, job: Task) -> Training:
    """How a run is trained: what its config says, else what the task's preset does. No shapes, raises nothing."""
    said = {f.name: getattr(config, f.name, None) for f in fields(Training)}
    return replace(job.training, **{name: value for name, value in said.items() if value is not None})


def build(config: LabConfig, job: Task, training: Training) -> LabModel:
    """The model of a run.

    Args:
        config: The run's.
        job: Its task.
        training: Its widths. No shapes.
    Raises:
        ValueError: A name or option is unknown.
        Unsupported: The mixer looks ahead.
    """
    torch.manual_seed(config.seed)
    return LabModel(
        job.tokens,
        job.classes,
        config.mixer,
        config.options,
        d_model=training.d_model,
        num_layers=training.num_layers,
        channel_mixer=training.channel_mixer,
        embed_dropout=training.embed_dropout,
    )


def run(config: LabConfig, silent: bool = False) -> Result:
    """Train and ask.

    Args:
        config: What to do.
        silent: Print nothing.
    Returns:
        The result, which also lies in the run folder.
    Raises:
        ValueError: A name, an option or a length is wrong.
        Unsupported: The mixer looks ahead.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
        NonFiniteError: NaN or infinity came up.
    """
    name = config.task[0]
    job = task(name, config.preset, config.task_options)
    how = chosen(config, job)
    sizes = ("d_model", "num_layers", "batch_size", "steps", "steps_per_epoch", "examples", "fresh")
    check_sizes(name, how, *sizes)
    if min(how.longer, default=1) < 1:
        raise ValueError(f"{name}: --longer={list(how.longer)}, expected multiples of at least 1")
    length = config.length or job.length
    model = build(config, job, how)
    job(1, length, 0)  # a length that cannot be drawn is said before anything is written
    folder = opened(config, f"{name}-{config.mixer}")
    train = Batches(job, length, how.batch_size, how.per_epoch, config.seed)
    looks = max(1, how.fresh // how.batch_size)
    fresh = Batches(job, length, how.batch_size, looks, -2 - config.seed, asking=True)
    loaders = [
        # In order, so that what grows knows the step; endless data are other batches in each epoch.
        make_loader(
            train,
            1,
            seed=config.seed,
            collate_fn=whole,
            keyed=how.examples is None,
            shuffle=how.examples is not None,
        ),
        make_loader(fresh, 1, seed=0, shuffle=False, collate_fn=whole),
    ]
    settings = RunSettings(
        epochs=-(-how.steps // how.per_epoch),
        seed=config.seed,
        monitor="val_score",
        mode="max",
        accelerator=config.accelerator,
        silent=silent,
    )
    lab = LabTask(model, how)
    done = trained(lab, *loaders, settings, folder, callbacks=[Solved(config.solved)])
    scores = {str(k): score(model, job, k * length, how) for k in how.longer}
    result = Result(
        task=name,
        mixer=config.mixer,
        seed=config.seed,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=done.outcome.epochs * how.per_epoch,
        cpu_seconds=done.cpu_seconds,
        length=length,
        scores=scores,
    )
    return kept(folder, result)


@torch.no_grad()
def score(model: Callable[[Tensor], Tensor], job: Task, length: int, training: Training) -> float:
    """Score on fresh sequences of a length, the same ones for every model.

    Args:
        model: From inputs to answers; where it has parameters, its device is theirs.
        job: The task.
        length: Of the sequences.
        training: Says how many, in batches of the training's size. Shapes as the task draws them.
    """
    device = next(model.parameters()).device if isinstance(model, nn.Module) else None
    total, count = 0.0, max(1, training.fresh // training.batch_size)
    batches = Batches(job, length, training.batch_size, count, -1, asking=True)
    for index in range(count):
        inputs, targets = batches[index]
        total += measure(model(inputs.to(device)), targets.to(device))[1].item()
    return total / count
