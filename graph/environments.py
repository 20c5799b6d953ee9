"""Local environments of nodes as hashed counts, and plain learners that read them.

Shapes: n nodes, e edges, g graphs, b buckets, t tasks or targets.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch_geometric.data import Batch, Data

from ssmcore.array_types import Int

from .data import GraphSet
from .metrics import evaluate
from .noise import mix
from .precompute import topology_of
from .structure import fingerprint
from .topology import Topology

_CHUNK = 500  # graphs at a time


def environments(topology: Topology, radius: int) -> Int[Tensor, "n radii"]:
    """An identifier of what lies within 0, 1, ..., radius steps of each node.

    That of radius r hashes the one of radius r - 1 and the multiset of (edge features, their identifiers) around; sums
    of hashes wrap, so their order does not matter. Equal environments get equal identifiers in every graph.

    Args:
        topology: The graphs, with raw features of nodes, and of edges where they have some.
        radius: Steps.
    Returns:
        int64, shape (n, radius + 1). Raises nothing.
    Source: Rogers & Hahn 2010, Extended-connectivity fingerprints; Shervashidze et al. 2011.
    """
    source, target = topology.edge_index
    edge = mix(fingerprint(topology.edge_features, source) + 1)
    found = [mix(fingerprint(topology.features, topology.batch))]
    for _ in range(radius):
        around = torch.zeros_like(found[0]).index_add(0, target, mix(found[-1][source] + edge))
        found.append(mix(3 * found[-1] + around))
    return torch.stack(found, 1)


def environment_counts(graphs: Sequence[Data], radius: int, buckets: int) -> ndarray:
    """How often each bucket of identifiers occurs in each graph, float32, shape (g, b).

    Raises:
        GraphError: The graphs cannot be.
    """
    rows = []
    for first in range(0, len(graphs), _CHUNK):
        part = list(graphs[first : first + _CHUNK])
        topology = topology_of(Batch.from_data_list(part))
        bucket = environments(topology, radius) % buckets  # not negative: the sign of % is the divisor's
        place = topology.batch[:, None] * buckets + bucket
        counts = torch.bincount(place.flatten(), minlength=len(part) * buckets)
        rows.append(counts.view(len(part), buckets).float().numpy())
    return np.concatenate(rows)


def fit_and_score(
    data: GraphSet, counts: ndarray, learner: Literal["trees", "linear"], rounds: int, seed: int
) -> dict[str, float]:
    """Fit on the training part; score validation and test by the set's metric.

    Args:
        data: Graphs with their split.
        counts: Features, shape (g, b).
        learner: See `graph.fingerprints`.
        rounds: Boosting rounds, or iterations of the solver.
        seed: Of the trees.
    Returns:
        Scores of `validation` and `test`.
    Raises:
        GraphError: There is nothing to score.
    """
    assert data.parts is not None
    if learner == "linear":
        counts = np.log1p(counts)
    y = np.concatenate([np.atleast_1d(g.y.numpy()) for g in data.graphs])
    classes = "cross_entropy" in data.schema.loss
    y = y.reshape(len(counts), -1)
    train = data.parts["train"]
    counts = counts[:, counts[train].any(0)]  # a bucket that no training graph fills teaches nothing, and costs time
    found = [_predict(counts, y[:, task], train, data, learner, rounds, seed) for task in range(y.shape[1])]
    scores, truth = (found[0], y[:, 0]) if classes else (np.concatenate(found, 1), y)
    return {
        part: evaluate(data.schema.metric, scores[data.parts[part]], truth[data.parts[part]])
        for part in ("validation", "test")
    }


def _predict(
    counts: ndarray, y: ndarray, train: list[int], data: GraphSet, learner: str, rounds: int, seed: int
) -> ndarray:
    """Predictions for every graph: probabilities (g, classes), of the second class (g, 1), or numbers (g, 1)."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from threadpoolctl import threadpool_limits

    known = np.array([i for i in train if not np.isnan(float(y[i]))])
    loss = data.schema.loss
    numbers = loss in ("mae", "mse")
    if learner == "trees":
        kind = "absolute_error" if loss == "mae" else "squared_error"
        options = {"max_iter": rounds, "random_state": seed, "early_stopping": False}
        model = (
            HistGradientBoostingRegressor(loss=kind, **options)
            if numbers
            else HistGradientBoostingClassifier(**options)
        )
    else:
        model = Ridge() if numbers else LogisticRegression(max_iter=rounds)
    with threadpool_limits(torch.get_num_threads(), user_api="openmp"):  # as many as everything else here uses
        return _fitted(model, counts, y, known, data)


def _fitted(model, counts: ndarray, y: ndarray, known: ndarray, data: GraphSet) -> ndarray:
    """Fit on the known answers; predictions as `_predict`."""
    loss = data.schema.loss
    if loss in ("mae", "mse"):
        return model.fit(counts[known], y[known]).predict(counts)[:, None]
    kinds = max(2, data.schema.out) if "cross_entropy" in loss else 2
    chances, seen = np.zeros((len(counts), kinds)), y[known].astype(int)
    if len(np.unique(seen)) > 1:  # a task that knows one class only says nothing
        chances[:, np.unique(seen)] = model.fit(counts[known], seen).predict_proba(counts)
    return chances if "cross_entropy" in loss else chances[:, 1:]
