"""Ten-fold protocols of the TU sets: which graphs are trained on, chosen by, and scored.

A   GIN's (Xu et al. 2019): the score of every test fold after every epoch is averaged over the folds, and the best
    epoch of that curve is reported. The test folds choose the epoch, so it is optimistic.
B   Errica et al. 2020: inside each training part a tenth is held out; settings and epoch are chosen by it, and the
    test fold is touched once, by the chosen network.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Fold:
    """One of ten."""

    number: int
    train: list[int]
    """Graphs to train on, and under protocol B to choose by."""
    test: list[int]
    """Graphs to score."""


def ten_folds(labels: np.ndarray, seed: int) -> list[Fold]:
    """Stratified folds, as powerful-gnns makes them for the same seed.

    Args:
        labels: Class of each graph, shape (graphs,).
        seed: Of the shuffle.
    Raises:
        ValueError: A class has fewer than ten graphs.
    """
    from sklearn.model_selection import StratifiedKFold

    splits = StratifiedKFold(10, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels)
    return [Fold(i, train.tolist(), test.tolist()) for i, (train, test) in enumerate(splits)]


def hold_out(chosen: Sequence[int], labels: np.ndarray, seed: int) -> tuple[list[int], list[int]]:
    """A tenth of some graphs, class by class, as validation part.

    Args:
        chosen: The graphs.
        labels: Class of every graph, shape (graphs,).
        seed: Of the choice.
    Returns:
        The rest and the tenth.
    """
    from sklearn.model_selection import train_test_split

    rest, tenth = train_test_split(list(chosen), test_size=0.1, random_state=seed, stratify=labels[list(chosen)])
    return sorted(rest), sorted(tenth)


def curve(metrics: Path) -> list[float]:
    """The validation score after every epoch, from a run's metrics.csv. No shapes, raises OSError without the file."""
    with metrics.open(newline="") as file:
        return [float(row["val_score"]) for row in csv.DictReader(file) if row.get("val_score")]


@dataclass(frozen=True)
class Averaged:
    """What protocol A reports."""

    epoch: int
    """The chosen epoch, from 0."""
    scores: list[float]
    """Of each fold at that epoch."""
    last: list[float]
    """Of each fold after the last epoch: no choice at all."""


def choose_epoch(curves: list[list[float]]) -> Averaged:
    """The best epoch of the mean curve over folds, the first of equals. Takes no arrays.

    Raises:
        ValueError: There is no curve, or curves differ in length.
    """
    lengths = [len(c) for c in curves]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(f"choose_epoch: curves of {lengths} epochs, expected equal ones")
    table = np.array(curves)
    best = int(table.mean(0).argmax())
    return Averaged(best, table[:, best].tolist(), table[:, -1].tolist())
