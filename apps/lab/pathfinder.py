"""Pathfinder: two long dashed paths among short ones, two circles; does one path join the circles?

    images = Pathfinder(32, seed=0)
    pixels, joined = images[7]           uint8 (32, 32), 0 or 1; image 7 is the same on every machine and in any order

A path grows dash by dash: the next dash starts on a circle around a pivot ahead of the last one, at an angle drawn in
proportion to the squared cosine of the turn (times `continuity`), where no dash and no margin around one stands yet.
The circles mark the first dash of one path and the last dash of the same (1) or of the other (0). Sizes are those that
Long Range Arena drew its images with; the draws have a seed, theirs had none, so images agree in distribution.
Coordinates are (y, x) in pixels, angles in radians from x towards y.
Source: Linsley et al. 2018, Learning long-range spatial dependencies with horizontal gated recurrent units; Kim et al.
2020, Disentangling neural mechanisms for perceptual grouping; Tay et al. 2021, Long Range Arena, sec. 2.2.5.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

Point = tuple[int, int]
TRIALS = 3
"""Draws of one dash before its path is given up."""
PATH_TRIALS = 5
"""Draws of a short path before it is left out."""
FREE, FULL = 0.3, 0.01
"""Mask below which a pixel is free; part of free pixels below which no short path is started."""
CROSSING = 1.8
"""Sum of two masks, each 1 on a dash with its margin, from which on dashes touch."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What images of a size are drawn with; lengths in pixels."""

    padding: int = 1
    """Border that is kept free."""
    margins: tuple[int, ...] = (1,)
    """Space around a dash: one of them for each image."""
    dash: int = 5
    """Length of a dash."""
    thickness: float
    """Of a dash; a multiple of half a pixel."""
    marker: float
    """Radius of the circles."""
    seed_distance: int
    """Between the beginnings of the two long paths."""
    continuity: float = 1.8
    """How straight paths are: turns are multiplied by it."""
    dashes: int = 14
    """Of a long path."""
    short_dashes: int = 4
    """Of a short path."""
    short_paths: int
    """Short paths, at most."""
    contrast: float
    """Brightness of short paths."""
    long_contrast: float = 1.0
    """Brightness of long paths, in multiples of that."""


SIZES = {
    32: Size(
        dash=2,
        thickness=0.5,
        marker=1.5,
        seed_distance=7,
        continuity=1.0,
        short_paths=5,
        contrast=2.0,
        long_contrast=0.75,
    ),
    64: Size(thickness=1.0, marker=2.5, seed_distance=12, short_paths=5, contrast=0.8),
    128: Size(margins=(2, 3), thickness=1.5, marker=3.0, seed_distance=20, short_paths=8, contrast=0.9),
    256: Size(padding=22, margins=(3,), thickness=2.0, marker=5.0, seed_distance=27, short_paths=7, contrast=1.0),
}
"""By height and width of the image: Long Range Arena's arguments, with contours of 14 dashes (its "hard" part)."""
FINE = 2
"""Dashes are drawn at so many times the resolution, then scaled down."""


class Patch(NamedTuple):
    """A small image at its place in a larger one."""

    rows: slice
    columns: slice
    values: np.ndarray
    """Shape of the place."""

    def onto(self, image: np.ndarray) -> None:
        """Take the brighter of both, in place; image (h, w). Raises nothing."""
        place = image[self.rows, self.columns]
        np.maximum(place, self.values, out=place)


class Stroke(NamedTuple):
    """A dash in the middle of a square, 0 to 1."""

    line: np.ndarray
    """What is drawn."""
    mask: np.ndarray
    """Dash and margin, where no other dash may lie; shape of line."""
    near: np.ndarray
    """The mask and one more margin around it, where no other dash may begin; a larger square."""


class Tip(NamedTuple):
    """The newest dash of a path that grows."""

    pivot: Point
    """Around which the next dash starts."""
    angle: float
    """Of the dash."""
    end: Point
    """Its outer end."""
    stroke: Stroke | None = None
    """The dash; its mask is not yet the canvas's."""


