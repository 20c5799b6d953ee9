"""Where images come from: folders, archives and torchvision's data sets, all as numbered images with a class.

Folders and .tar files are read by timm's readers (a class folder an image; a tar of images, or of one tar a class).
A compressed archive cannot be read in any order, so it is held in memory as it was packed.
"""

import functools
import io
import os
import struct
import tarfile
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError
from timm.data.readers.class_map import load_class_map
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from .config import DataOptions
from .errors import DataError

Part = Literal["train", "val"]
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "eval", "evaluation", "test")}
"""Names that a part goes by in folders and archives, the first one found is taken."""
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, tarfile.TarError, TypeError)
"""What Pillow and tarfile raise for bytes that are no image."""


class BadImageError(ValueError):
    """One image cannot be read; the text is its name and the reason."""


class Source(Protocol):
    """Numbered images with classes."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of their numbers."""
    part: str
    """Name of the part in the folder or archive; empty where it has no parts and is taken whole."""

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        ...

    def load(self, index: int) -> tuple[Image.Image, int]:
        """The decoded image and the number of its class.

        Raises:
            BadImageError: It cannot be read.
        """
        ...


class FileSource:
    """Images of a folder or of .tar files, through a timm reader."""

    def __init__(self, reader: ReaderImageFolder | ReaderImageInTar, numbers: dict[str, int], part: str):
        self.reader, self.part = reader, part
        self.classes = tuple(sorted(numbers, key=numbers.__getitem__))

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        """Path inside the folder or archive."""
        return str(self.reader.filename(index))

    def load(self, index: int) -> tuple[Image.Image, int]:
        """As in Source."""
        try:
            file, label = self.reader[index]
            with file:
                return _decode(file), int(label)
        except _UNREADABLE as error:
            raise BadImageError(f"{self.name(index)}: {_reason(error)}") from None


class PackedSource:
    """Images of one part of a compressed archive, kept in memory as they were packed."""

    def __init__(self, path: Path, wanted: Sequence[str], classes: tuple[str, ...] | None):
        self.members, self.part = _unpack(path, wanted)
        found = {_label(name) for name, _ in self.members}
        self.classes = classes or tuple(sorted(found))
        _refuse_strangers(str(path), found, self.classes)
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = [numbers[_label(name)] for name, _ in self.members]

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        """Path inside the archive."""
        return self.members[index][0]

    def load(self, index: int) -> tuple[Image.Image, int]:
        """As in Source."""
        try:
            return _decode(io.BytesIO(self.members[index][1])), self.labels[index]
        except _UNREADABLE as error:
            raise BadImageError(f"{self.name(index)}: {_reason(error)}") from None


class TorchvisionSource:
    """A data set of torchvision that lies on the disk; torchvision checks its files before it opens them."""

    def __init__(self, dataset: Any, name: str):
        self.dataset, self.label, self.part = dataset, name, name
        self.classes = tuple(map(str, dataset.classes))

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """The data set's name and the number."""
        return f"{self.label}, image {index}"

    def load(self, index: int) -> tuple[Image.Image, int]:
        """As in Source."""
        image, label = self.dataset[index]
        return image, int(label)


def open_source(options: DataOptions, part: Part, classes: tuple[str, ...] | None = None) -> Source:
    """The images of one part.

    Args:
        options: Where they are.
        part: train or val; the options may name the split that stands for it.
        classes: Classes that are known already, in their order; None takes those that are found.
    Raises:
        DataError: No such place, part or image; a class folder without an image, or one that is none of `classes`; an
            archive that cannot be read.
    """
    if not options.data_dir:
        raise DataError("give a folder or an archive of images with --data-dir")
    path, asked = Path(options.data_dir), options.train_split if part == "train" else options.val_split
    if options.dataset.startswith("torch/"):
        return _torchvision(options.dataset.removeprefix("torch/"), path, part)
    if options.dataset not in ("", "folder", "tar", "imagenet"):
        raise DataError(f"--dataset {options.dataset}: expected nothing, folder, tar, imagenet or torch/NAME")
    if not path.exists():
        raise DataError(f"--data-dir {path}: there is no such folder or archive")
    synonyms = next((names for names in SPLITS.values() if asked in names), (asked,))
    wanted = tuple(dict.fromkeys([asked, *synonyms])) if asked else SPLITS[part]
    if classes is None and options.class_map:
        classes = _read_class_map(options.class_map, path)
    if path.is_file() and path.suffix != ".tar":
        return PackedSource(path, wanted, classes)
    return _files(path, wanted, classes)


