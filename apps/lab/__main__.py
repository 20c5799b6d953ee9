"""python -m apps.lab TASK --mixer NAME: train a mixer on a task;  python -m apps.lab table: many of both."""

import sys
from collections.abc import Sequence

from .config import LabConfig, TableConfig

PROG = "python -m apps.lab"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 1 after NaN in training, 2 for input that cannot be used, 128 + signal after an interruption.
    """
    from ssmcore.engine import cli

    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["table"]:
        table = cli.parse(TableConfig, words[1:], prog=f"{PROG} table")
        return _guarded(lambda: _table(table))
    usage = "TASK [--mixer NAME] [options]\n       python -m apps.lab table [options]"
    config = cli.parse(LabConfig, words, prog=PROG, usage=usage, positional="task")
    return _guarded(lambda: _one(config))


def _one(config: LabConfig) -> None:
    from .experiment import run

    if len(config.task) != 1:
        raise ValueError(f"expected one task, got {' '.join(config.task)}")
    result = run(config)
    print(f"{result.task}, {result.mixer}, {result.parameters} parameters: {result.steps} batches of length")
    print(f"{result.length} in {result.cpu_seconds} s of processor time; score on fresh sequences by length:")
    for multiple, score in result.scores.items():
        print(f"{result.length * int(multiple):8} {score:.3f}")


def _table(config: TableConfig) -> None:
    from .table import markdown, run

    print(markdown(run(config)))
    print(f"{config.output}: table.md, table.csv, table.png")


def _guarded(job) -> int:
    from ssmcore.engine import Interrupted, NonFiniteError
    from ssmcore.mixer import Unsupported

    try:
        job()
    except Interrupted as stop:
        print(f"{PROG}: {stop}; the same command with --resume RUN_DIR goes on (table: without it)", file=sys.stderr)
        return 128 + stop.signum
    except NonFiniteError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    except (ValueError, Unsupported) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROG}: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
