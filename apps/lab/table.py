"""`python -m apps.lab table`: every mixer on every task, kept cell by cell; who solves what, and at which lengths."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib
import torch
import yaml

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from tqdm import tqdm

from ssmcore import list_mixers
from ssmcore.engine import cli
from ssmcore.registry import resolve

from . import experiment
from .config import LabConfig, TableConfig
from .experiment import chosen
from .protocols import TASKS, task
from .regression import least_squares
from .running import RESULT_FILE, check_sizes
from .task import Batches, measure
from .tasks import NOTHING

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
        Interrupted: SIGINT or SIGTERM came; what is done is kept, and the same call goes on from there.
    """
    for name in (*config.tasks, *config.each):
        resolve(name, TASKS, "task")
    check_sizes("table", config, "seeds")
    if not config.tasks or not config.mixers:
        raise ValueError("table: expected at least one task and one mixer")
    for name in config.mixers:
        resolve(name, dict.fromkeys([*config.variants, *list_mixers()]), "mixer")
        resolve(config.variants.get(name, {}).get("name", name), dict.fromkeys(list_mixers()), f"mixer of {name}")
    folder = Path(config.output)
    kept = folder / "cells"
    kept.mkdir(parents=True, exist_ok=True)
    todo = [(t, m, s) for t in config.tasks for m in config.mixers for s in range(config.seeds)]
    cells: Cells = {}
    with tqdm(todo, unit="run", disable=None) as bar:
        for name, mixer, seed in bar:
            bar.set_postfix_str(f"{name} {mixer}")
            cells[name, mixer, seed] = _cell(kept / f"{name}-{mixer}-{seed}.json", _train(config, name, mixer, seed))
            (folder / "table.md").write_text(markdown(cells))
            _write_csv(cells, folder / "table.csv")
    draw(cells, folder / "table.png")
    return cells


def baseline(cell: dict) -> dict[str, float]:
    """What is scored without learning: the most frequent answer, or least squares where a function is asked.

    Args:
        cell: One of the task's. No shapes.
    Returns:
        Score by multiple of the training length, of the same fresh sequences.
    """
    config = LabConfig(**cell["settings"])
    job = task(config.task[0], config.preset, config.task_options)
    how = chosen(config, job)
    scores = {}
    for multiple in cell["scores"]:
        length = cell["length"] * int(multiple)
        if job.kind == "classes":
            batches = Batches(job, length, how.batch_size, 8, -1, asking=True)
            asked = torch.cat([batches[i][1].flatten() for i in range(8)])
            counts = asked[asked != NOTHING].bincount()
            scores[multiple] = (counts.max() / counts.sum()).item()
        else:
            inputs, targets = Batches(job, length, how.batch_size, 1, -1, asking=True)[0]
            scores[multiple] = measure(least_squares(inputs, targets), targets)[1].item()
    return scores


def _train(config: TableConfig, name: str, mixer: str, seed: int) -> LabConfig:
    """The run of a cell."""
    spec = {"name": mixer, **config.variants.get(mixer, {})}
    told = {**config.train, **config.each.get(name, {})}
    unknown = [key for key in told if key not in LabConfig.__dataclass_fields__]
    for key in unknown:
        resolve(key, LabConfig.__dataclass_fields__, "option of a run")
    options = {key: value for key, value in spec.items() if key != "name"} | dict(told.pop("options", {}))
    runs = str(Path(config.output) / "runs" / mixer)
    return LabConfig(
        **{"task": (name,), "mixer": spec["name"], "options": options, "seed": seed, "output": runs, **told}
    )


def _cell(file: Path, train: LabConfig) -> dict:
    """A result that is at hand, or is made: an interrupted run of the same settings goes on where it stopped."""
    settings = json.loads(json.dumps(asdict(train)))
    if file.is_file():
        cell = json.loads(file.read_text())
        if cell["settings"] != settings:
            raise ValueError(f"table: {file} holds a run with other settings; take another --output, or remove it")
        return cell
    started = _interrupted(Path(train.output), settings)
    result = experiment.run(replace(train, resume=started), silent=True)
    cell = {**result.__dict__, "settings": settings}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(cell))
    part.replace(file)
    return cell


def _interrupted(runs: Path, settings: dict) -> str | None:
    """The run folder that holds an unfinished run of the settings."""
    for path in sorted(runs.glob(f"*/{cli.CONFIG_FILE}")):
        saved = yaml.safe_load(path.read_text())
        if saved == settings and not (path.parent / RESULT_FILE).is_file():
            return str(path.parent)
    return None


def markdown(cells: Cells) -> str:
    """Scores by task and length, a row a mixer; the mean over seeds, with the lowest where there are several.

    Args:
        cells: At least one.
    """
    tasks, mixers = _names(cells)
    firsts = {name: next(cell for (t, _, _), cell in cells.items() if t == name) for name in tasks}
    head = [f"{name} {k}x" for name in tasks for k in firsts[name]["scores"]]
    lines = [_line("mixer", *head, "CPU s"), "|" + "---|" * (len(head) + 2)]
    for mixer in mixers:
        shown = []
        for name in tasks:
            runs = [cell for (t, m, _), cell in cells.items() if (t, m) == (name, mixer)]
            shown += [_score([run["scores"][k] for run in runs]) for k in firsts[name]["scores"]]
        seconds = sum(cell["cpu_seconds"] for (_, m, _), cell in cells.items() if m == mixer)
        lines.append(_line(f"`{mixer}`", *shown, f"{seconds:.0f}"))
    guessed = [f"{score:.2f}" for name in tasks for score in baseline(firsts[name]).values()]
    lines.append(_line("*without learning*", *guessed, ""))
    return "\n".join(lines) + "\n"


def draw(cells: Cells, path: Path) -> None:
    """A panel a task: the score against the length, in multiples of the training length.

    Args:
        cells: At least one.
        path: PNG file.
    """
    tasks, mixers = _names(cells)
    columns = min(2 * len(tasks), len(mixers) + 1)
    rows = -(-(len(mixers) + 1) // columns)
    figure, axes = plt.subplots(1, len(tasks), figsize=(2.9 * len(tasks), 2.9 + 0.3 * rows), sharey=True, squeeze=False)
    colours = plt.get_cmap("tab10")
    for axis, name in zip(axes[0], tasks, strict=True):
        for i, mixer in enumerate(mixers):
            runs = [cell["scores"] for (t, m, _), cell in cells.items() if (t, m) == (name, mixer)]
            lengths = [int(k) for k in runs[0]] if runs else []
            means = [statistics.mean(run[str(k)] for run in runs) for k in lengths]
            axis.plot(lengths, means, marker="o", markersize=3, color=colours(i % 10), label=mixer)
        guessed = baseline(next(cell for (t, _, _), cell in cells.items() if t == name))
        lengths = [int(k) for k in guessed]
        axis.plot(lengths, list(guessed.values()), color="black", linestyle=":", label="without learning")
        axis.set_title(name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [f"{k}x" for k in lengths])
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("score on fresh sequences")
    axes[0, 0].set_ylim(-0.03, 1.03)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncol=columns, fontsize=8)
    figure.tight_layout(rect=(0, 0.3 * rows / (2.9 + 0.3 * rows), 1, 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _names(cells: Cells) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(t for t, _, _ in cells)), list(dict.fromkeys(m for _, m, _ in cells))


def _score(scores: Sequence[float]) -> str:
    if not scores:
        return ""
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
