"""Look a name up in a registry; a name that is not there gets its near misses and the whole list."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def resolve(name: str, table: Mapping[str, T], kind: str) -> T:
    """The entry of `table` called `name`. Takes no arrays, so no shapes.

    Args:
        name: What the caller asked for.
        table: A registry, written as a dict literal where its members are defined.
        kind: What the table holds, in the singular and for the message: "mixer", "token order".
    Returns:
        table[name].
    Raises:
        ValueError: No such name; the text gives the nearest names and then all of them.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name).lower(), table, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    raise ValueError(f"unknown {kind} {name!r}{hint} Known: {', '.join(table) or 'none'}")
