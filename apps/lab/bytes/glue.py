"""GLUE from local copies: sentences, or pairs of them, as bytes; and how each task is scored.

    data = load("MRPC", Path("glue/MRPC"), 512)        the files that the GLUE download makes: train.tsv dev.tsv

A pair is joined by a zero byte. The labels of the official test part are not public, so the dev part is reported on
and a tenth of the training part is held out to choose by. STS-B's target is a number; all else are classes.
Source: Wang et al. 2019, GLUE: a multi-task benchmark for natural language understanding.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor
from torch.utils.data import Dataset, random_split

from ssmcore.registry import resolve

SPLIT_SEED = 42
"""Of the tenth that is held out."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a task's columns are, and how it is scored."""

    text: tuple[str | int, ...]
    """One or two columns, by name, or by place where the file has no head."""
    label: str | int
    """The column of the answer."""
    labels: tuple[str, ...]
    """Its values in order; none for a number."""
    score: str
    """What is reported: accuracy, f1, matthews or correlation (the mean of Pearson's and Spearman's)."""
    dev: str = "dev.tsv"
    """The file that is reported on."""


BINARY, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
THREE = ("entailment", "neutral", "contradiction")
TASKS = {
    "CoLA": Columns(text=(3,), label=1, labels=BINARY, score="matthews"),
    "SST-2": Columns(text=("sentence",), label="label", labels=BINARY, score="accuracy"),
    "MRPC": Columns(text=("#1 String", "#2 String"), label="Quality", labels=BINARY, score="f1"),
    "STS-B": Columns(text=("sentence1", "sentence2"), label="score", labels=(), score="correlation"),
    "QQP": Columns(text=("question1", "question2"), label="is_duplicate", labels=BINARY, score="f1"),
    "MNLI": Columns(
        text=("sentence1", "sentence2"), label="gold_label", labels=THREE, score="accuracy", dev="dev_matched.tsv"
    ),
    "QNLI": Columns(text=("question", "sentence"), label="label", labels=ENTAILMENT, score="accuracy"),
    "RTE": Columns(text=("sentence1", "sentence2"), label="label", labels=ENTAILMENT, score="accuracy"),
    "WNLI": Columns(text=("sentence1", "sentence2"), label="label", labels=BINARY, score="accuracy"),
}
"""By the names of the benchmark."""


class Sentences(Dataset):
    """Bytes (l,) and their answers: an integer class, or a number.

    Args:
        rows: Bytes.
        answers: One each.
    """

    def __init__(self, rows: Sequence[bytes], answers: Sequence[float]):
        self.rows, self.answers = rows, answers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, ...], float]:
        return (torch.tensor(list(self.rows[index])),), self.answers[index]


def load(name: str, folder: Path, length: int) -> tuple[Dataset, Dataset, Dataset]:
    """Training, validation and reported part of a task.

    Args:
        name: A key of TASKS.
        folder: Of its files.
        length: Bytes at most; longer ones lose their beginning, so that both sentences of a pair are seen.
    Raises:
        ValueError: No such task, or a file is missing or has other columns.
    """
    task = resolve(name, TASKS, "GLUE task")
    whole, reported = (_read(task, folder / file, length) for file in ("train.tsv", task.dev))
    rest = max(1, len(whole) // 10)
    train, val = random_split(whole, [len(whole) - rest, rest], generator=torch.Generator().manual_seed(SPLIT_SEED))
    return train, val, reported


def score(name: str, answers: np.ndarray, truth: np.ndarray) -> float:
    """What the benchmark reports of a task, between -1 and 1.

    Args:
        name: A key of TASKS.
        answers: Classes, or numbers, shape (n,).
        truth: The same.
    Raises:
        ValueError: No such task.
    """
    return float(SCORES[resolve(name, TASKS, "GLUE task").score](truth, answers))


def _correlation(truth: np.ndarray, answers: np.ndarray) -> float:
    pairs = (scipy.stats.pearsonr(answers, truth), scipy.stats.spearmanr(answers, truth))
    return float(np.mean([np.nan_to_num(pair.statistic) for pair in pairs]))


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews": matthews_corrcoef,
    "correlation": _correlation,
}
"""By name."""


def _read(task: Columns, path: Path, length: int) -> Sentences:
    if not path.is_file():
        raise ValueError(f"glue: {path} is not there; give the task's folder of the GLUE download")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    columns = (*task.text, task.label)
    if isinstance(task.label, str):
        head, rows = rows[0], rows[1:]
        head = [name.lstrip("\ufeff") for name in head]
        if missing := [name for name in columns if name not in head]:
            raise ValueError(f"glue: {path} has no column {missing[0]!r}; it has {', '.join(head)}")
        columns = tuple(head.index(str(name)) for name in columns)
    texts, answers = [], []
    for number, row in enumerate(rows, 1):
        if max(map(int, columns)) >= len(row):
            raise ValueError(f"glue: {path}, row {number}, has {len(row)} fields")
        *sentences, answer = (row[int(place)] for place in columns)
        if task.labels and answer not in task.labels:
            continue  # MNLI marks sentences without agreement by "-"
        texts.append("\0".join(sentences).encode()[-length:])
        answers.append(task.labels.index(answer) if task.labels else float(answer))
    return Sentences(texts, answers)
