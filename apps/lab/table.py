"""`python -m apps.lab table`: every mixer on every task, kept cell by cell; who solves what, and at which lengths."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from tqdm import tqdm

from ssmcore import list_mixers
from ssmcore.registry import resolve

from .config import LabConfig, TableConfig
from .tasks import TASKS

Cells = dict[tuple[str, str, int], dict]
"""(task, mixer, seed) -> a Result as plain data."""


def run(config: TableConfig) -> Cells:
    """Train what is missing, and write table.md, table.csv and table.png.

    Args:
        config: What to do.
    Returns:
        All cells.
    Raises:
        ValueError: A name or an option is unknown.
        Interrupted: SIGINT or SIGTERM came; finished cells are kept.
    """
    from . import experiment

    for name in config.tasks:
        resolve(name, TASKS, "task")
    for name in config.mixers:
        resolve(name, dict.fromkeys(list_mixers()), "mixer")
    folder = Path(config.output)
    kept = folder / "cells"
    kept.mkdir(parents=True, exist_ok=True)
    todo = [(t, m, s) for t in config.tasks for m in config.mixers for s in range(config.seeds)]
    cells: Cells = {}
    with tqdm(todo, unit="run", disable=None) as bar:
        for name, mixer, seed in bar:
            bar.set_postfix_str(f"{name} {mixer}")
            file = kept / f"{name}-{mixer}-{seed}.json"
            if not file.is_file():
                train = LabConfig(**{"task": (name,), "mixer": mixer, "seed": seed, **config.train})
                result = experiment.run(replace(train, output=str(folder / "runs")), silent=True)
                part = file.with_suffix(".part")
                part.write_text(json.dumps(result.__dict__))
                part.replace(file)
            cells[name, mixer, seed] = json.loads(file.read_text())
    (folder / "table.md").write_text(markdown(cells))
    _write_csv(cells, folder / "table.csv")
    draw(cells, folder / "table.png")
    return cells


def markdown(cells: Cells) -> str:
    """Scores by task and length, a row a mixer; the mean over seeds, with the lowest where there are several.

    Args:
        cells: At least one.
    """
    tasks, mixers = _names(cells)
    multiples = list(next(iter(cells.values()))["scores"])
    head = [f"{task} {k}x" for task in tasks for k in multiples]
    lines = [_line("mixer", *head, "CPU s"), "|" + "---|" * (len(head) + 2)]
    for mixer in mixers:
        shown = []
        for task in tasks:
            runs = [cell for (t, m, _), cell in cells.items() if (t, m) == (task, mixer)]
            shown += [_score([run["scores"][k] for run in runs]) for k in multiples]
        seconds = sum(cell["cpu_seconds"] for (_, m, _), cell in cells.items() if m == mixer)
        lines.append(_line(f"`{mixer}`", *shown, f"{seconds:.0f}"))
    return "\n".join(lines) + "\n"


def draw(cells: Cells, path: Path) -> None:
    """A panel a task: the score against the length, in multiples of the training length.

    Args:
        cells: At least one.
        path: PNG file.
    """
    tasks, mixers = _names(cells)
    figure, axes = plt.subplots(1, len(tasks), figsize=(2.9 * len(tasks), 3.2), sharey=True, squeeze=False)
    colours = plt.get_cmap("tab10")
    for axis, task in zip(axes[0], tasks, strict=True):
        for i, mixer in enumerate(mixers):
            runs = [cell["scores"] for (t, m, _), cell in cells.items() if (t, m) == (task, mixer)]
            lengths = [int(k) for k in runs[0]]
            means = [statistics.mean(run[str(k)] for run in runs) for k in lengths]
            axis.plot(lengths, means, marker="o", markersize=3, color=colours(i % 10), label=mixer)
        axis.set_title(task)
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [f"{k}x" for k in lengths])
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("accuracy on fresh sequences")
    axes[0, 0].set_ylim(-0.03, 1.03)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncol=min(8, len(mixers)), fontsize=8)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _names(cells: Cells) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(t for t, _, _ in cells)), list(dict.fromkeys(m for _, m, _ in cells))


def _score(scores: Sequence[float]) -> str:
    spread = f" ({min(scores):.2f})" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.2f}{spread}"


def _line(*fields: str) -> str:
    return "| " + " | ".join(fields) + " |"


def _write_csv(cells: Cells, path: Path) -> None:
    rows = ["task,mixer,seed,parameters,steps,cpu_seconds,length,score"]
    for cell in cells.values():
        start = [cell[k] for k in ("task", "mixer", "seed", "parameters", "steps", "cpu_seconds")]
        rows += [",".join(map(str, [*start, cell["length"] * int(k), v])) for k, v in cell["scores"].items()]
    path.write_text("\n".join(rows) + "\n")