class Canvas:
    """An image that paths are drawn into, and the masks of what is taken.

    Most paths get stuck, so what is only looked at in the end is made in the end: lines wait until their path is
    whole, and `near`, the mask with a margin around it, is kept up dash by dash instead of being made for each.

    Args:
        size: Height and width.
        how: What to draw with.
        margin: Space around a dash.
        rng: Source of the draws.
    """

    def __init__(self, size: int, how: Size, margin: int, rng: np.random.Generator):
        self.size, self.how, self.margin, self.rng = size, how, margin, rng
        self.shape, self.strokes = (size, size), strokes(how, margin)
        self.image = np.zeros(self.shape)
        self.waiting: list[tuple[Point, Stroke]] = []
        self.clear()

    def clear(self) -> None:
        """Nothing is taken but the border. No shapes, raises nothing."""
        mask, near = empty_masks(self.size, self.how, self.margin)
        self.mask, self.near = mask.copy(), near.copy()
        self.waiting = []

    def angle(self) -> float:
        """A direction in whole degrees. Raises nothing."""
        return int(self.rng.integers(-180, 180)) * math.pi / 180

    def seed(self, start: Point, angle: float) -> Tip | None:
        """The first dash of a path, without its mask; None where it leaves the image. Raises nothing."""
        end = ahead(start, angle, self.how.dash)
        pivot = ahead(end, turned(angle), self.how.dash + self.margin)
        return Tip(pivot, angle, start) if self.holds(end) and self.holds(pivot) else None

    def begun(self, tip: Tip) -> Tip:
        """The path with its first dash, which is drawn with it. Raises nothing."""
        tip = tip._replace(stroke=self.strokes[tip.angle])
        self.waiting.append((tip.end, tip.stroke))
        return tip

    def holds(self, point: Point) -> bool:
        """Whether a point lies in the image. Raises nothing."""
        return 0 <= point[0] < self.size and 0 <= point[1] < self.size

    def chosen(self, places: np.ndarray) -> Point | None:
        """One of the places, (p, 2); None where there is none. Raises nothing."""
        if not len(places):
            return None
        y, x = places[int(self.rng.integers(0, len(places)))]
        return int(y), int(x)

    def grown(self, tip: Tip) -> Tip | None:
        """The path one dash longer; None where it cannot go on. Raises nothing."""
        pivot = ahead(tip.pivot, tip.angle, self.how.dash + 2 * self.margin)
        found = self.turns(pivot, tip.angle)
        if found is None:
            return None
        points, angles, chances = found
        for _ in range(TRIALS):
            # The first chance above the number; where rounding leaves none, the first of all.
            place = int(chances.searchsorted(self.rng.random(), "right")) % len(chances)
            angle = float(angles[place])
            end = (int(points[place, 0]), int(points[place, 1]))
            new = self.strokes[turned(angle)]
            mask = placed(new.mask, end, self.shape)
            if (self.mask[mask.rows, mask.columns] + mask.values).max() < CROSSING:
                self.take(tip)
                self.waiting.append((end, new))
                return Tip(pivot, angle, end, new)
        return None

    def take(self, tip: Tip) -> None:
        """Put the newest dash of a path into the masks. No shapes, raises nothing."""
        if tip.stroke is not None:
            placed(tip.stroke.mask, tip.end, self.shape).onto(self.mask)
            placed(tip.stroke.near, tip.end, self.shape).onto(self.near)

    def draw(self, contrast: float) -> None:
        """Draw what waits. No shapes, raises nothing."""
        for end, dash in self.waiting:
            placed(dash.line * np.float32(contrast), end, self.shape).onto(self.image)
        self.waiting = []

    def turns(self, pivot: Point, angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Where the next dash may end: points (p, 2), their directions (p,), and cumulated chances (p,)."""
        points, angles, places, key = ring(pivot, self.how.dash + self.margin, self.size)
        if not len(points):
            return None
        chances = (1 - self.near.take(places)) * straightness(key, angle, self.how.continuity)
        total = chances.sum()
        return None if total < 1e-4 else (points, angles, np.cumsum(chances / total))


@functools.lru_cache(maxsize=70_000)
def ring(pivot: Point, radius: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bytes]:
    """The pixels of an image on a circle, (p, 2), their directions from its middle, (p,), their places in the image
    laid out row by row, (p,), and the directions as bytes. Raises nothing."""
    around = np.arange(0, 360, 360 / (2 * radius * math.pi)) * math.pi / 180
    spots = np.stack([pivot[0] + radius * np.sin(around), pivot[1] + radius * np.cos(around)], 1)
    points = np.unique(spots[((spots >= 0) & (spots < size)).all(1)].astype(int), axis=0)
    angles = np.arctan2(points[:, 0] - pivot[0], points[:, 1] - pivot[1])
    return points, angles, points[:, 0] * size + points[:, 1], angles.tobytes()


@functools.lru_cache(maxsize=100_000)
def straightness(angles: bytes, angle: float, continuity: float) -> np.ndarray:
    """The squared cosines of the turns from a direction to others, (p,), given as bytes. Raises nothing."""
    turn = np.abs(np.frombuffer(angles) - angle)
    turn = np.minimum(np.minimum(turn, 2 * math.pi - turn) * continuity, math.pi / 2)
    return np.maximum(np.cos(turn), 0) ** 2


class Strokes(dict[float, Stroke]):
    """Dashes by their direction, from the middle of a square; each is made when it is first asked for.

    Args:
        how: What to draw with.
        margin: Space around a dash.
    """

    def __init__(self, how: Size, margin: int):
        super().__init__()
        self.how, self.margin = how, margin

    def __missing__(self, angle: float) -> Stroke:
        how, margin = self.how, self.margin
        reach = how.dash + math.ceil(how.thickness) + margin
        fine = Image.new("F", (2 * reach * FINE + 1,) * 2)
        y, x = ahead((reach * FINE,) * 2, angle, how.dash * FINE)
        ImageDraw.Draw(fine).line([(reach * FINE, reach * FINE), (x, y)], fill=255, width=round(how.thickness * FINE))
        wide = dilated(np.asarray(fine), disc(margin * FINE))
        line, mask = (shrunk(part.astype(np.uint8), 2 * reach + 1) for part in (np.asarray(fine), wide))
        self[angle] = made = Stroke(line, mask, dilated(np.pad(mask, margin), disc(margin)))
        return made


@functools.lru_cache(maxsize=16)
def strokes(how: Size, margin: int) -> Strokes:
    """The dashes of a size and a margin: directions are few, for circles have few pixels. Raises nothing."""
    return Strokes(how, margin)


def free_starts(mask: np.ndarray, how: Size, margin: int, angle: float, border: int) -> np.ndarray:
    """Where a dash of a direction fits, `border` pixels from the edge at least: places (p, 2). Raises nothing."""
    around, size = how.dash + margin, len(mask)
    part = placed(strokes(how, margin)[angle].mask, (around + 1, around + 1), (2 * around + 1,) * 2)
    shape = np.zeros((2 * around + 1,) * 2)
    part.onto(shape)
    taken = np.ones_like(mask)
    inner = slice(border, size - border)
    taken[inner, inner] = mask[inner, inner]
    taken = dilated(taken, shape.astype(np.uint8))
    # The published images have no first dash of a direction whose shape lies wholly outside for some pixel.
    return np.empty((0, 2), int) if taken.min() < 0 else np.argwhere(taken <= FREE)


@functools.lru_cache(maxsize=4_000)
def first_starts(size: int, how: Size, margin: int, angle: float) -> np.ndarray:
    """Where the first long path can start: `free_starts` on an empty image. Raises nothing."""
    return free_starts(empty_masks(size, how, margin)[0], how, margin, angle, 2 * how.seed_distance)


@functools.lru_cache(maxsize=8)
def empty_masks(size: int, how: Size, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """The masks of an image without paths, without and with a margin around it, (size, size). Raises nothing."""
    mask = np.ones((size, size))
    inner = slice(how.padding, size - how.padding)
    mask[inner, inner] = 0
    return mask, dilated(mask, disc(margin))


class Pathfinder:
    """Images by their number.

    Args:
        size: Height and width: a key of SIZES.
        seed: Images of another seed are other ones.
    Raises:
        ValueError: No such size.
    """

    def __init__(self, size: int, seed: int = 0):
        if size not in SIZES:
            raise ValueError(f"Pathfinder: size={size}, expected one of {', '.join(map(str, SIZES))}")
        self.size, self.seed = size, seed

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Image `index`, uint8 (size, size), and whether one path joins the circles, 0 or 1. Raises nothing."""
        pixels, joined, _ = drawn(self.size, SIZES[self.size], np.random.default_rng([self.seed, index]))
        return pixels, joined

    def write(self, folder: Path, count: int, first: int = 0) -> Iterator[int]:
        """Write images in the layout of the Long Range Arena archive: imgs/BATCH/sample_N.png and metadata/BATCH.npy.

        A batch is 1000 images; one that has its metadata is left as it is, so a stopped call can be repeated.

        Args:
            folder: E.g. pathfinder32/curv_contour_length_14; is made.
            count: Images.
            first: Number of the first.
        Yields:
            Every number, once its image is written or found. No shapes.
        Raises:
            OSError: The folder cannot be written.
        """
        how = SIZES[self.size]
        for start in range(first, first + count, 1000):
            batch, numbers = start // 1000, range(start, min(start + 1000, first + count))
            metadata = folder / "metadata" / f"{batch}.npy"
            pictures = folder / "imgs" / str(batch)
            if metadata.is_file():
                yield from numbers
                continue
            pictures.mkdir(parents=True, exist_ok=True)
            metadata.parent.mkdir(parents=True, exist_ok=True)
            lines = []
            for number in numbers:
                rng = np.random.default_rng([self.seed, number])
                pixels, joined, margin = drawn(self.size, how, rng)
                Image.fromarray(pixels).save(pictures / f"sample_{number % 1000}.png")
                rest = (how.continuity, how.dashes, how.short_dashes, how.dash, how.thickness, margin, 1)
                lines.append(
                    f"imgs/{batch} sample_{number % 1000}.png {number % 1000} {joined} " + " ".join(map(str, rest))
                )
                yield number
            part = metadata.with_suffix(".part")
            part.write_text("\n".join(lines) + "\n")
            part.replace(metadata)


def drawn(size: int, how: Size, rng: np.random.Generator) -> tuple[np.ndarray, int, int]:
    """An image.

    Args:
        size: Height and width.
        how: What to draw with.
        rng: Source of the draws.
    Returns:
        Pixels, uint8 (size, size), the brightest 255; 1 where one path joins the circles, else 0; and the margin.
    """
    joined = int(rng.integers(0, 2))
    margin = how.margins[int(rng.integers(0, len(how.margins)))]
    paths = None
    while paths is None:
        canvas = Canvas(size, how, margin, rng)
        paths = _long_paths(canvas)
    for _ in range(how.short_paths):
        for _ in range(PATH_TRIALS):
            if _short_path(canvas):
                break
    begins, ends = paths
    first = int(rng.integers(0, 2))
    circles = [_circle(size, point, how.marker) for point in (begins[first], ends[first if joined else 1 - first])]
    image = np.maximum.reduce([canvas.image, *circles])
    return (image * (255 / image.max()) + 0.5).astype(np.uint8), joined, margin


def _long_paths(canvas: Canvas) -> tuple[list[Point], list[Point]] | None:
    """Two paths that grow in turn; where they begin and end. None where one got stuck: nothing is drawn then."""
    how = canvas.how
    canvas.clear()
    seeds = _seeds(canvas)
    if seeds is None:
        return None
    tips = [canvas.begun(tip) for tip in seeds]
    for _ in range(how.dashes - 1):
        for i in range(2):
            tip = canvas.grown(tips[i])
            if tip is None:
                return None
            tips[i] = tip
    canvas.take(tips[1])
    canvas.draw(how.contrast * how.long_contrast)
    return [tip.end for tip in seeds], [tip.end for tip in tips]


def _seeds(canvas: Canvas) -> tuple[Tip, Tip] | None:
    """The first dashes of the two long paths."""
    how, first = canvas.how, None
    for _ in range(TRIALS):
        angle = canvas.angle()
        start = canvas.chosen(first_starts(canvas.size, how, canvas.margin, angle))
        if start is None:
            return None
        first = canvas.seed(start, angle)
        if first is not None:
            break
    if first is None:
        return None
    for _ in range(TRIALS):
        angle, around = canvas.angle(), int(canvas.rng.integers(0, 360)) * math.pi / 180
        (y, x), far = first.end, how.seed_distance
        second = canvas.seed((round(y + far * np.sin(around)), round(x + far * np.cos(around))), angle)
        if second is not None:
            return first, second
    return None


def _short_path(canvas: Canvas) -> bool:
    """A path of a few dashes wherever there is room; whether there was. Without, the canvas stays as it was."""
    mask, tip = canvas.mask, None
    for _ in range(TRIALS):
        angle = canvas.angle()
        if (mask <= FREE).mean() < FULL:
            return False
        start = canvas.chosen(free_starts(mask, canvas.how, canvas.margin, angle, 1))
        if start is None:
            return False
        tip = canvas.seed(start, angle)
        if tip is not None:
            break
    if tip is None:
        return False
    before = canvas.mask, canvas.near
    canvas.mask, canvas.near, canvas.waiting = canvas.mask.copy(), canvas.near.copy(), []
    tip = canvas.begun(tip)
    for _ in range(canvas.how.short_dashes - 1):
        tip = canvas.grown(tip)
        if tip is None:
            canvas.mask, canvas.near = before
            return False
    canvas.take(tip)
    canvas.draw(canvas.how.contrast)
    return True


def _circle(size: int, centre: Point, radius: float) -> np.ndarray:
    """A filled circle, (size, size), 0 to 1, with smooth edges."""
    at = np.arange(size * FINE)
    y, x = at[:, None] - centre[0] * FINE, at - centre[1] * FINE
    return shrunk(((x**2 + y**2 <= (radius * FINE) ** 2) * 255).astype(np.uint8), size)


def ahead(point: Point, angle: float, distance: float) -> Point:
    """The pixel at a distance in a direction, rounded up. Raises nothing."""
    return math.ceil(point[0] + distance * np.sin(angle)), math.ceil(point[1] + distance * np.cos(angle))


def turned(angle: float) -> float:
    """The opposite direction. Raises nothing."""
    return angle + math.pi if angle < 0 else angle - math.pi


def disc(radius: int) -> np.ndarray:
    """A filled circle, (2 radius + 1, 2 radius + 1). Raises nothing."""
    at = np.arange(-radius, radius + 1)
    return (at[:, None] ** 2 + at**2 <= radius**2).astype(np.uint8)


def dilated(image: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The largest value under a shape around each pixel, (h, w); -inf where all of it is outside. Raises nothing."""
    return ndimage.maximum_filter(image, footprint=shape > 0, mode="constant", cval=-np.inf)


def shrunk(image: np.ndarray, size: int) -> np.ndarray:
    """A uint8 image scaled down, (size, size), 0 to 1. Raises nothing."""
    small = Image.fromarray(image).resize((size, size), resample=Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32) / 255


def placed(part: np.ndarray, centre: Point, shape: Point) -> Patch:
    """A small square image with its middle at a point of a larger one of a shape, cut at the edges. Raises nothing."""
    reach = len(part) // 2
    y, x = centre[0] - reach, centre[1] - reach
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + 2 * reach + 1, shape[0]), min(x + 2 * reach + 1, shape[1])
    return Patch(slice(top, bottom), slice(left, right), part[top - y : bottom - y, left - x : right - x])
