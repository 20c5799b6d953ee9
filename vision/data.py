"""From images to batches: timm's transforms, noise that depends on (seed, epoch, image) alone, and bad images by name.

An image's augmentation is drawn from one number that the sampler gives with its index, so that a resumed run, with any
number of workers, sees the very pixels that an uninterrupted one would have seen.
"""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import timm.data
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset

from ssmcore.engine import make_loader

from .config import AugmentOptions, DataOptions, TrainConfig
from .errors import DataError
from .sources import BadImageError, Source, to_mode
from .token_labels import TokenLabels, augment, read_label_map


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How an image becomes a tensor for one model."""

    img_size: tuple[int, int]
    """Height and width, in pixels."""
    in_chans: int
    """1 or 3."""
    mean: tuple[float, ...]
    """Of the channels, in [0, 1]."""
    std: tuple[float, ...]
    """Of the channels."""
    crop_pct: float
    """Share of the resized image that a central crop keeps."""
    interpolation: str
    """bilinear, bicubic, nearest."""

    def evaluation(self) -> Any:
        """Pillow image to float32 tensor (in_chans, height, width), always the same."""
        return timm.data.create_transform(
            (self.in_chans, *self.img_size),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
        )

    def augmentation(self, options: AugmentOptions, interpolation: str = "") -> Any:
        """Pillow image to float32 tensor (in_chans, height, width), at random."""
        transform = timm.data.create_transform(
            (self.in_chans, *self.img_size),
            is_training=True,
            no_aug=options.no_aug,
            train_crop_mode=options.train_crop_mode,
            scale=options.scale,
            ratio=options.ratio,
            hflip=options.hflip,
            vflip=options.vflip,
            color_jitter=options.color_jitter or None,
            auto_augment=options.aa,
            interpolation=interpolation or self.interpolation,
            mean=self.mean,
            std=self.std,
            re_prob=options.reprob,
            re_mode=options.remode,
            re_count=options.recount,
        )
        for step in transform.transforms:
            for op in [*getattr(step, "ops", ()), *(op for part in getattr(step, "policy", ()) for op in part)]:
                if op.name.startswith("Posterize"):
                    op.aug_fn = _posterize
        return transform

    @property
    def note(self) -> dict[str, Any]:
        """Plain values, to store beside weights."""
        return asdict(self)


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's strongest magnitude keeps 0 bits, which Pillow refuses (it used to give a black image)."""
    return ImageOps.posterize(image, min(8, max(1, bits)))


def prepare_for(model: nn.Module, options: DataOptions, in_chans: int) -> Preparation:
    """What the model's own configuration and the options say; the options win.

    Args:
        model: A timm model.
        options: Sizes, statistics, crop.
        in_chans: Channels of the image; for grey the mean of the colours' statistics stands in.
    Raises:
        DataError: As many means or deviations as there are channels, or one, are wanted.
    """
    for flag, values in (("--mean", options.mean), ("--std", options.std)):
        if values is not None and len(values) not in (1, in_chans):
            raise DataError(f"{flag}: expected 1 or {in_chans} numbers, got {len(values)}")
    if in_chans not in (1, 3):
        raise DataError(f"--in-chans {in_chans}: expected 3 for colour or 1 for grey")
    cfg: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    if in_chans == 1:
        cfg |= {key: (float(np.mean(cfg[key])),) for key in ("mean", "std") if cfg.get(key)}
    args = {
        "in_chans": in_chans,
        "img_size": options.img_size,
        "crop_pct": options.crop_pct,
        "interpolation": "" if options.interpolation == "random" else options.interpolation,
        "mean": options.mean,
        "std": options.std,
    }
    found = timm.data.resolve_data_config(args, pretrained_cfg=cfg)
    return Preparation(
        img_size=tuple(found["input_size"][-2:]),
        in_chans=in_chans,
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        crop_pct=float(found["crop_pct"]),
        interpolation=found["interpolation"],
    )


