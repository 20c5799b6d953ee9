"""Handwritten digits that scikit-learn ships: a small VMamba trained from nothing, beside two classic methods."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vision.classifier import Classifier
from vision.config import EvaluateConfig, TrainConfig
from vision.evaluate import evaluate
from vision.experiment import Experiment
from vision.influence import cells, influence
from vision.metrics import Scores
from vision.sources import Source, open_source

from ..charts import INK, SOFT, drawing
from ..report import Command, Figure, Section, Table, Text
from . import Visit

PARTS = {"train": 1097, "val": 200, "test": 500}
SEED, SHOWN, MODEL = 0, 8, "VMamba, 2 blocks"


@dataclass
class Answers:
    """What a classifier said about the test part."""

    images: torch.Tensor
    """Prepared, shape (n, 1, h, w)."""
    pixels: np.ndarray
    """As drawn, in [0, 1], shape (n, 8, 8)."""
    truth: torch.Tensor
    """int64, shape (n,)."""
    said: torch.Tensor
    """int64, shape (n,)."""
    sure: torch.Tensor
    """Probability of what was said, shape (n,)."""

    @property
    def wrong(self) -> list[int]:
        """Where it was mistaken."""
        return (self.said != self.truth).nonzero()[:, 0].tolist()


def write_digits(folder: Path) -> Path:
    """The 1,797 digits as a folder of images: part/class/number.png, parts drawn with a fixed seed, class by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    rest, parts = np.arange(len(digits.target)), {}
    for part in ("test", "val"):
        rest, parts[part] = train_test_split(
            rest, test_size=PARTS[part], random_state=SEED, stratify=digits.target[rest]
        )
    parts["train"] = rest
    for part, chosen in parts.items():
        for i in chosen:
            file = folder / part / str(digits.target[i]) / f"{i:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * 255 / 16).round().astype(np.uint8)).save(file)
    return folder


def configure(visit: Visit, data: Path) -> TrainConfig:
    """A VMamba of one stage on images drawn twice as large, which gives it 4 x 4 cells to scan."""
    return TrainConfig(
        data_dir=str(data), model="vmamba_tiny_s1l8", model_kwargs={"depths": [2], "embed_dim": 64}, in_chans=1,
        img_size=16, mean=(0.3,), std=(0.38,), crop_pct=1.0, scale=(0.85, 1.0), ratio=(0.9, 1.1), hflip=0.0,
        color_jitter=0.0, batch_size=64, workers=0, lr=4e-3, warmup_epochs=1, min_lr=1e-5, clip_grad=1.0,
        epochs=1 if visit.tiny else 12, steps_per_epoch=2 if visit.tiny else None, seed=SEED, accelerator="cpu",
        output=str(visit.folder / "runs"), experiment="digits",
    )  # fmt: skip


def run(visit: Visit) -> Section:
    """Train, score on the part that nothing was chosen by, and show what was said."""
    data = write_digits(visit.folder / "digits")
    experiment, started = Experiment(configure(visit, data)), time.monotonic()
    experiment.train()
    seconds, run_dir = time.monotonic() - started, experiment.run_dir
    scores = evaluate(
        EvaluateConfig(checkpoint=str(run_dir), data_dir=str(data), val_split="test", workers=0, accelerator="cpu")
    )
    classifier, source = (
        Classifier.load(run_dir),
        open_source(EvaluateConfig(data_dir=str(data), val_split="test"), "val"),
    )
    answers, rivals = ask(classifier, source), compare(data)
    count = sum(p.numel() for p in classifier.model.parameters())
    return Section(
        title="Vision: handwritten digits",
        summary=f"{scores.top1:.1f} % of {scores.images} unseen digits named rightly, {seconds:.0f} s of training.",
        blocks=[
            Text(
                f"{sum(PARTS.values())} handwritten digits of 8 x 8 pixels: {PARTS['train']} to train, {PARTS['val']} "
                f"to choose the epoch, {PARTS['test']} only for the score. A VMamba of {count:,} parameters starts "
                "from random weights; its scan crosses each image row by row and column by column, both ways."
            ),
            Figure(
                _gallery(classifier, answers),
                f"The first {SHOWN} digits of the test part, and its mistakes (at most {SHOWN}). Below each, what "
                "spoke for the answer (red) and against it (blue), by integrated gradients.",
                "Digits with the answers of the model and maps of the pixels that decided.",
            ),
            _table(scores, rivals, seconds),
            Text(
                "Protocol: the same training and test images for all; the classic methods see the raw pixels, and also "
                f"the {PARTS['val']} images that the network used to choose its epoch. One run with seed {SEED}: half "
                f"a percent is {PARTS['test'] // 200} digits and could be chance."
            ),
        ],
        next=[
            Command(
                f"python -m vision.predict {data / 'test' / '3'}/*.png --checkpoint {run_dir}",
                "Name images of your own, and draw which pixels decided.",
            ),
            Command(
                f"python -m vision.train --data-dir {data} --model vim_tiny_patch16_224 --in-chans 1 --img-size 8 "
                "--model-kwargs.patch_size 2 --model-kwargs.depth 4 --hflip 0 --epochs 20",
                "A Vim on the same folder; any folder of images in class folders will do.",
            ),
        ],
    )


