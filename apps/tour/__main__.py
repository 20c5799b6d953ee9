"""`python -m apps.tour`: train small models on real data, measure this machine, and write one page about it.

It needs no network. Ctrl-C stops it; the sections that are done are in the report all the same.
"""

import argparse
import sys
from pathlib import Path


def main(words: list[str] | None = None) -> int:
    """Run the sections and write the report; returns the exit status."""
    from .sections import SECTIONS

    parser = argparse.ArgumentParser(
        prog="python -m apps.tour", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder of the report (default: report)")
    parser.add_argument(
        "--only", nargs="+", metavar="SECTION", choices=list(SECTIONS.values()), help=", ".join(SECTIONS.values())
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--tiny", action="store_true", help="the least that shows that everything works")
    args = parser.parse_args(words)

    from .visit import tour

    chosen = {title: name for title, name in SECTIONS.items() if not args.only or name in args.only}
    return tour(args.output, chosen, threads=args.threads, tiny=args.tiny)


if __name__ == "__main__":
    sys.exit(main())
