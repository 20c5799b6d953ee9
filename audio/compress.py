"""python -m audio.compress --checkpoint RUN --input a.wav --output a.ssa: a recording in fewer bytes, nothing lost."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import AudioError

PROG = "python -m audio.compress"


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """Compress a recording without loss, with a trained model's expectations and an arithmetic coder.

    python -m audio.decompress brings back every sample, with the same checkpoint, on a machine that computes alike.
    """

    checkpoint: str = ""
    """Run folder of python -m audio.train, or a .safetensors file from one."""
    input: str = ""
    """WAV or FLAC file of 8, 16 or 24 bits."""
    output: str = ""
    """File to write; by default the input's name with .ssa."""
    segment_seconds: float = 4.0
    """Stretches that are coded beside one another, each from an empty memory: longer is smaller and slower."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 2 for input that cannot be used, 130 when interrupted.
    """
    from ssmcore.engine import cli, guarded

    config = cli.parse(CompressConfig, argv, prog=PROG, usage="--checkpoint RUN_DIR --input FILE [--output FILE]")
    return guarded(lambda: run(config), prog=PROG, refused=AudioError, go_on="nothing was written")


def run(config: CompressConfig) -> int:
    """Compress, and say what it cost.

    Args:
        config: What to do.
    Returns:
        0.
    Raises:
        AudioError: A file or the checkpoint cannot be used.
    """
    if not config.checkpoint or not config.input:
        raise AudioError("give a checkpoint with --checkpoint RUN_DIR and a recording with --input FILE")
    if not 0 < config.segment_seconds <= 600:
        raise AudioError(f"--segment-seconds {config.segment_seconds}: expected more than 0 and at most 600")
    from .checkpoint import Checkpoint
    from .codec import compress
    from .files import read_pcm, write_bytes

    pcm, rate = read_pcm(config.input)
    checkpoint = Checkpoint.load(config.checkpoint)
    result = compress(checkpoint, pcm, rate, config.segment_seconds)
    output = config.output or str(Path(config.input).with_suffix(".ssa"))
    write_bytes(output, result.data)
    before, after = Path(config.input).stat().st_size, len(result.data)
    levels, places = result.level_bits / result.samples, result.place_bits / result.samples
    print(
        f"{output}: {after} bytes from {before} ({after / before:.3f}); bits a sample: {levels:.3f} for the level, "
        f"{places:.3f} for the place in its cell"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
