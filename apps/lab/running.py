"""What every training of the lab does around its model: the run folder, the training, the best weights, the result."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssmcore.engine import RunSettings, cli, fit, load_weights, make_run_dir
from ssmcore.engine.folder import BEST_FILE
from ssmcore.engine.run import Outcome

RESULT_FILE = "result.json"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training that came to its end."""

    outcome: Outcome
    """How it ended."""
    cpu_seconds: float
    """Process time of this session's training, all threads."""


def check_sizes(command: str, sizes: Any, *names: str) -> None:
    """Raise ValueError where a size that must be at least 1 is not; what is None was not said.

    Args:
        command: Whose options they are.
        sizes: Holds them as attributes. No shapes.
        names: Which.
    """
    for name in names:
        value = getattr(sizes, name)
        if value is not None and value < 1:
            raise ValueError(f"{command}: --{name.replace('_', '-')}={value}, expected at least 1")


def opened(config: Any, name: str) -> Path:
    """The run folder with the run's config in it: a new one, or the one to go on in. No shapes.

    Args:
        config: The run's, with `output` and `resume`.
        name: Of a new folder.
    Raises:
        OSError: The folder cannot be made, or is not there to go on in.
    """
    saved = replace(config, resume=None)
    if config.resume is None:
        return make_run_dir(config.output, name, saved)
    folder = Path(config.resume)
    (folder / cli.CONFIG_FILE).write_text(cli.dump(saved))
    return folder


def trained(
    task: Any,
    train: Any,
    validation: Any,
    settings: RunSettings,
    folder: Path,
    callbacks: Sequence[Any] = (),
) -> Trained:
    """Train, or go on, and put the best weights into `task.model`, in evaluation mode. No shapes.

    Args:
        task: As for `fit`, and so what follows.
        train: From `make_loader`.
        validation: Any loader.
        settings: See RunSettings.
        folder: From `opened`.
        callbacks: More of them.
    Raises:
        Interrupted: SIGINT or SIGTERM came; the state is saved.
        NonFiniteError: NaN or infinity came up.
    """
    started = time.process_time()
    outcome = fit(task, train, validation, settings, folder, callbacks=callbacks)
    seconds = round(time.process_time() - started, 1)
    task.model.load_state_dict(load_weights(folder / BEST_FILE)[0])
    task.model.eval()
    return Trained(outcome=outcome, cpu_seconds=seconds)


def kept(folder: Path, result: Any) -> Any:
    """Write a result, a dataclass, beside its run, and return it. No shapes, raises OSError where it cannot."""
    (folder / RESULT_FILE).write_text(json.dumps(asdict(result)))
    return result
