"""python -m audio.evaluate --checkpoint RUN --data RECORDINGS: score generated clips beside the real ones.

Trains the classifier on the training part, says how well it does on the test part, and shows every metric for the
training clips, the test clips and the generated ones.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import AudioError
from .train_config import DataConfig

PROG = "python -m audio.evaluate"
HEAD = ("", "FID", "IS", "IS (upstream)", "mIS", "AM", "NDB")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score generated clips by a classifier that is trained on the spot, and look for noise, clipping and copies."""

    checkpoint: str = ""
    """Run folder of python -m audio.train, or a .safetensors file from one."""
    data: str = ""
    """The recordings that it was trained on; they need labels."""
    recordings: DataConfig = field(default_factory=DataConfig)
    """How they are read: layout and leave_out count here."""
    clips: int = 200
    """Clips to generate, of all labels in turn."""
    seconds: float = 0.5
    """Length of a clip."""
    temperature: float = 1.0
    """Divides SaShiMi's logits: below 1 is more careful."""
    steps: int | None = None
    """Steps that DiffWave takes; null takes all that it was trained with."""
    seed: int = 0
    """Of the clips and the classifier."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 2 for input that cannot be used, 130 when interrupted.
    """
    from ssmcore.engine import cli, guarded

    config = cli.parse(EvaluateConfig, argv, prog=PROG, usage="--checkpoint RUN_DIR --data RECORDINGS [options]")
    return guarded(lambda: print(run(config)), prog=PROG, refused=AudioError)


def run(config: EvaluateConfig) -> str:
    """Generate, score, compare.

    Args:
        config: What to do.
    Returns:
        The tables, as text.
    Raises:
        AudioError: Something cannot be used.
    """
    if not config.checkpoint or not config.data:
        raise AudioError("give a checkpoint with --checkpoint RUN_DIR and its recordings with --data RECORDINGS")
    if not (2 <= config.clips <= 100_000 and 0 < config.seconds <= 60 and config.temperature > 0):
        raise AudioError("--clips must be 2 to 100000, --seconds at most 60 and --temperature above 0")
    import torch

    from .checkpoint import Checkpoint, check_options
    from .classifier import look, spectrograms, train_classifier
    from .data import load_collection
    from .generation import Draw
    from .metrics import quality
    from .samples import draw_waves

    checkpoint = Checkpoint.load(config.checkpoint, None)
    check_options(checkpoint, config)
    collection = load_collection(config.data, config.recordings.layout, config.recordings.leave_out)
    names, rate = collection.labels, checkpoint.sample_rate
    if len(names) < 2:
        raise AudioError(f"{config.data}: its recordings have no labels to classify")
    waves = {part: [r.wave(rate, True)[0] for r in getattr(collection, part)] for part in ("train", "test")}
    classes = {
        part: torch.tensor([names.index(r.label) if r.label in names else -1 for r in getattr(collection, part)])
        for part in waves
    }
    pictures = {part: spectrograms(clips, rate) for part, clips in waves.items()}
    classifier = train_classifier(pictures["train"], classes["train"], len(names), config.seed)
    seen = {part: look(classifier, p) for part, p in pictures.items()}
    accuracy = float((seen["test"][1].argmax(1) == classes["test"]).float().mean())
    draw = Draw(temperature=config.temperature)
    generated, _ = draw_waves(checkpoint, config.clips, config.seconds, config.seed, draw, config.steps)
    seen["generated"] = look(classifier, spectrograms(list(generated), rate))
    lines = [
        f"classifier: {accuracy:.1%} of {len(classes['test'])} test clips right ({collection.split})",
        f"{HEAD[0]:12}" + "".join(f"{name:>15}" for name in HEAD[1:]),
    ]
    for part, (features, chances) in seen.items():
        numbers = quality(features, chances, *seen["train"]).row()
        lines.append(f"{part:12}" + "".join(f"{number:15.3f}" for number in numbers))
    return "\n".join([*lines, *_faults(generated, waves, seen)])


def _faults(generated, waves, seen) -> list[str]:
    """Noise, clipping and copies, of the generated clips and, to compare, of the test clips."""
    from .detectors import clipping, nearest_clip, runaway_noise

    lines = []
    for name, clips in (("generated", list(generated)), ("test", waves["test"])):
        noisy = sum(runaway_noise(clip).start is not None for clip in clips)
        clipped = sum(clipping(clip) > 0.01 for clip in clips)
        features = seen[name][0]
        nearest = [
            nearest_clip(c, f, waves["train"], seen["train"][0])[1] for c, f in zip(clips, features, strict=True)
        ]
        lines.append(
            f"{name}: {noisy} of {len(clips)} run away into noise, {clipped} are clipped; likeness to the nearest "
            f"training clip: median {sorted(nearest)[len(nearest) // 2]:.3f}, largest {max(nearest):.3f} (1 is a copy)"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