class Batch(NamedTuple):
    """What a loader gives."""

    images: Tensor
    """float32, shape (b, in_chans, height, width)."""
    labels: Tensor
    """int64, shape (b,)."""
    bad: list[str]
    """Images of this batch that could not be read and are left out: name and reason."""
    tokens: TokenLabels | None = None
    """Label maps, shape (b, 2, k, rows, columns), and boxes, shape (b, 4), if the images have any."""


class LabelledImages(Dataset):
    """Prepared images with the numbers of their classes.

    Args:
        source: The images.
        transform: Pillow image to tensor.
        in_chans: 3 for colour, 1 for grey.
        seed: Of the transform's noise; None for a transform without any.
        token_labels: Folder of label maps; empty for none.
    """

    def __init__(self, source: Source, transform: Any, in_chans: int, seed: int | None = None, token_labels: str = ""):
        self.source, self.transform, self.in_chans, self.seed = source, transform, in_chans, seed
        self.token_labels = token_labels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int) -> tuple[Any, ...] | str:
        """Image number key modulo the length; the whole key seeds its noise. A bad one is its name and reason."""
        index = key % len(self.source)
        try:
            image, label = self.source.load(index)
            maps = read_label_map(self.token_labels, self.source.name(index)) if self.token_labels else None
        except BadImageError as error:
            return str(error)
        try:
            image = to_mode(image, self.in_chans)
        except BadImageError as error:
            return f"{self.source.name(index)}: {error}"
        if self.seed is None:
            return self.transform(image), label
        with seeded(self.seed + key):
            if maps is None:
                return self.transform(image), label
            image, tokens = augment(self.transform, image, maps)
            return image, label, tokens


def collate(items: list[tuple[Any, ...] | str]) -> Batch:
    """Stack what could be read.

    Args:
        items: Of LabelledImages: tensors of shape (in_chans, height, width) with their labels, or texts.
    Raises:
        DataError: Not one of them could be read.
    """
    good = [item for item in items if not isinstance(item, str)]
    bad = [item for item in items if isinstance(item, str)]
    if not good:
        raise DataError(f"none of the {len(bad)} images of a batch can be read: {'; '.join(bad[:3])}")
    images, labels, *tokens = zip(*good, strict=True)
    stacked = TokenLabels(*map(torch.stack, zip(*tokens[0], strict=True))) if tokens else None
    return Batch(torch.stack(images), torch.tensor(labels), bad, stacked)


@contextlib.contextmanager
def seeded(number: int) -> Iterator[None]:
    """Draw from `number` inside, and leave the global generators as they were.

    Args:
        number: Any whole number.
    """
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(number)
    np.random.seed(random.getrandbits(32))  # noqa: NPY002
    torch.default_generator.manual_seed(random.getrandbits(63))
    try:
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])  # noqa: NPY002
        torch.set_rng_state(saved[2])


def train_loader(config: TrainConfig, source: Source, preparation: Preparation, ranks: int = 1) -> Any:
    """Augmented, shuffled batches, all of them full; going on exactly where it stopped.

    Args:
        config: Augmentation, batch size, workers, seed.
        source: The images.
        preparation: Of the model.
        ranks: Devices that share the images.
    Raises:
        DataError: The augmentation cannot be made.
    """
    try:
        transform = preparation.augmentation(config, config.interpolation)
    except (AssertionError, KeyError, ValueError) as error:
        raise DataError(f"--aa {config.aa} or another augmentation cannot be made: {error!r}") from None
    full = len(source) // (config.batch_size * ranks)
    return make_loader(
        LabelledImages(source, transform, preparation.in_chans, config.seed << 40, config.token_labels),
        config.batch_size,
        seed=config.seed,
        steps_per_epoch=config.steps_per_epoch or full or None,
        num_workers=config.workers,
        collate_fn=collate,
        repeats=config.aug_repeats,
        keyed=True,
    )


def score_loader(options: DataOptions, source: Source, preparation: Preparation) -> Any:
    """Every image once, in order, without noise.

    Args:
        options: Batch size, workers.
        source: The images.
        preparation: Of the model.
    """
    return make_loader(
        LabelledImages(source, preparation.evaluation(), preparation.in_chans),
        options.batch_size,
        seed=0,
        shuffle=False,
        num_workers=options.workers,
        collate_fn=collate,
    )
