"""The score of each data set's protocol, from predictions and answers of a whole part.

Shapes: m things scored (graphs, nodes or pairs), c classes, t tasks or targets.
"""

import math

import numpy as np
from numpy import ndarray

from .checks import GraphError
from .config import Metric


def accuracy(scores: ndarray, y: ndarray) -> float:
    """Share of right classes; scores (m, c), y (m,)."""
    return float((scores.argmax(1) == y).mean())


def weighted_accuracy(scores: ndarray, y: ndarray) -> float:
    """Mean of the classes' own accuracies, over classes that occur (PATTERN, CLUSTER); scores (m, c), y (m,)."""
    right = scores.argmax(1) == y
    return float(np.mean([right[y == k].mean() for k in np.unique(y)]))


def macro_f1(scores: ndarray, y: ndarray) -> float:
    """Mean of the classes' F1, over classes that occur or are predicted; scores (m, c), y (m,)."""
    from sklearn.metrics import f1_score

    return float(f1_score(y, scores.argmax(1), average="macro", zero_division=0))


def average_precision(scores: ndarray, y: ndarray) -> float:
    """Mean over tasks of the average precision; scores and y (m, t), y in {0, 1} or NaN where not known.

    Tasks without a positive or without a negative do not count.
    """
    from sklearn.metrics import average_precision_score

    return _over_tasks(average_precision_score, scores, y)


def roc_auc(scores: ndarray, y: ndarray) -> float:
    """Mean over tasks of the area under the ROC curve; as average_precision."""
    from sklearn.metrics import roc_auc_score

    return _over_tasks(roc_auc_score, scores, y)


def mae(scores: ndarray, y: ndarray) -> float:
    """Mean absolute error over things and targets; scores and y (m, t)."""
    return float(np.abs(scores - y).mean())


def log10_mse(scores: ndarray, y: ndarray) -> float:
    """Decimal logarithm of the mean squared error; scores and y (m, t)."""
    return math.log10(max(float(np.square(scores - y).mean()), 1e-30))


METRICS = {
    "accuracy": accuracy,
    "weighted_accuracy": weighted_accuracy,
    "macro_f1": macro_f1,
    "ap": average_precision,
    "roc_auc": roc_auc,
    "mae": mae,
    "log10_mse": log10_mse,
}
"""The ranks of pairs (mrr_raw, mrr_filtered) are not among them: they need the graphs; see `reciprocal_ranks`."""


def evaluate(metric: Metric, scores: ndarray, y: ndarray) -> float:
    """A score by its name; shapes as the metric's own.

    Raises:
        GraphError: There is nothing to score.
    """
    if not len(y):
        raise GraphError(f"{metric}: there is no answer to compare with")
    return METRICS[metric](scores, y)


def reciprocal_ranks(similarity: ndarray, pairs: ndarray, filtered: bool) -> ndarray:
    """For each true pair of a graph, 1 / rank of its tail among all nodes, by similarity to its head.

    Two protocols, whose numbers must not stand in one column: raw ranks against all nodes, the head and other true
    tails among them; filtered leaves out the head itself and the other true tails. A tie counts half.

    Args:
        similarity: Score of (head, tail), shape (n, n).
        pairs: True heads and tails, shape (2, m).
        filtered: Which protocol.
    Returns:
        Shape (m,).
    Source: Dwivedi et al. 2022, Long range graph benchmark (raw); Tönshoff et al. 2023, Where did the gap go?
    """
    heads, tails = pairs
    true = similarity[heads, tails]
    scores = similarity[heads].copy()
    if filtered:
        known = np.zeros_like(similarity, dtype=bool)
        known[heads, tails] = True
        np.fill_diagonal(known, True)
        scores[known[heads]] = -np.inf
        scores[np.arange(len(heads)), tails] = true
    above, equal = (scores > true[:, None]).sum(1), (scores == true[:, None]).sum(1) - 1
    return 1 / (1 + above + equal / 2)


def _over_tasks(score, scores: ndarray, y: ndarray) -> float:
    found = []
    for column in range(y.shape[1]):
        known = ~np.isnan(y[:, column])
        truth = y[known, column]
        if len(np.unique(truth)) == 2:
            found.append(score(truth, scores[known, column]))
    if not found:
        raise GraphError("no task has both a positive and a negative answer")
    return float(np.mean(found))