def read_image(path: str | Path, in_chans: int) -> Image.Image:
    """One image file in colour or grey.

    Args:
        path: Any format that Pillow knows.
        in_chans: 3 for RGB, 1 for grey.
    Raises:
        BadImageError: No such file, no image, or pixels of unknown range.
    """
    try:
        return to_mode(_decode(path), in_chans)
    except (*_UNREADABLE, BadImageError) as error:
        raise BadImageError(f"{path}: {_reason(error)}") from None


def to_mode(image: Image.Image, in_chans: int) -> Image.Image:
    """An image of any mode in colour or grey, 8 bits a channel.

    Args:
        image: Palette, grey, CMYK, with alpha (dropped), 16 bits a channel (scaled), ...
        in_chans: 3 for RGB, 1 for grey.
    Raises:
        BadImageError: Its numbers have no known range (32-bit floating point).
    """
    if image.mode == "F":
        raise BadImageError("its pixels are floating-point numbers of unknown range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would cut 16 bits at 255: white wherever there is light.
        pixels = np.asarray(image, dtype=np.int64)
        image = Image.fromarray((pixels.clip(0, 65535) // (257 if pixels.max() > 255 else 1)).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    wanted = "RGB" if in_chans == 3 else "L"
    return image if image.mode == wanted else image.convert(wanted)


def _decode(file: Any) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about metadata
        image = Image.open(file)
        image.load()
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image in any known format"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _label(name: str) -> str:
    return Path(name).parent.name


def _files(root: Path, wanted: Sequence[str], classes: tuple[str, ...] | None) -> FileSource:
    """A folder that holds the part as a folder or a .tar, or that is the part; or a .tar."""
    if root.is_dir():
        root = _inner(root, wanted)
        names = [path for name in wanted for path in (root / name, root / f"{name}.tar") if path.exists()]
        known = {name for group in SPLITS.values() for name in group}
        others = [entry.name for entry in root.iterdir() if entry.name.removesuffix(".tar") in known]
        if not names and others:
            raise DataError(f"{root}: there is no part {' or '.join(wanted)}; it has {', '.join(sorted(others))}")
        part, root = (names[0].name, names[0]) if names else ("", root)
    else:
        part = ""
    given = {name: number for number, name in enumerate(classes)} if classes else ""
    tars = root.is_file() or any(root.glob("*.tar"))
    try:
        reader = ReaderImageInTar(str(root)) if tars else ReaderImageFolder(str(root), class_map=given)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{root}: cannot be read as an archive of images ({_reason(error)})") from None
    except RuntimeError:
        raise DataError(f"{root}: no image in it; expected a folder for each class with images in it") from None
    if isinstance(reader, ReaderImageInTar):
        return _of_part(reader, root, wanted, classes, part)
    _check_folders(root, classes)
    return FileSource(reader, reader.class_to_idx, part)


def _of_part(
    reader: ReaderImageInTar, root: Path, wanted: Sequence[str], classes: tuple[str, ...] | None, part: str
) -> FileSource:
    """Of an archive that holds several parts, the wanted one; classes by their names."""
    parts = [_part_of(sample[0].path, wanted) for sample in reader.samples]
    if found := _choose(root, parts, wanted):
        part, keep = found, np.array([name == found for name in parts])
        reader.samples, reader.targets = reader.samples[keep], reader.targets[keep]
    names = [reader.class_idx_to_name[number] for number in sorted(reader.class_idx_to_name)]
    classes = classes or tuple(names)
    _refuse_strangers(str(root), {names[t] for t in set(reader.targets.tolist())}, classes)
    numbers = {name: number for number, name in enumerate(classes)}
    reader.targets = np.array([numbers.get(name, -1) for name in names])[reader.targets]
    return FileSource(reader, numbers, part)


def _part_of(path: str, wanted: Sequence[str]) -> str:
    """The folder above the class folder that is called as a part is, at any depth; empty if there is none."""
    known = {name for names in SPLITS.values() for name in names} | set(wanted)
    return next((name for name in Path(path).parts[:-2] if name in known), "")


def _choose(where: Path, parts: Sequence[str], wanted: Sequence[str]) -> str:
    """The wanted part among those that an archive's images lie in; empty if there are none."""
    found = set(parts) - {""}
    part = next((name for name in wanted if name in found), "")
    if found and not part:
        raise DataError(f"{where}: there is no part {' or '.join(wanted)}; it has {', '.join(sorted(found))}")
    return part


def _inner(root: Path, wanted: Sequence[str]) -> Path:
    """A folder that holds nothing but one folder of parts, as archives unpack, stands for that one."""
    inside = [entry for entry in root.iterdir() if entry.is_dir()]
    known = {name for names in SPLITS.values() for name in names} | set(wanted)
    if len(inside) == 1 and inside[0].name not in known and known & {entry.name for entry in inside[0].iterdir()}:
        return inside[0]
    return root


def _check_folders(root: Path, classes: tuple[str, ...] | None) -> None:
    endings = get_img_extensions(as_set=True)
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    empty = [
        folder.name
        for folder in folders
        if not any(Path(name).suffix.lower() in endings for _, _, names in os.walk(folder) for name in names)
    ]
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise DataError(f"{root}: no image in the class folder {shown}; fill it or remove it")
    if classes and folders:
        _refuse_strangers(str(root), {folder.name for folder in folders}, classes, nested=True)


def _refuse_strangers(where: str, found: set[str], classes: tuple[str, ...], nested: bool = False) -> None:
    strangers = sorted(found - set(classes))
    if nested and not found & set(classes):
        return  # class folders deeper inside; timm's reader takes the leaves
    if strangers:
        raise DataError(
            f"{where}: the class {', '.join(strangers[:5])} is none of the {len(classes)} classes of the model or of "
            f"the training part ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
        )


def _unpack(path: Path, wanted: Sequence[str]) -> tuple[list[tuple[str, bytes]], str]:
    """Images of the archive's part `wanted`, or of all of it where it has no parts; and the part's name."""
    members = _members(path, path.stat().st_mtime_ns)
    parts = [_part_of(name, wanted) for name, _ in members]
    part = _choose(path, parts, wanted)
    chosen = [member for member, name in zip(members, parts, strict=True) if name == part or not part]
    if not chosen:
        raise DataError(f"{path}: there is no image in it; expected <split>/<class>/<image>")
    return chosen, part


@functools.lru_cache(maxsize=1)  # both parts come from one reading
def _members(path: Path, changed: int) -> list[tuple[str, bytes]]:
    endings, members, last = get_img_extensions(as_set=True), [], "its first member"
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).suffix.lower() in endings:
                    last = member.name
                    members.append((member.name.removeprefix("./"), archive.extractfile(member).read()))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the archive cannot be read past {last} ({_reason(error)}); fetch it again") from None
    return sorted(members)


def _torchvision(name: str, root: Path, part: Part) -> TorchvisionSource:
    from torchvision import datasets

    found = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "mnist": datasets.MNIST}
    if name not in found:
        raise DataError(f"--dataset torch/{name}: expected torch/{', torch/'.join(found)}")
    try:
        return TorchvisionSource(found[name](str(root), train=part == "train", download=False), name)
    except RuntimeError as error:
        raise DataError(f"--dataset torch/{name}: {root} does not hold it whole ({_reason(error)})") from None


def _read_class_map(path: str, root: Path) -> tuple[str, ...]:
    try:
        numbers = load_class_map(path, str(root))
    except (AssertionError, OSError) as error:
        raise DataError(f"--class-map {path}: cannot be read ({_reason(error)})") from None
    return tuple(sorted(numbers, key=numbers.__getitem__))
