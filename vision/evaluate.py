"""python -m vision.evaluate --checkpoint RUN_DIR --data-dir FOLDER [--img-size 768]: score a classifier.

The size of the images may differ from that of the training: positions are resampled where a model has them.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import EvaluateConfig
from .errors import DataError

if TYPE_CHECKING:
    from .classifier import Classifier
    from .metrics import Scores

PROG = "python -m vision.evaluate"
MOST_CLASSES = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 2 for input that cannot be used, 130 after an interruption.
    """
    from ssmcore.engine import cli, guarded

    usage = "--checkpoint RUN_DIR --data-dir FOLDER [--img-size 768] [options]"
    config = cli.parse(EvaluateConfig, argv, prog=PROG, usage=usage)
    return guarded(lambda: evaluate(config), prog=PROG, refused=DataError)


def evaluate(config: EvaluateConfig) -> "Scores":
    """Score on the validation part and print.

    Args:
        config: What to do.
    Returns:
        The scores.
    Raises:
        DataError: The images, the network, the weights or the size cannot be used.
    """
    import torch

    from .data import score_loader
    from .sources import open_source

    classifier, source = open_classifier(config)
    source = source or open_source(config, "val", classifier.classes)
    device = torch.device("cuda" if config.accelerator in ("auto", "gpu") and torch.cuda.is_available() else "cpu")
    size = "x".join(map(str, classifier.preparation.img_size))
    print(f"{config.data_dir}: {len(source)} images, {len(classifier.classes)} classes; {classifier.name} at {size}")
    started, bad = time.monotonic(), {}
    scores = score(classifier, score_loader(config, source, classifier.preparation), device, config, bad)
    seconds = time.monotonic() - started
    print(f"top-1 {scores.top1:.2f} %  top-5 {scores.top5:.2f} %  loss {scores.loss:.4f}  ({scores.images} images)")
    if bad:
        plural = ("", "does") if len(bad) == 1 else ("s", "do")
        print(f"{len(bad)} image{plural[0]} could not be read and {plural[1]} not count")
    worst = sorted((r, name) for r, name in zip(scores.recall, classifier.classes, strict=True) if r == r)
    print("hardest: " + ", ".join(f"{name} {recall:.1f} %" for recall, name in worst[:MOST_CLASSES]))
    print(f"{scores.images / seconds:.0f} images/s with loading, on {device.type}")
    if config.results_file:
        rows = [f"{name},{recall:.4f}" for name, recall in zip(classifier.classes, scores.recall, strict=True)]
        Path(config.results_file).write_text("\n".join(["class,recall", *rows]) + "\n")
    return scores


def open_classifier(config: EvaluateConfig) -> "tuple[Classifier, Any]":
    """The network that the options describe, at the size that they ask for.

    Args:
        config: A run folder holds everything; for other weights the options name the model.
    Returns:
        The classifier, and the images if they had to be opened to know the classes.
    Raises:
        DataError: It cannot be made.
    """
    from ssmcore.engine import load_weights

    from .classifier import Classifier, build, check_size, resize
    from .data import prepare_for
    from .sources import open_source

    path, source = Path(config.checkpoint or ""), None
    file = path / "best.safetensors" if path.is_dir() and config.checkpoint else path
    ours = file.suffix == ".safetensors" and file.is_file() and "preparation" in load_weights(file)[1]
    if ours or (config.checkpoint and path.is_dir()):
        classifier = Classifier.load(file)
        asked = {
            "crop_pct": config.crop_pct, "mean": config.mean, "std": config.std,
            "interpolation": config.interpolation or None,
            "img_size": (config.img_size,) * 2 if config.img_size else None,
        }  # fmt: skip
        changes = {name: value for name, value in asked.items() if value is not None}
        classifier = replace(classifier, preparation=replace(classifier.preparation, **changes))
    else:
        source = open_source(config, "val")
        num_classes = config.num_classes or len(source.classes)
        model, kwargs = build(config, num_classes, None, new_head=False)
        names = source.classes + tuple(f"class {i}" for i in range(len(source.classes), num_classes))
        preparation = prepare_for(model, config, config.in_chans)
        classifier = Classifier(
            model=model, name=config.model, kwargs=kwargs, classes=names, preparation=preparation
        )  # fmt: skip
    if config.img_size is not None:
        resize(classifier.model, classifier.preparation.img_size)
    check_size(classifier.model, classifier.preparation)
    return classifier, source


def score(classifier: "Classifier", loader: Any, device: Any, config: EvaluateConfig, bad: dict[str, None]) -> "Scores":
    """Add up over a loader.

    Args:
        classifier: Its model is put on the device, as the options ask.
        loader: Of batches: images (b, in_chans, height, width), labels (b,), names of those that could not be read.
        device: Where to compute.
        config: amp, channels_last, torchcompile, bad_images.
        bad: Gets the images that could not be read.
    Raises:
        DataError: An image cannot be read, and the options do not say to leave it out.
    """
    import torch
    from tqdm import tqdm

    from .bad import note_bad
    from .metrics import Tally

    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = classifier.model.to(device, memory_format=layout).eval()
    if config.torchcompile:
        model.compile()
    tally = Tally(len(classifier.classes), device)
    with torch.inference_mode(), torch.autocast(device.type, getattr(torch, config.amp_dtype), enabled=config.amp):
        for batch in tqdm(loader, disable=None, leave=False, unit="batch"):
            note_bad(batch.bad, bad, config.bad_images)
            images = batch.images.to(device, memory_format=layout, non_blocking=True)
            tally.update(model(images), batch.labels.to(device))
    return tally.scores(tally.sums())


if __name__ == "__main__":
    sys.exit(main())
