"""python -m audio.decompress --checkpoint RUN --input a.ssa --output a.wav: what audio.compress made small."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import AudioError

PROG = "python -m audio.decompress"


@dataclass(frozen=True, kw_only=True)
class DecompressConfig:
    """Bring back a recording that python -m audio.compress made small: the same samples, bit for bit."""

    checkpoint: str = ""
    """The checkpoint that it was compressed with."""
    input: str = ""
    """File that audio.compress wrote."""
    output: str = ""
    """WAV or FLAC file to write, of 16 or 24 bits as the samples need."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see audio.compress.main.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 2 for input that cannot be used, 130 when interrupted.
    """
    from ssmcore.engine import cli, guarded

    usage = "--checkpoint RUN_DIR --input FILE --output FILE"
    config = cli.parse(DecompressConfig, argv, prog=PROG, usage=usage)
    return guarded(lambda: print(run(config)), prog=PROG, refused=AudioError, go_on="nothing was written")


def run(config: DecompressConfig) -> str:
    """Decompress.

    Args:
        config: What to do.
    Returns:
        What was done, in a line.
    Raises:
        AudioError: A file or the checkpoint cannot be used, or they do not belong together.
    """
    if not (config.checkpoint and config.input and config.output):
        raise AudioError("give --checkpoint RUN_DIR, --input FILE and --output FILE")
    from .checkpoint import Checkpoint
    from .codec import decompress
    from .files import read_bytes, write_pcm

    pcm, rate = decompress(Checkpoint.load(config.checkpoint), read_bytes(config.input))
    write_pcm(config.output, pcm, rate)
    return f"{config.output}: {pcm.shape[0]} channels of {pcm.shape[1]} samples at {rate} Hz"


if __name__ == "__main__":
    sys.exit(main())
