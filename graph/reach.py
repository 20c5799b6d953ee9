"""python -m graph.reach --task khop_copy: how far each network carries a message; a table and a plot.

Every network is trained from nothing at every distance, and scored on graphs that it has not seen. Networks that pass
messages get one layer more than the distance, so that a message could arrive; the others have the layers of `--layers`.

On trees graph_mamba has one scan, nodes by degree, as published. Leaves have degree 1, the root 2, all others 3: the
scan meets every key with its value before it meets the root's key; among the leaves the order is drawn anew at each
pass. To answer is to recall one of 2^depth pairs, so its mixer (`--recall`) is one whose state is a memory of pairs.
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import ModelConfig, ModelName, SyntheticConfig, TrainConfig

PROG = "python -m graph.reach"
SCORES_FILE = "scores.csv"
PASSING = ("gcn", "gin", "gated_gcn", "gps")


@dataclass(frozen=True, kw_only=True)
class ReachConfig:
    """Train networks on a generated task at rising distances and compare their accuracy on unseen graphs."""

    task: str = "khop_copy"
    """khop_copy, ring_transfer or tree_neighbors_match."""
    distances: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    """What `--synthetic.distance` of graph.train is set to."""
    models: tuple[ModelName, ...] = ("gred", "gin", "gcn", "gps")
    """Networks, by their names in graph.train."""
    graphs: int = 1000
    """Training graphs; validation and test get a quarter each."""
    size: int = 30
    """Nodes of a random graph."""
    epochs: int = 8
    """Passes over the training graphs."""
    batch_size: int = 32
    """Graphs a batch."""
    lr: float = 3e-3
    """Peak learning rate."""
    hidden: int = 32
    """Width of every network."""
    layers: int = 2
    """Layers of the networks that reach any distance in one."""
    recall: str = "retnet"
    """Sequence mixer of graph_mamba on trees, see ssmcore.list_mixers(); elsewhere it is Mamba."""
    seed: int = 0
    """Seed of everything."""
    output: str = "runs/reach"
    """Folder of the runs, of scores.csv and of reach.png; what is finished there is not done again."""
    beside: tuple[str, ...] = ()
    """Folders of other such calls, whose scores are drawn in the same picture."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, as `graph.train`."""
    from ssmcore.engine import cli, guarded

    config = cli.parse(ReachConfig, argv, prog=PROG, usage="[--task NAME] [options]")

    def job() -> None:
        scores = run(config)
        print("".ljust(12) + "".join(f"{d:>8}" for d in config.distances))
        for model, by_distance in scores.items():
            print(model.ljust(12) + "".join(f"{by_distance[d]:8.3f}" for d in config.distances))

    return guarded(job, prog=PROG, refused=ValueError, go_on="the same command goes on")


def run(config: ReachConfig) -> dict[str, dict[int, float]]:
    """Train all networks at all distances; write scores.csv and reach.png.

    Args:
        config: What to do.
    Returns:
        Test accuracy by model and distance.
    Raises:
        GraphError: A task or an option that cannot be used.
        Interrupted: Asked to stop; the same call goes on.
    """
    others = [_read(Path(other) / SCORES_FILE) for other in config.beside]
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[int, float]] = {model: {} for model in config.models}
    for distance in config.distances:
        for model in config.models:
            scores[model][distance] = _score(config, model, distance, folder)
            _write(scores, config.task, folder / SCORES_FILE)
    draw([(config.task, scores), *others], folder / "reach.png")
    return scores


def _write(scores: dict[str, dict[int, float]], task: str, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "model", "distance", "accuracy"])
        writer.writerows([task, m, d, s] for m, by_distance in scores.items() for d, s in by_distance.items())


def _read(path: Path) -> tuple[str, dict[str, dict[int, float]]]:
    """Task and scores that an earlier call wrote."""
    from .checks import GraphError

    if not path.is_file():
        raise GraphError(f"{path.parent}: there is no {SCORES_FILE} in it; give the folder of an earlier call")
    scores: dict[str, dict[int, float]] = {}
    task = ""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            task = row["task"]
            scores.setdefault(row["model"], {})[int(row["distance"])] = float(row["accuracy"])
    return task, scores


def train_config(config: ReachConfig, model: ModelName, distance: int) -> TrainConfig:
    """The run of one network at one distance."""
    tree = config.task == "tree_neighbors_match"
    recall = tree and model == "graph_mamba"
    network = ModelConfig(
        name=model,
        hidden=config.hidden,
        layers=distance + 1 if model in PASSING else config.layers,
        hops=(2 * distance if tree else distance) + 1,
        mixer=config.recall if recall else "mamba",
        d_state=config.hidden,
        order="degree" if tree else "canonical",
        local="none" if recall else "gin",
        bidirectional=not recall,
    )
    return TrainConfig(
        data=config.task,
        synthetic=SyntheticConfig(graphs=config.graphs, distance=distance, size=config.size),
        model=network,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        weight_decay=0.0,
        seed=config.seed,
        accelerator="cpu",
        output=config.output,
    )


def _score(config: ReachConfig, model: ModelName, distance: int, folder: Path) -> float:
    from .data import load_graphs
    from .experiment import kept_run

    run_config = train_config(config, model, distance)
    data = load_graphs(config.task, synthetic=run_config.synthetic, seed=config.seed)
    rows = kept_run(run_config, data, folder / f"{config.task}-{model}-{distance}").run()
    return next(row["score"] for row in rows if row["what"] == "test")


def draw(panels: Sequence[tuple[str, dict[str, dict[int, float]]]], path: Path) -> None:
    """Accuracy over distance, a panel a task, one line a network, as a small PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(1.5 + 4.5 * len(panels), 3.2), layout="constrained")
    for axis, (task, scores) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (model, by_distance) in enumerate(scores.items()):
            width = 2.2 if model not in PASSING else 1.3
            style = {"linewidth": width, "marker": "os^Dv<>p"[number % 8], "markersize": 5}
            axis.plot(list(by_distance), list(by_distance.values()), label=model, **style)
        axis.set(xlabel="distance", ylabel="accuracy on unseen graphs", ylim=(0, 1.03), title=task)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, ncols=2)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
