"""The six data sets: from the original files, or drawn. One `Data` for each, whatever it was made of.

listops     basic_train.tsv basic_val.tsv basic_test.tsv                           (lra_release/listops-1000)
text        train/pos/*.txt train/neg/*.txt test/pos/*.txt test/neg/*.txt           (aclImdb)
retrieval   new_aan_pairs.train.tsv new_aan_pairs.eval.tsv new_aan_pairs.test.tsv   (lra_release/.../tsv_data)
image       cifar-10-batches-py/                                                    (as torchvision unpacks CIFAR-10)
pathfinder  pathfinder32/curv_contour_length_14/imgs metadata                       (lra_release/.../pathfinder32)

A file SHA256SUMS beside them (as `sha256sum` writes it) is checked, if there is one.
Source: Tay et al. 2021, Long Range Arena, sec. 2.2; the pipeline of Gu et al. 2022 (S4) for tokens and splits, but for
text, where a tenth of the training part is held out: there the test part was used to choose.
"""

import csv
import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, random_split
from tqdm import tqdm

from ..listops import VOCABULARY, expression
from ..pathfinder import Pathfinder

PAD, UNKNOWN, END = 0, 1, 2
SPLIT_SEED = 42
"""Of the splits that the files do not make themselves, as in the S4 pipeline."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A task's parts. Item i of one is (sequence, label): tokens (l,) int64, pixels (l, 1) float, or two of tokens."""

    train: Dataset
    """To learn from."""
    val: Dataset
    """To choose by."""
    test: Dataset
    """To report on."""
    tokens: int
    """Kinds of tokens; 0 for pixels."""
    classes: int
    """Kinds of labels."""
    pairs: bool = False
    """Whether an item is two sequences."""


class Encoded(Dataset):
    """Sequences of small numbers, kept as arrays, and their labels.

    Args:
        rows: One or two arrays each.
        labels: One each.
    """

    def __init__(self, rows: Sequence[tuple[np.ndarray, ...]], labels: Sequence[int]):
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, ...], int]:
        return tuple(torch.from_numpy(part.astype(np.int64)) for part in self.rows[index]), self.labels[index]


class Pixels(Dataset):
    """Grey images, row by row, as numbers around 0.

    Args:
        read: From a number to an image, uint8 (h, w).
        labels: One each.
        mean: Subtracted, as a part of 255.
        std: Divided by.
    """

    def __init__(self, read: Callable[[int], np.ndarray], labels: Sequence[int], mean: float, std: float):
        self.read, self.labels, self.mean, self.std = read, labels, mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, ...], int]:
        grey = torch.from_numpy(self.read(index).astype(np.float32)).flatten()[:, None]
        return ((grey / 255 - self.mean) / self.std,), self.labels[index]


def load(task: str, folder: Path, length: int, limit: int | None = None) -> Data:
    """The data of a task.

    Args:
        task: listops, text, retrieval, image, pathfinder or pathx.
        folder: Of the files; see the head of this file.
        length: Tokens of a text at most, its end token among them.
        limit: Use only so many items of each part.
    Raises:
        ValueError: A file is missing or not what it should be; says which.
    """
    check_sums(folder)
    data = LOADERS[task](folder, length)
    if limit is None:
        return data
    parts = (data.train, data.val, data.test)
    cut = [Subset(part, range(min(limit, len(part)))) for part in parts]  # pyright: ignore[reportArgumentType]
    return Data(train=cut[0], val=cut[1], test=cut[2], tokens=data.tokens, classes=data.classes, pairs=data.pairs)


def check_sums(folder: Path) -> int:
    """Compare files with SHA256SUMS beside them.

    Args:
        folder: That holds both.
    Returns:
        How many files were compared; 0 where there is no such list. No shapes.
    Raises:
        ValueError: A file is missing or differs.
    """
    listed = folder / "SHA256SUMS"
    if not listed.is_file():
        return 0
    lines = [line.split(maxsplit=1) for line in listed.read_text().splitlines() if line.strip()]
    for digest, name in lines:
        path = folder / name.lstrip("*")
        if not path.is_file():
            raise ValueError(f"lra: {listed} lists {path.name}, which is not there")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest.lower():
            raise ValueError(f"lra: {path} has SHA-256 {found}, expected {digest} from {listed.name}")
    return len(lines)


