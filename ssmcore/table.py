"""The table of all mixers, as Markdown, from what their classes say of themselves.

python -m ssmcore.table            print it
python -m ssmcore.table README.md  write it into a file, between <!-- mixers --> and <!-- /mixers -->
"""

import argparse
import re
from pathlib import Path

MARKS = ("<!-- mixers -->", "<!-- /mixers -->")
WIDTH = 128
"""d_model of the mixers that are measured, with their default options."""


def mixer_table() -> str:
    """The table as lines of Markdown. No shapes, raises nothing."""
    from .mixers import MIXERS, create_mixer

    lines = [
        "| mixer | what it is | state a channel | streams | selective | computed by |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(MIXERS):
        mixer = create_mixer(name, WIDTH)
        streams, selective = ("yes" if it else "no" for it in (mixer.recurrent, mixer.selective))
        lines.append(f"| `{name}` | {mixer.title} | {_state(mixer)} | {streams} | {selective} | {mixer.operator} |")
    return "\n".join(lines)


def write_table(text: str, name: str = "text") -> str:
    """The text with a fresh table between the marks. No shapes.

    Args:
        text: A page that holds both marks.
        name: What to call the page in an error.
    Returns:
        The page, its table replaced.
    Raises:
        ValueError: A mark is missing.
    """
    pattern = f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}"
    if not re.search(pattern, text, flags=re.S):
        raise ValueError(f"write_table: {name} does not hold {MARKS[0]} and {MARKS[1]}")
    return re.sub(pattern, lambda _: f"{MARKS[0]}\n{mixer_table()}\n{MARKS[1]}", text, flags=re.S)


def _state(mixer) -> str:
    """How many numbers a channel keeps between two tokens, a complex one counts two; why there are none otherwise."""
    if not mixer.recurrent:
        return "whole sequences" if mixer.causal else "sees the future"
    if not mixer.bounded_state:
        return "grows with the tokens"
    count = 0

    def add(state) -> None:
        nonlocal count
        for value in state.values():
            if isinstance(value, dict):
                add(value)
            else:
                count += value.numel() * (2 if value.is_complex() else 1)

    add(mixer.init_state(1))
    per_channel = count / mixer.d_model
    return f"{per_channel:.0f}" if per_channel >= 10 else f"{per_channel:.1f}".removesuffix(".0")


def main() -> None:
    """Print the table, or write it into files. No shapes, raises ValueError where a file has no marks."""
    parser = argparse.ArgumentParser(prog="python -m ssmcore.table", description="The table of all mixers.")
    parser.add_argument("files", nargs="*", type=Path, help="Markdown files to write it into; none prints it")
    files = parser.parse_args().files
    if not files:
        print(mixer_table())
    for path in files:
        path.write_text(write_table(path.read_text(), str(path)))


if __name__ == "__main__":
    main()
