"""python -m vision.predict IMAGE... --checkpoint RUN_DIR: the five likeliest classes, and a picture of what decided.

The picture shows each image, the pixels that spoke for and against its class (integrated gradients), and how far the
middle of the last map of features sees (its effective receptive field).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .config import PredictConfig
from .errors import DataError

if TYPE_CHECKING:
    from .classifier import Classifier
    from .plots import Explained

PROG = "python -m vision.predict"
MOST_DRAWN, NOISY = 12, 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 1 if an image could not be read, 2 for other input that cannot be used.
    """
    from ssmcore.engine import cli, guarded

    usage = "IMAGE... --checkpoint RUN_DIR [--output influence.png] [options]"
    config = cli.parse(PredictConfig, argv, prog=PROG, usage=usage, positional="images")
    return guarded(lambda: predict(config), prog=PROG, refused=DataError)


def predict(config: PredictConfig) -> int:
    """Print the answers and draw.

    Args:
        config: What to do.
    Returns:
        0, or 1 if an image could not be read.
    Raises:
        DataError: The network cannot be had or cannot take the size.
    """
    from PIL import Image

    from .classifier import check_size, resize
    from .plots import plot_explained
    from .sources import BadImageError, read_image

    classifier = load(config)
    if config.img_size is not None:
        resize(classifier.model, classifier.preparation.img_size)
        check_size(classifier.model, classifier.preparation)
    rows, failed = [], 0
    for path in config.images:
        try:
            image: Image.Image = read_image(path, classifier.preparation.in_chans)
        except BadImageError as error:
            print(f"{PROG}: {error}", file=sys.stderr)
            failed += 1
            continue
        row = explain(classifier, image, config, Path(path).name)
        print(f"{path}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in row.answers))
        rows.append(row)
    if config.output and rows:
        plot_explained(config.output, rows[:MOST_DRAWN])
        print(f"{config.output}: what spoke for the likeliest class of {min(len(rows), MOST_DRAWN)} of {len(rows)}")
    return 1 if failed else 0


def load(config: PredictConfig) -> "Classifier":
    """The classifier that the options name.

    Args:
        config: A checkpoint of ours, or the name of a model with published weights.
    Raises:
        DataError: Neither or both, or it cannot be had.
    """
    from dataclasses import replace

    from timm.data import ImageNetInfo

    from .classifier import Classifier, create
    from .config import DataOptions
    from .data import prepare_for

    if bool(config.checkpoint) == bool(config.model):
        raise DataError("give a run folder with --checkpoint RUN_DIR, or a model with published weights with --model")
    if config.checkpoint:
        classifier = Classifier.load(config.checkpoint)
    else:
        model, info = create(config.model, pretrained=True).eval(), ImageNetInfo()
        names = tuple(info.index_to_description(i) for i in range(info.num_classes()))
        if model.num_classes != len(names):
            raise DataError(f"--model {config.model}: expected {len(names)} classes, it has {model.num_classes}")
        preparation = prepare_for(model, DataOptions(), 3)
        classifier = Classifier(model=model, name=config.model, kwargs={}, classes=names, preparation=preparation)
    if config.img_size is not None:
        preparation = replace(classifier.preparation, img_size=(config.img_size,) * 2)
        classifier = replace(classifier, preparation=preparation)
    return classifier


def explain(classifier: "Classifier", image, config: PredictConfig, title: str) -> "Explained":
    """Classes of one Pillow image, with what decided.

    Args:
        classifier: Trained.
        image: Of the classifier's mode.
        config: topk, steps.
        title: Of the picture.
    Returns:
        What `plots.plot_explained` draws.
    """
    import torch

    from .influence import cells, influence, receptive_field
    from .plots import Explained

    tensor, prepared = classifier.tensor(image), classifier.preparation
    shares, order = classifier.probabilities(tensor)[0].topk(min(config.topk, len(classifier.classes)))
    answers = [(classifier.classes[i], p) for i, p in zip(order.tolist(), shares.tolist(), strict=True)]
    mean, std = (tensor.new_tensor(v).view(-1, 1, 1) for v in (prepared.mean, prepared.std))
    pixels = (tensor[0] * std + mean).clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0)
    noise = torch.randn(NOISY, *tensor.shape[1:], generator=torch.Generator().manual_seed(0))
    field = cells(receptive_field(classifier.model, tensor + 0.3 * noise))  # one image alone is too noisy to look at
    return Explained(
        pixels=pixels.numpy(),
        influence=cells(influence(classifier.model, tensor, int(order[0]), config.steps)).numpy(),
        field=(field / field.max()).numpy(),
        answers=answers,
        title=title,
    )


if __name__ == "__main__":
    sys.exit(main())
