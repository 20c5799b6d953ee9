"""python -m graph.train --data PROTEINS --protocol A: train a graph network and score it by the data set's protocol.

Heavy imports stand inside the functions, so that --help answers at once.
"""

import sys
from collections.abc import Sequence

from .config import TrainConfig
from .recipes import RECIPES

PROG = "python -m graph.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 1 after NaN in training, 2 for input that cannot be used, 128 + signal after an interruption.
    """
    from ssmcore.engine import cli, guarded

    usage = "--data NAME [--protocol split|A|B] [--model.name graph_mamba|gred|...] [options]"
    config = cli.parse(TrainConfig, argv, prog=PROG, usage=usage, recipes=RECIPES)
    job = _list if config.data == "list" else lambda: run(config)
    return guarded(job, prog=PROG, refused=ValueError)  # GraphError and what constructors refuse


def run(config: TrainConfig) -> int:
    """Train as configured and print the scores.

    Args:
        config: What to do.
    Returns:
        Exit status, as `main`.
    Raises:
        GraphError: The data or the options cannot be used.
    """
    from .checks import GraphError

    if not config.data:
        raise GraphError("give a data set with --data NAME; --data list prints the names")

    from .data import load_graphs
    from .models import create_model

    data = load_graphs(
        config.data, root=config.root, source=config.source, synthetic=config.synthetic, seed=config.seed
    )
    create_model(data.schema, config.model)  # before a folder is made: an option may not fit

    from ssmcore.engine import guarded

    from .experiment import Experiment

    experiment = Experiment(config, data)
    return guarded(experiment.run, prog=PROG, run_dir=experiment.run_dir)


def _list() -> None:
    from .loaders import LOADERS
    from .synthetic import TASKS

    print(f"data sets: {', '.join(LOADERS)}\ngenerated tasks: {', '.join(TASKS)}")


if __name__ == "__main__":
    sys.exit(main())
