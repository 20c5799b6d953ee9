"""Text as bytes: plain files, compressed ones, JSON lines; parts for training, choosing and reporting.

    read(["notes/", "book.txt.gz"])          no parts in it: the last tenth is held out, half to choose, half to report
    read(["wikitext-103-raw"])               wiki.train.raw wiki.valid.raw wiki.test.raw (or .tokens)
    read(["the_pile"])                       train/*.jsonl.zst val.jsonl.zst test.jsonl.zst

Documents are joined by a zero byte, which text does not hold. Zstandard needs the package of that name.
Source: Merity et al. 2017 (WikiText); Gao et al. 2020, The Pile; Wang et al. 2024, MambaByte (bytes as tokens).
"""

import gzip
import importlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

PARTS = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
"""What a part is called in names of files and folders."""
TEXT = (".txt", ".md", ".rst", ".py", ".raw", ".tokens", ".tex", ".html", ".csv", ".json", ".c", ".h", ".js")
"""Endings of plain text that are taken from a folder; a file that is named itself may have any."""
HELD_OUT = 0.1
"""Share of the bytes that is held out where a corpus has no parts."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Bytes by part, uint8."""

    train: np.ndarray
    """To learn from."""
    val: np.ndarray
    """To choose by."""
    test: np.ndarray
    """To report on."""


class Windows(Dataset):
    """Sequences from random places: item i, of length + 1 bytes, is a function of i and the seed.

    Args:
        data: Bytes, uint8, more than `length`.
        length: Bytes of a sequence that are predicted.
        count: Items.
        seed: Of the places.
    """

    def __init__(self, data: np.ndarray, length: int, count: int, seed: int):
        self.data, self.length, self.count, self.seed = data, length, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        place = int(np.random.default_rng([self.seed, index]).integers(len(self.data) - self.length))
        return torch.from_numpy(self.data[place : place + self.length + 1].astype(np.int64))


def read(sources: Sequence[str], length: int, max_bytes: int) -> Corpus:
    """Read text.

    Args:
        sources: Files and folders.
        length: Bytes of a training sequence: each part must be longer.
        max_bytes: Bytes of a part to keep at most. No shapes.
    Raises:
        ValueError: A source is missing, empty or cannot be read; says which.
    """
    files = [file for source in sources for file in _files(Path(source))]
    if not files:
        raise ValueError(f"bytes: no text in {' '.join(sources) or 'nothing'}; give files or folders of text")
    by_part = {name: [file for file, part in files if part == name] for name in (*PARTS, "")}
    if by_part["train"] and (by_part["val"] or by_part["test"]):
        test = by_part["test"] or by_part["val"]
        chosen = {"train": by_part["train"], "val": by_part["val"] or test, "test": test}
        parts = {name: _joined(paths, max_bytes) for name, paths in chosen.items()}
    else:
        whole = _joined([file for file, _ in files], max_bytes)
        cut = len(whole) - int(HELD_OUT * len(whole))
        middle = cut + (len(whole) - cut) // 2
        parts = {"train": whole[:cut], "val": whole[cut:middle], "test": whole[middle:]}
    for name, part in parts.items():
        if len(part) <= length:
            raise ValueError(f"bytes: the {name} part has {len(part)} bytes, expected more than length={length}")
    return Corpus(**parts)


def _files(source: Path) -> Iterator[tuple[Path, str]]:
    """The text files of a source, in order, and the parts that they belong to, "" for none."""
    if source.is_file():
        yield source, _part_of(source.name)
    elif source.is_dir():
        for path in sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith(".")):
            if _plain_suffix(path) in (*TEXT, ".jsonl"):
                yield path, _part_of(str(path.relative_to(source)))
    else:
        raise ValueError(f"bytes: {source} is no file and no folder")


def _part_of(name: str) -> str:
    words = name.lower().replace("/", ".").replace("_", ".").replace("-", ".").split(".")
    return next((part for part, names in PARTS.items() if any(word in names for word in words)), "")


def _plain_suffix(path: Path) -> str:
    """The ending below a compression's."""
    return Path(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix


def _joined(paths: Sequence[Path], max_bytes: int) -> np.ndarray:
    kept, total = [], 0
    for path in paths:
        for document in _documents(path):
            if total + len(document) + 1 > max_bytes:
                document = document[: max(0, max_bytes - total - 1)]
            kept.append(document)
            total += len(document) + 1
            if total >= max_bytes:
                return np.frombuffer(b"\0".join(kept), np.uint8)
    return np.frombuffer(b"\0".join(kept), np.uint8)


def _documents(path: Path) -> Iterator[bytes]:
    """A plain file is one document, each JSON line is one."""
    try:
        with _opened(path) as file:
            if _plain_suffix(path) != ".jsonl":
                yield file.read()
                return
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)["text"].encode()
                except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
                    raise ValueError(f"bytes: {path}, line {number}, is no JSON object with a text") from None
    except OSError as error:
        raise ValueError(f"bytes: {path} cannot be read: {error}") from None


def _opened(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path)  # pyright: ignore[reportReturnType]
    if path.suffix == ".zst":
        try:
            zstandard = importlib.import_module("zstandard")
        except ImportError:
            raise ValueError(f"bytes: {path} needs the package zstandard (pip install zstandard)") from None
        return io.BufferedReader(zstandard.open(path, "rb"))
    return path.open("rb")
