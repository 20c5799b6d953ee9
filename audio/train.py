"""python -m audio.train --data RECORDINGS: train SaShiMi (or DiffWave) on raw audio, and score it beside simple models.

Heavy imports stand inside the functions, so that --help and a refused folder answer at once.
"""

import sys
from collections.abc import Sequence

from .errors import AudioError
from .recipes import RECIPES
from .train_config import TrainConfig

PROG = "python -m audio.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 1 after NaN in training, 2 for input that cannot be used, 128 + signal after an interruption.
    """
    from ssmcore.engine import cli, guarded

    usage = "--data RECORDINGS [--recipe fsdd_small] [options]"
    config = cli.parse(TrainConfig, argv, prog=PROG, usage=usage, recipes=RECIPES)
    return guarded(lambda: run(config), prog=PROG, refused=AudioError)


def run(config: TrainConfig) -> int:
    """Train as configured and print the scores.

    Args:
        config: What to do.
    Returns:
        Exit status, as `main`.
    Raises:
        AudioError: The recordings or the options cannot be used.
        OSError: The disk refuses the run folder.
    """
    from .data import load_collection

    if not config.data:
        raise AudioError("give a folder of recordings with --data FOLDER")
    options = config.recordings
    if options.chunk_seconds <= 0 or config.sample_seconds <= 0 or config.samples < 0:
        raise AudioError("--recordings.chunk-seconds and --sample-seconds must be positive, --samples at least 0")
    if config.network == "diffwave" and options.carry:
        raise AudioError("--recordings.carry: DiffWave makes all samples of a window at once and carries no state")
    collection = load_collection(config.data, options.layout, options.leave_out)

    from ssmcore.engine import guarded

    if config.network == "diffwave":
        from .diffusion import DiffusionExperiment as Experiment
    else:
        from .experiment import Experiment
    experiment = Experiment(config, collection)
    return guarded(experiment.run, prog=PROG, run_dir=experiment.run_dir)


if __name__ == "__main__":
    sys.exit(main())
