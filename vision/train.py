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
    from ssmcore.engine import cli

    config = cli.parse(
        TrainConfig,
        sys.argv[1:] if argv is None else list(argv),
        prog=PROG,
        usage="--data-dir FOLDER [--recipe NAME] [--model NAME] [options]",
        recipes=RECIPES,
    )
    try:
        if not config.data_dir:
            raise DataError("give a folder or an archive of images with --data-dir")
        from .experiment import Experiment

        return finish(Experiment(config))
    except DataError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # outside the training loop, which saves its state and says how to go on
        print(f"{PROG}: stopped", file=sys.stderr)
        return 130


def finish(experiment) -> int:
    """Train and score an Experiment, and say how it ended.

    Returns:
        Exit status, as `main`.
    Raises:
        DataError: An image or an option cannot be used.
    """
    from ssmcore.engine import Interrupted, NonFiniteError

    try:
        experiment.train()
    except Interrupted as stop:
        print(f"{stop}; go on with: {PROG} --resume {experiment.run_dir}", file=sys.stderr)
        return 128 + stop.signum
    except NonFiniteError as error:
        print(f"{PROG}: {error} (in {experiment.run_dir})", file=sys.stderr)
        return 1
    experiment.report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
