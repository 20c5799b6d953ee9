"""python -m graph.tables --source FOLDER: the TU sets by both protocols, every network under one setting, in one table.

Runs are kept apart in the output folder and never done twice: a call that was stopped goes on, one with further sets,
networks or folds adds to the table, one with other options is refused, and several may fill one folder at a time.
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .config import ModelConfig, ModelName, TrainConfig

PROG = "python -m graph.tables"
TABLE_FILE = "table.md"
SHOWN = {"A": ("protocol A", "last epoch"), "B": ("protocol B",)}
"""What a run's scores.csv holds: under A the chosen epoch, and the last one, which nothing chose."""


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """Train networks on TU sets by ten-fold protocols, all under one setting, and put their accuracies in a table."""

    sets: tuple[str, ...] = ("MUTAG", "ENZYMES", "IMDB-BINARY", "PROTEINS", "NCI1")
    """Data sets, by their names in graph.train."""
    protocols: tuple[Literal["A", "B"], ...] = ("A", "B")
    """As --protocol of graph.train."""
    models: tuple[ModelName, ...] = ("mlp", "gin", "hop_lru")
    """Networks, by their names in graph.train."""
    folds: int = 10
    """How many of the ten folds."""
    epochs: int = 30
    """Passes over the training graphs."""
    batch_size: int = 64
    """Graphs a batch."""
    lr: float = 3e-3
    """Peak learning rate."""
    hidden: int = 32
    """Width of every network."""
    layers: int = 3
    """Layers of every network."""
    dropout: float = 0.2
    """Dropout of every network."""
    hops: int = 6
    """Shells around a node (hop_lru, gred)."""
    seed: int = 0
    """Seed of the folds and of everything else."""
    root: str = "data/graph"
    """Folder of prepared data sets, as of graph.train."""
    source: str | None = None
    """Folder with local copies, as of graph.train."""
    output: str = "runs/tables"
    """Folder of the runs and of table.md."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, as `graph.train`."""
    from ssmcore.engine import cli, guarded

    config = cli.parse(TablesConfig, argv, prog=PROG, usage="[--source FOLDER] [options]")
    return guarded(lambda: print(run(config), end=""), prog=PROG, refused=ValueError, go_on="the same command goes on")


def run(config: TablesConfig) -> str:
    """Train what is missing and write the table after every run.

    Args:
        config: What to do.
    Returns:
        The table of all runs in the output folder, as Markdown.
    Raises:
        GraphError: A data set or an option that cannot be used.
        Interrupted: Asked to stop; the same call goes on.
    """
    from .data import load_graphs
    from .experiment import kept_run

    folder = Path(config.output)
    # All sets first: what cannot be loaded is told before anything is trained.
    sets = {n: load_graphs(n, root=config.root, source=config.source, seed=config.seed) for n in config.sets}
    for protocol in config.protocols:
        for name, data in sets.items():
            for model in config.models:
                kept_run(train_config(config, name, model, protocol), data, folder / f"{name}-{model}-{protocol}").run()
                (folder / TABLE_FILE).write_text(table(folder))
    return table(folder)


def train_config(config: TablesConfig, name: str, model: ModelName, protocol: Literal["A", "B"]) -> TrainConfig:
    """The run of one network on one set: sums of all layers are read out, and hop_lru starts as its messages alone."""
    network = ModelConfig(
        name=model,
        hidden=config.hidden,
        layers=config.layers,
        dropout=config.dropout,
        readout=("sum",),
        jumping=True,
        hops=config.hops,
        layout="gated",
        encoding="rwse" if model == "graph_mamba" else "none",
    )
    return TrainConfig(
        data=name,
        root=config.root,
        source=config.source,
        protocol=protocol,
        folds=config.folds,
        model=network,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=config.seed,
        output=config.output,
    )


def table(folder: Path) -> str:
    """The scores of all runs in a folder: accuracy in %, mean ± standard deviation over the folds that were run.

    Raises OSError where there is no such folder.
    """
    import numpy as np

    from .experiment import SCORES_FILE

    found: dict[tuple[str, str, int], dict[str, str]] = {}
    models: list[str] = []
    for path in sorted(folder.glob(f"*/{SCORES_FILE}")):
        name, model, protocol = path.parent.name.rsplit("-", 2)
        scores: dict[str, list[float]] = {}
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                scores.setdefault(row["what"], []).append(100 * float(row["score"]))
        if model not in models:
            models.append(model)
        chosen, *last = (scores[what] for what in SHOWN[protocol])
        cell = f"{np.mean(chosen):.1f}±{np.std(chosen):.1f}" + "".join(f" / {np.mean(one):.1f}" for one in last)
        found.setdefault((protocol, name, len(chosen)), {})[model] = cell
    lines = [f"| protocol | set | folds | {' | '.join(models)} |", f"|---|---|---:|{'---:|' * len(models)}"]
    for (protocol, name, folds), cells in sorted(found.items()):
        lines.append(f"| {protocol} | {name} | {folds} | {' | '.join(cells.get(model, '') for model in models)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
