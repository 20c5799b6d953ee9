"""One run of the lab: train until solved, then ask about longer sequences."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ssmcore.engine import RunSettings, cli, fit, load_weights, make_loader, make_run_dir
from ssmcore.engine.folder import BEST_FILE

from .config import LabConfig
from .model import LabModel
from .task import Batches, LabTask, Solved, measure, whole
from .tasks import Task, task

RESULT_FILE = "result.json"


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
    """Accuracy (or negative squared error) on fresh sequences, by multiple of the training length."""


def build(config: LabConfig, job: Task) -> LabModel:
    """The model of a run.

    Args:
        config: The run's.
        job: Its task. No shapes.
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
        d_model=config.d_model,
        num_layers=config.num_layers,
        channel_mixer=config.channel_mixer,
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
    job = task(name, config.preset)
    length = config.length or job.length
    model = build(config, job)
    job(1, length, 0)  # a length that cannot be drawn is said before anything is written
    saved = replace(config, resume=None)
    folder = Path(config.resume) if config.resume else make_run_dir(config.output, f"{name}-{config.mixer}", saved)
    (folder / cli.CONFIG_FILE).write_text(cli.dump(saved))
    epochs = -(-config.steps // config.steps_per_epoch)
    train = Batches(job, length, config.batch_size, config.steps_per_epoch, config.seed)
    fresh = Batches(job, length, config.fresh, 1, -2 - config.seed)
    loaders = [
        make_loader(train, 1, seed=config.seed, collate_fn=whole, keyed=True),  # no batch comes twice
        make_loader(fresh, 1, seed=0, shuffle=False, collate_fn=whole),
    ]
    settings = RunSettings(
        epochs=epochs,
        seed=config.seed,
        monitor="val_score",
        mode="max",
        accelerator=config.accelerator,
        silent=silent,
    )
    started = time.process_time()
    lab = LabTask(model, config.lr, config.weight_decay)
    outcome = fit(lab, *loaders, settings, folder, callbacks=[Solved(config.solved)])
    seconds = time.process_time() - started
    weights, _ = load_weights(folder / BEST_FILE)
    model.load_state_dict(weights)
    scores = {str(k): score(model.eval(), job, k * length, config) for k in config.longer}
    result = Result(
        task=name,
        mixer=config.mixer,
        seed=config.seed,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=outcome.epochs * config.steps_per_epoch,
        cpu_seconds=round(seconds, 1),
        length=length,
        scores=scores,
    )
    (folder / RESULT_FILE).write_text(json.dumps(result.__dict__))
    return result


@torch.no_grad()
def score(model: LabModel, job: Task, length: int, config: LabConfig) -> float:
    """Score on fresh sequences of a length, the same ones for every model.

    Args:
        model: Trained; on any device.
        job: The task.
        length: Of the sequences.
        config: Says how many, in batches of the training's size.
    """
    device = next(model.parameters()).device
    total, count = 0.0, max(1, config.fresh // config.batch_size)
    for index in range(count):
        inputs, targets = Batches(job, length, config.batch_size, count, -1)[index]
        total += measure(model(inputs.to(device)), targets.to(device))[1].item()
    return total / count
