"""python -m graph.fingerprints --data Peptides-func: what local environments alone tell, with no network at all.

Every node gets an identifier for what lies within 0, 1, ..., radius steps (the refinement behind ECFP and the
Weisfeiler-Lehman kernel); a graph is the counts of its identifiers, hashed into a row of buckets; boosted trees or a
linear model read the rows. Numbers of graph networks stand beside this one: it sees nothing farther than its radius.
"""

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROG = "python -m graph.fingerprints"


@dataclass(frozen=True, kw_only=True)
class FingerprintConfig:
    """Score counts of local environments on a data set with its own split, as a baseline for graph networks."""

    data: str = "Peptides-func"
    """Name of a data set that asks about whole graphs; `python -m graph.train --data list` prints them."""
    root: str = "data/graph"
    """Folder where prepared data sets are kept."""
    source: str | None = None
    """Folder with local copies, as in graph.train."""
    radii: tuple[int, ...] = (0, 1, 2)
    """Reach of the environments in steps, a row of the table each; 0 is a bag of nodes without any edges."""
    buckets: int = 1024
    """Counts a graph."""
    learner: Literal["trees", "linear"] = "trees"
    """Gradient-boosted trees, or logistic regression (ridge for numbers) on log(1 + count)."""
    rounds: int = 100
    """Boosting rounds (trees) or iterations of the solver (linear)."""
    seed: int = 0
    """Of the trees."""
    output: str | None = None
    """CSV file for the scores; rows are added as they come."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for input that cannot be used."""
    from ssmcore.engine import cli, guarded

    config = cli.parse(FingerprintConfig, argv, prog=PROG, usage="[--data NAME] [options]")
    return guarded(lambda: run(config), prog=PROG, refused=ValueError)


def run(config: FingerprintConfig) -> list[dict]:
    """Fit and score a learner for each radius, print and write the rows.

    Args:
        config: What to do.
    Returns:
        A row for each radius: learner, radius, buckets, validation and test score, CPU seconds.
    Raises:
        GraphError: The data set cannot be used so.
    """
    from .checks import GraphError
    from .data import load_graphs
    from .environments import environment_counts, fit_and_score

    if config.buckets < 1 or config.rounds < 1 or not config.radii or min(config.radii) < 0:
        given = f"buckets={config.buckets}, rounds={config.rounds}, radii={config.radii}"
        raise GraphError(f"{given}: expected at least 1, 1 and one radius of 0 or more")
    data = load_graphs(config.data, root=config.root, source=config.source)
    if data.parts is None or data.schema.level != "graph":
        raise GraphError(f"{data.name}: a set with its own split that asks about whole graphs is needed")
    print(data.describe(), flush=True)
    rows = []
    for radius in config.radii:
        start = time.process_time()
        counts = environment_counts(data.graphs, radius, config.buckets)
        scores = fit_and_score(data, counts, config.learner, config.rounds, config.seed)
        row = {"learner": config.learner, "radius": radius, "buckets": config.buckets, **scores}
        rows.append(row | {"cpu_seconds": round(time.process_time() - start, 1)})
        print(
            ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True
        )
        if config.output:
            _write(rows, Path(config.output))
    return rows


def _write(rows: list[dict], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