def listops(folder: Path, length: int) -> Data:
    """ListOps from its three tables; parentheses say nothing and are dropped. Raises ValueError as `load`."""
    index = {token: i for i, token in enumerate(VOCABULARY)}

    def part(name: str) -> Encoded:
        rows, labels = [], []
        for source, target in _table(folder / f"basic_{name}.tsv", ("Source", "Target")):
            words = re.sub(r"[()]", " ", source).split()[: length - 1]
            rows.append((np.array([*(index.get(w, UNKNOWN) for w in words), END], np.uint8),))
            labels.append(int(target))
        return Encoded(rows, labels)

    return Data(train=part("train"), val=part("val"), test=part("test"), tokens=len(VOCABULARY), classes=10)


def text(folder: Path, length: int) -> Data:
    """Film reviews by characters; those that come fewer than 15 times are unknown. Raises ValueError as `load`."""
    read = {name: _reviews(folder, name) for name in ("train", "test")}
    characters = _characters((words for words, _ in read["train"]), length - 1, least=15)
    parts = {
        name: Encoded([(_encoded(words, characters, length),) for words, _ in items], [label for _, label in items])
        for name, items in read.items()
    }
    rest = len(parts["train"]) // 10
    train, val = _split(parts["train"], [len(parts["train"]) - rest, rest])
    return Data(train=train, val=val, test=parts["test"], tokens=len(characters) + 3, classes=2)


def retrieval(folder: Path, length: int) -> Data:
    """Pairs of papers by characters: does one cite the other? Raises ValueError as `load`."""
    names = {"train": "train", "val": "eval", "test": "test"}
    read = {part: list(_table(folder / f"new_aan_pairs.{name}.tsv", None)) for part, name in names.items()}
    for part, rows in read.items():
        if wrong := next((i for i, row in enumerate(rows) if len(row) != 5), None):
            raise ValueError(f"lra: row {wrong + 1} of {part} has {len(rows[wrong])} fields, expected 5")
    characters = _characters((words for row in read["train"] for words in row[3:]), length - 1, least=1)
    parts = {
        part: Encoded(
            [tuple(_encoded(words, characters, length) for words in row[3:]) for row in rows],
            [int(float(row[0])) for row in rows],
        )
        for part, rows in read.items()
    }
    return Data(**parts, tokens=len(characters) + 3, classes=2, pairs=True)


def image(folder: Path, length: int) -> Data:
    """CIFAR-10 in grey, row by row; torchvision checks the files. Raises ValueError as `load`."""
    from torchvision.datasets import CIFAR10

    try:
        parts = {name: CIFAR10(str(folder), train=name == "train", download=False) for name in ("train", "test")}
    except RuntimeError as error:
        raise ValueError(f"lra: {folder} holds no whole cifar-10-batches-py: {error}") from None

    def pixels(part: CIFAR10) -> Pixels:
        return Pixels(
            lambda i: np.asarray(Image.fromarray(part.data[i]).convert("L")), part.targets, 122.6 / 255, 61.0 / 255
        )

    train = pixels(parts["train"])
    rest = len(train) // 10
    learn, val = _split(train, [len(train) - rest, rest])
    return Data(train=learn, val=val, test=pixels(parts["test"]), tokens=0, classes=10)


def pathfinder(folder: Path, length: int) -> Data:
    """Pathfinder's images of the longest contours, split 8 : 1 : 1; empty files are left out. Raises ValueError."""
    part = folder if (folder / "metadata").is_dir() else folder / "curv_contour_length_14"
    tables = sorted((part / "metadata").glob("*.npy"), key=lambda path: int(path.stem))
    if not tables:
        raise ValueError(f"lra: {part} has no metadata/*.npy; give the folder that holds curv_contour_length_14")
    paths, labels = [], []
    for line in (line for table in tables for line in table.read_text().splitlines()):
        where, name, _, label, *_ = line.split()
        path = part / where / name
        if not path.is_file():
            raise ValueError(f"lra: {path} is not there, but its metadata is")
        if path.stat().st_size:
            paths.append(path)
            labels.append(int(label))
    whole = Pixels(lambda i: np.asarray(Image.open(paths[i]).convert("L")), labels, 0.5, 0.5)
    tenth = len(whole) // 10
    train, val, test = _split(whole, [len(whole) - 2 * tenth, tenth, tenth])
    return Data(train=train, val=val, test=test, tokens=0, classes=2)


