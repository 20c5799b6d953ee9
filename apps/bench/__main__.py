"""`python -m apps.bench <what>`: measure this suite on this machine."""

import argparse
import sys

from . import audio, graphs, hugging_face, kalman, scan, training, updates

COMMANDS = {
    "scan": scan,
    "audio": audio,
    "transformers": hugging_face,
    "graph": graphs,
    "timeseries": updates,
    "kalman": kalman,
    "training": training,
}


def main(words: list[str] | None = None) -> int:
    """Parse the command line and run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m apps.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        about = (module.__doc__ or "").strip()
        sub = commands.add_parser(name, help=about.splitlines()[0], description=about)
        module.add_arguments(sub)
    args = parser.parse_args(words)
    try:
        return COMMANDS[args.command].run(args)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
