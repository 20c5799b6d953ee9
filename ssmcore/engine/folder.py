"""The run folder: what is in it, and a new one that takes nothing away from an old one."""

import contextlib
import os
from pathlib import Path
from typing import Any

from .cli import CONFIG_FILE, dump

METRICS_FILE = "metrics.csv"
BEST_FILE = "best.safetensors"
LAST_FILE = "last.safetensors"
STATE_FILE = "last.ckpt"
FINISHED_FILE = "finished.json"


def make_run_dir(output: str | Path, name: str, config: Any) -> Path:
    """A new folder output/name, or name-2, name-3 ... if taken, with config.yaml in it.

    Only the first of several processes makes it; the others write nothing, and get the plain name.

    Args:
        output: Parent folder, made if absent.
        name: What the run is called.
        config: The config dataclass of the run.
    Raises:
        OSError: The folder cannot be made.
    """
    parent = Path(output)
    if not is_first_process():
        return parent / name
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 100_000):
        run_dir = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            run_dir.mkdir()
            (run_dir / CONFIG_FILE).write_text(dump(config))
            return run_dir
    raise OSError(f"make_run_dir: {parent / name} and its 99,999 successors exist already")


def is_first_process() -> bool:
    """Whether this is the only process of the run, or the first, by what torchrun, SLURM and Lightning set."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank), "0")) == 0