def ask(classifier: Classifier, source: Source) -> Answers:
    """The classifier's answer to every image of a part."""
    loaded = [source.load(i) for i in range(len(source))]
    images = torch.cat([classifier.tensor(image) for image, _ in loaded])
    sure, said = classifier.probabilities(images).max(1)
    return Answers(
        images=images,
        pixels=np.stack([np.asarray(image) / 255 for image, _ in loaded]),
        truth=torch.tensor([label for _, label in loaded]),
        said=said,
        sure=sure,
    )


def compare(data: Path) -> dict[str, float]:
    """Percent right of two classic methods on the same parts, by name."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    parts = {}
    for part in PARTS:
        files = sorted((data / part).glob("*/*.png"))
        pixels = np.stack([np.asarray(Image.open(file)).ravel() / 16 for file in files])
        parts[part] = pixels, np.array([int(file.parent.name) for file in files])
    known = [np.concatenate(pair) for pair in zip(parts["train"], parts["val"], strict=True)]
    methods = {
        "3 nearest neighbours": KNeighborsClassifier(3),
        "logistic regression": LogisticRegression(max_iter=5000),
    }
    return {name: 100 * method.fit(*known).score(*parts["test"]) for name, method in methods.items()}


def _table(scores: Scores, rivals: dict[str, float], seconds: float) -> Table:
    rows = [[MODEL, f"{scores.top1:.1f} %", f"{round(scores.images * (1 - scores.top1 / 100))}", f"{seconds:.0f} s"]]
    rows += [
        [name, f"{right:.1f} %", f"{round(scores.images * (1 - right / 100))}", "< 1 s"]
        for name, right in rivals.items()
    ]
    most = max(scores.top1, *rivals.values())
    strong = [i for i, value in enumerate([scores.top1, *rivals.values()]) if value == most]
    caption = f"Digits of the test part named rightly, of {scores.images}; the best in bold."
    return Table(["", "right", "mistakes", "training"], rows, caption, strong=strong)


def _gallery(classifier: Classifier, answers: Answers) -> str:
    """Two pairs of rows: the first digits of every second class, and the mistakes."""
    spread = np.linspace(0, len(answers.truth) - 1, SHOWN).round().astype(int).tolist()
    mistakes = [i for i in answers.wrong if i not in spread]
    groups = [group for group in (spread, mistakes[:SHOWN]) if group]
    with drawing(8, 2.5 * len(groups), "digits") as (figure, svg):
        axes = figure.subplots(2 * len(groups), SHOWN, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for g, group in enumerate(groups):
            for column, i in enumerate(group):
                above, below = axes[2 * g, column], axes[2 * g + 1, column]
                said, right = int(answers.said[i]), bool(answers.said[i] == answers.truth[i])
                above.imshow(answers.pixels[i], cmap="gray_r", vmin=0, vmax=1)
                name = classifier.classes[said]
                text = f"{name}, {100 * float(answers.sure[i]):.0f} %"
                text += "" if right else f"\nit is {classifier.classes[int(answers.truth[i])]}"
                above.set_title(text, fontsize=9, color=SOFT if right else INK, loc="center")
                share = cells(influence(classifier.model, answers.images[i : i + 1], said, steps=16), 8).numpy()
                most = float(np.abs(share).max()) or 1.0
                below.imshow(share, cmap="RdBu_r", vmin=-most, vmax=most)
        return svg()
