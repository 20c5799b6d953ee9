"""Images that cannot be read: named once each, counted, or the end of the run."""

import sys

from .errors import DataError

MOST_NAMED = 10


def note_bad(names: list[str], known: dict[str, None], policy: str) -> None:
    """Say once for each image that it cannot be read, the first few by name.

    Args:
        names: Images of a batch that could not be read, with reasons.
        known: Those said before; is added to.
        policy: error or skip.
    Raises:
        DataError: The policy is error and there is one.
    """
    for name in names:
        if policy == "error":
            raise DataError(f"{name}; remove it, or leave such images out with --bad-images skip")
        if name not in known and len(known) < MOST_NAMED:
            print(f"left out: {name}", file=sys.stderr)
        known[name] = None
