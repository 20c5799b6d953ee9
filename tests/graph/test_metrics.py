"""Scores against definitions worked out by hand."""

import numpy as np
import pytest
import torch

from graph.batches import by_size
from graph.checks import GraphError
from graph.config import Schema
from graph.metrics import METRICS, evaluate, reciprocal_ranks
from graph.task import loss_of, score

CLASSES = np.array([[3.0, 1, 0], [0, 2, 1], [5, 1, 2], [0, 1, 9]])


def test_accuracies():
    y = np.array([0, 1, 1, 1])
    assert METRICS["accuracy"](CLASSES, y) == 0.5
    assert METRICS["weighted_accuracy"](CLASSES, y) == pytest.approx((1 + 1 / 3) / 2)
    # Class 0: precision 1/2, recall 1; class 1: 1 and 1/3; class 2: predicted once, never true.
    assert METRICS["macro_f1"](CLASSES, y) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_ranked_scores_leave_out_what_is_not_known():
    scores = np.array([[0.9, 1], [0.8, 2], [0.7, 3], [0.6, 4]])
    y = np.array([[1, np.nan], [0, np.nan], [1, np.nan], [0, 1.0]])
    assert METRICS["ap"](scores, y) == pytest.approx((1 + 2 / 3) / 2)
    assert METRICS["roc_auc"](scores, y) == pytest.approx(0.75)
    with pytest.raises(GraphError, match="no task has both"):
        METRICS["ap"](scores, np.ones((4, 2)))


def test_errors():
    a, b = np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]])
    assert METRICS["mae"](a, b) == 1.0
    assert METRICS["log10_mse"](a, b) == pytest.approx(np.log10(2))
    with pytest.raises(GraphError, match="no answer"):
        evaluate("mae", np.zeros((0, 1)), np.zeros((0, 1)))


def test_ranks_raw_and_filtered_are_two_numbers():
    similarity = np.array([[9.0, 5, 4, 3], [0, 0, 0, 0], [1, 2, 8, 3], [0, 0, 0, 0]])
    pairs = np.array([[0, 0, 2], [2, 3, 1]])
    assert reciprocal_ranks(similarity, pairs, filtered=False).tolist() == [1 / 3, 1 / 4, 1 / 3]
    assert reciprocal_ranks(similarity, pairs, filtered=True).tolist() == [1 / 2, 1 / 2, 1 / 2]
    tied = reciprocal_ranks(np.zeros((3, 3)), np.array([[0], [1]]), filtered=True)
    assert tied.tolist() == [1 / 1.5]  # itself left out, one tie: half a rank


def test_unasked_answers_do_not_count():
    schema = Schema(node=1, out=2, level="node")
    seen = {0: (np.array([[1.0, 0], [1, 0]]), np.array([0, -1])), 1: (np.array([[1.0, 0]]), np.array([1]))}
    assert score(schema, seen) == 0.5
    logits, y = torch.tensor([[2.0, 0], [0, 5]]), torch.tensor([0, -1])
    torch.testing.assert_close(loss_of(schema, logits, y), torch.nn.functional.cross_entropy(logits[:1], y[:1]))
    assert loss_of(schema, logits, torch.tensor([-1, -1])) == 0
    numbers = Schema(node=1, out=1, loss="mae", metric="mae")
    truth = torch.tensor([[1.0], [torch.nan]])
    assert loss_of(numbers, torch.zeros(2, 1), truth) == 1


def test_weighted_loss_is_that_of_the_benchmark():
    """Weights are the share of the other classes in the batch."""
    schema = Schema(node=1, out=3, loss="weighted_cross_entropy", metric="weighted_accuracy")
    logits, y = torch.randn(4, 3), torch.tensor([0, 0, 0, 1])
    weights = torch.tensor([1 / 4, 3 / 4, 0])
    expected = torch.nn.functional.cross_entropy(logits, y, weight=weights)
    torch.testing.assert_close(loss_of(schema, logits, y), expected)
    assert loss_of(schema, logits, torch.zeros(4).long()).isfinite()


def test_batches_of_like_size():
    sizes = np.random.default_rng(0).integers(1, 500, 1000).tolist()
    indices = torch.randperm(1000).tolist()
    arranged = by_size(indices, torch.Generator().manual_seed(0), sizes=sizes, batch_size=32)
    assert sorted(arranged) == list(range(1000))

    def padding(order):
        batches = [order[i : i + 32] for i in range(0, 1000, 32)]
        return sum(max(sizes[i] for i in b) * len(b) for b in batches) / sum(sizes)

    assert padding(indices) > 1.7
    assert padding(arranged) < 1.15
    assert arranged != by_size(indices, torch.Generator().manual_seed(1), sizes=sizes, batch_size=32)
