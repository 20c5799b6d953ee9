"""Token labels: a teacher's scores for every region of a training image: a target for each cell of the last map.

    target of cell i = softmax of the label map, averaged over what the cell shows of the crop
    loss             = CE(class token, target of the whole crop) + weight * mean over i of CE(cell i, its target)

An image's label map lies in <folder>/<class>/<image>.pt, a tensor of shape (2, k, rows, columns): the k largest scores
of each region, and the numbers of their classes; scores that were not kept count as 0. Images are cropped and
mirrored with their maps. In place of CutMix whole cells change places, the published "mix token".

b batch, c classes, h and w the sides of the model's last map.
Source: Jiang et al. 2021, Token labeling, sec. 3.2 and 3.3; the format is that of its released label data.
"""

import pickle
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.transforms import RandomHorizontalFlip, RandomVerticalFlip

from .sources import BadImageError

WHOLE = (0.0, 0.0, 1.0, 1.0)


class TokenLabels(NamedTuple):
    """Of one image, or of a batch, with one more axis in front."""

    maps: Tensor
    """Scores and class numbers, shape (2, k, rows, columns), mirrored as the image was."""
    box: Tensor
    """Part of the map that the image shows: left, top, right, lower edge, in [0, 1], shape (4,)."""


def read_label_map(root: str | Path, image: str) -> Tensor:
    """The label map of an image.

    Args:
        root: Folder of the label maps.
        image: Path of the image; its folder and stem count.
    Returns:
        float32, shape (2, k, rows, columns).
    Raises:
        BadImageError: There is none, or it is not of this format.
    """
    path = Path(root) / Path(image).parent.name / f"{Path(image).stem}.pt"
    try:
        given = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadImageError(f"{image}: it has no label map {path}") from None
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise BadImageError(f"{path}: cannot be read as a label map ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(given, Tensor) or given.ndim != 4 or given.shape[0] != 2:
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise BadImageError(f"{path}: expected a tensor of shape (2, k, rows, columns), got {shape}")
    return given.float()


def augment(transform: Any, image: Image.Image, maps: Tensor) -> tuple[Tensor, TokenLabels]:
    """An image through timm's training transform, with the same pixels as without labels, and its labels.

    Args:
        transform: Of a random resized crop, mirrors and what moves no pixel (or moves it as the published recipe
            ignores, as RandAugment does).
        image: Pillow image.
        maps: Its label map, shape (2, k, rows, columns).
    Returns:
        The prepared image, shape (c, height, width), and the labels of what it shows.
    """
    box = WHOLE
    for step in transform.transforms:
        if isinstance(step, RandomResizedCropAndInterpolation):
            state = random.getstate()  # look at what the step is about to draw
            top, left, height, width = step.get_params(image, step.scale, step.ratio)
            random.setstate(state)
            x, y = image.size
            box = (left / x, top / y, (left + width) / x, (top + height) / y)
        elif isinstance(step, (RandomHorizontalFlip, RandomVerticalFlip)):
            state = torch.get_rng_state()
            mirrored = bool(torch.rand(1) < step.p)
            torch.set_rng_state(state)
            if mirrored and isinstance(step, RandomHorizontalFlip):
                maps, box = maps.flip(-1), (1 - box[2], box[1], 1 - box[0], box[3])
            elif mirrored:
                maps, box = maps.flip(-2), (box[0], 1 - box[3], box[2], 1 - box[1])
        image = step(image)
    return image, TokenLabels(maps.contiguous(), torch.tensor(box))


def targets(labels: TokenLabels, classes: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What the class token and the cells should say.

    Args:
        labels: Of a batch: maps (b, 2, k, rows, columns) and boxes (b, 4).
        classes: c.
        grid: h and w.
    Returns:
        Probabilities of the whole crop, shape (b, c), and of its cells, shape (b, h, w, c).
    """
    scores, numbers = labels.maps.unbind(1)
    b, _, rows, columns = scores.shape
    dense = scores.new_zeros(b, classes, rows, columns).scatter_(1, numbers.long(), scores)
    corners = labels.box * scores.new_tensor([columns, rows, columns, rows]) - 0.5
    boxes = list(corners.unsqueeze(1).to(dense))
    whole, cells = (roi_align(dense, boxes, output_size=size) for size in ((1, 1), grid))
    return whole.flatten(1).softmax(1), cells.softmax(1).permute(0, 2, 3, 1)


class CellMix:
    """Give a rectangle of cells of each image to the image at its mirrored place in the batch.

    Args:
        alpha: Of the Beta distribution of the share that stays; 0 for never.
        prob: Of mixing a batch at all.
    """

    def __init__(self, alpha: float, prob: float):
        self.alpha, self.prob = alpha, prob

    def __call__(self, images: Tensor, whole: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixed images (b, c, height, width), whole targets (b, classes) and cells' targets (b, h, w, classes)."""
        if not self.alpha or random.random() >= self.prob:
            return images, whole, cells
        h, w = cells.shape[1:3]
        cut = (1 - random.betavariate(self.alpha, self.alpha)) ** 0.5
        i, j = random.randrange(h), random.randrange(w)
        top, lower = max(0, i - int(h * cut) // 2), min(h, i + int(h * cut) // 2)
        left, right = max(0, j - int(w * cut) // 2), min(w, j + int(w * cut) // 2)
        height, width = images.shape[2] // h, images.shape[3] // w
        images, cells = images.clone(), cells.clone()
        part = (..., slice(top * height, lower * height), slice(left * width, right * width))
        images[part] = images.flip(0)[part]
        cells[:, top:lower, left:right] = cells.flip(0)[:, top:lower, left:right]
        share = 1 - (lower - top) * (right - left) / (h * w)
        return images, share * whole + (1 - share) * whole.flip(0), cells


def token_loss(outputs: tuple[Tensor, Tensor], whole: Tensor, cells: Tensor, weight: float, smoothing: float) -> Tensor:
    """The loss of both heads, a scalar.

    Args:
        outputs: Logits of the class token, shape (b, c), and of the cells, shape (b, h, w, c).
        whole: Target of the class token, shape (b, c).
        cells: Targets of the cells, shape (b, h, w, c).
        weight: Of the cells.
        smoothing: Share of the targets that is spread evenly.
    """
    losses = []
    for logits, target in zip(outputs, (whole, cells), strict=True):
        classes = logits.shape[-1]
        smooth = (1 - smoothing) * target + smoothing / classes
        losses.append(F.cross_entropy(logits.float().reshape(-1, classes), smooth.reshape(-1, classes)))
    return losses[0] + weight * losses[1]
