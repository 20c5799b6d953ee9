"""python -m vision.train --data-dir FOLDER --model NAME: train an image classifier, score it, and save.

The flags have timm's names. Heavy imports stand inside the functions, so that --help answers at once.
"""

import sys
from collections.abc import Sequence

from .config import TrainConfig
from .errors import DataError
from .recipes import RECIPES

PROG = "python -m vision.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 1 after NaN in training, 2 for input that cannot be used, 128 + signal after an interruption.
    """
    from ssmcore.engine import cli, guarded

    usage = "--data-dir FOLDER [--recipe NAME] [--model NAME] [options]"
    config = cli.parse(TrainConfig, argv, prog=PROG, usage=usage, recipes=RECIPES)
    return guarded(lambda: run(config), prog=PROG, refused=DataError)


def run(config: TrainConfig) -> int:
    """Train as configured and print the scores.

    Args:
        config: What to do.
    Returns:
        Exit status, as `main`.
    Raises:
        DataError: An image or an option cannot be used.
    """
    if not config.data_dir:
        raise DataError("give a folder or an archive of images with --data-dir")
    from ssmcore.engine import guarded

    from .experiment import Experiment

    experiment = Experiment(config)
    return guarded(experiment.run, prog=PROG, run_dir=experiment.run_dir)


if __name__ == "__main__":
    sys.exit(main())
