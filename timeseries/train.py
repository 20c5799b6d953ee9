"""python -m timeseries.train --data FILE.csv --prediction-length 96: fit, score beside the naive forecasts, and save.

Heavy imports stand inside the functions, so that --help and a refused file answer at once.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .config import TrainConfig
from .errors import DataError
from .recipes import RECIPES

if TYPE_CHECKING:
    from .experiment import Experiment

PROG = "python -m timeseries.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 1 after NaN in training, 2 for input that cannot be used, 128 + signal after an interruption.
    """
    from ssmcore.engine import cli, guarded

    usage = "--data FILE.csv [--prediction-length 96] [--model linear_ssm|s_mamba|...] [options]"
    config = cli.parse(TrainConfig, argv, prog=PROG, usage=usage, recipes=RECIPES)
    return guarded(lambda: run(config), prog=PROG, refused=DataError)


def run(config: TrainConfig) -> int:
    """Train as configured and print the scores.

    Args:
        config: What to do.
    Returns:
        Exit status, as `main`.
    Raises:
        DataError: The data or the options cannot be used.
    """
    from ssmcore.engine import guarded

    experiment = prepare(config)
    return guarded(experiment.run, prog=PROG, run_dir=experiment.run_dir)


def prepare(config: TrainConfig) -> "Experiment":
    """Read the data and make the run folder.

    Args:
        config: What to do.
    Raises:
        DataError: The data or the options cannot be used.
    """
    from .covariates import read_series_and_covariates
    from .data import make_split

    if not config.data:
        raise DataError("give a CSV file with --data FILE.csv")
    context_length = resolve_context(config)
    table, named = read_series_and_covariates(config)
    split = make_split(table, config.split, context_length, config.prediction_length)

    if config.model != "linear_ssm":
        _check_network(config, context_length)

    from .experiment import Experiment

    return Experiment(config, table, split, context_length, named)


def _check_network(config: TrainConfig, context_length: int | None) -> None:
    """Raise DataError unless the network's sizes fit the context, before anything is fitted or written."""
    from .models.window import Sizes
    from .models.window_forecaster import MIXERS, build_network

    options, sizes = getattr(config, config.model, config.patch), Sizes(prediction_length=config.prediction_length)
    try:
        build_network(options, sizes, 1, MIXERS[config.model], context_length)
    except ValueError as error:
        raise DataError(f"--model {config.model}: {error}") from None


def resolve_context(config: TrainConfig) -> int | None:
    """Values a forecast may use; None for all since the first row.

    Args:
        config: The whole configuration.
    Raises:
        DataError: Unlimited memory asked of a model that has none.
    """
    length = config.context_length
    if length is None:
        return None if config.model == "linear_ssm" else 336
    if length == "free":
        if config.model != "linear_ssm":
            raise DataError(f"--context-length free is for linear_ssm; give a number for --model {config.model}")
        return None
    return length


if __name__ == "__main__":
    sys.exit(main())