LOADERS: dict[str, Callable[[Path, int], Data]] = {
    "listops": listops,
    "text": text,
    "retrieval": retrieval,
    "image": image,
    "pathfinder": pathfinder,
    "pathx": pathfinder,
}


def draw_listops(folder: Path, counts: Sequence[int], seed: int, longest: int = 2000, shortest: int = 500) -> None:
    """Write new ListOps tables, in the distribution of the original ones: no expression twice.

    Args:
        folder: Where; tables that are there are left alone.
        counts: Of train, val and test.
        seed: Of the draws.
        longest: Tokens stay below that.
        shortest: And above that. No shapes.
    Raises:
        OSError: The folder cannot be written.
    """
    rng, seen = random.Random(seed), set()
    files = [folder / f"basic_{name}.tsv" for name in ("train", "val", "test")]
    if all(file.is_file() for file in files):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=sum(counts), unit="list", desc="drawing", disable=None) as bar:
        for file, count in zip(files, counts, strict=True):
            lines = []
            while len(lines) < count:
                tokens, value = expression(rng, longest)
                line = " ".join(tokens)
                if shortest < len(tokens) < longest and line not in seen:
                    seen.add(line)
                    lines.append(f"{line}\t{value}")
                    bar.update()
            part = file.with_suffix(".part")
            part.write_text("\n".join(["Source\tTarget", *lines]) + "\n")
            part.replace(file)


def draw_pathfinder(folder: Path, count: int, size: int, seed: int) -> None:
    """Write new Pathfinder images of the longest contours; a stopped call goes on.

    Args:
        folder: Where; curv_contour_length_14 is made in it.
        count: Images.
        size: Height and width.
        seed: Of the draws.
    Raises:
        ValueError: No such size.
    """
    images = Pathfinder(size, seed).write(folder / "curv_contour_length_14", count)
    for _ in tqdm(images, total=count, unit="image", desc="drawing", disable=None):
        pass


def _table(path: Path, head: tuple[str, ...] | None) -> Iterable[list[str]]:
    """Rows of a tab-separated file, without its head where it has one."""
    if not path.is_file():
        raise ValueError(f"lra: {path} is not there; give the unpacked folder of the Long Range Arena release")
    csv.field_size_limit(1 << 30)
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file, delimiter="\t")
        if head is not None and tuple(first := next(rows, [])) != head:
            raise ValueError(f"lra: {path} starts with {first}, expected the columns {', '.join(head)}")
        yield from rows


def _reviews(folder: Path, part: str) -> list[tuple[str, int]]:
    found = []
    for label, name in enumerate(("neg", "pos")):
        files = sorted((folder / part / name).glob("*.txt"))
        if not files:
            raise ValueError(f"lra: {folder / part / name} has no *.txt; give the folder that aclImdb unpacks to")
        found += [(file.read_text(encoding="utf-8"), label) for file in files]
    return found


def _characters(texts: Iterable[str], longest: int, least: int) -> dict[str, int]:
    """Characters that come often enough -> their tokens, the most frequent first."""
    counts: Counter[str] = Counter()
    for words in texts:
        counts.update(words[:longest])
    ranked = sorted((c for c, n in counts.items() if n >= least), key=lambda c: (-counts[c], c))
    return {c: i + 3 for i, c in enumerate(ranked)}


def _encoded(words: str, characters: dict[str, int], length: int) -> np.ndarray:
    return np.array([*(characters.get(c, UNKNOWN) for c in words[: length - 1]), END], np.uint16)


def _split(whole: Dataset, sizes: Sequence[int]) -> list[Subset]:
    return random_split(whole, sizes, generator=torch.Generator().manual_seed(SPLIT_SEED))
