"""How a command ends: what stopped it as one line on stderr, and an exit status. Imports nothing heavy."""

import sys
from collections.abc import Callable
from pathlib import Path

from .errors import Interrupted, NonFiniteError


def guarded(
    job: Callable[[], object],
    *,
    prog: str,
    refused: type[Exception] | tuple[type[Exception], ...] = (),
    run_dir: str | Path | None = None,
    go_on: str = "",
) -> int:
    """Do a command's job.

    Args:
        job: The work. A number that it returns is the status.
        prog: What the person typed, for messages.
        refused: Errors whose text is for that person: input that cannot be used.
        run_dir: Where a training keeps its state; the line then says how `--resume` goes on from there.
        go_on: What else an interrupted person should know, if not that.
    Returns:
        0, or what the job returned; 1 after NaN in training; 2 for input that cannot be used, or a disk that refuses;
        128 + signal after an interruption.
    Raises:
        Exception: Whatever else the job raises: a mistake of ours.
    """
    if run_dir is not None:
        go_on = f"go on with: {prog} --resume {run_dir}"
    try:
        status = job()
        return status if isinstance(status, int) else 0
    except Interrupted as stop:  # a training that has saved its state
        status, line = 128 + stop.signum, f"{stop}; {go_on}" if go_on else str(stop)
    except KeyboardInterrupt:  # anything else
        status, line = 130, f"stopped; {go_on}" if go_on else "stopped"
    except NonFiniteError as error:
        status, line = 1, str(error) if run_dir is None else f"{error} (in {run_dir})"
    except refused as error:
        status, line = 2, str(error)
    except OSError as error:  # a full disk, a folder that may not be written
        status, line = 2, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    print(f"{prog}: {line}", file=sys.stderr)
    return status
