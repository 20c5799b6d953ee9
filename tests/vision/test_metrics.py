"""Scores against counting by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from vision.metrics import Tally


def test_scores_equal_counting_by_hand():
    logits, labels = torch.randn(50, 8), torch.randint(0, 7, (50,))
    tally = Tally(8)
    for part in range(0, 50, 17):
        tally.update(logits[part : part + 17], labels[part : part + 17])
    scores = Tally.scores(tally.sums())
    order = logits.argsort(1, descending=True)
    assert scores.images == 50
    assert scores.top1 == pytest.approx(100 * (order[:, 0] == labels).float().mean().item())
    assert scores.top5 == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).float().mean().item())
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    for c in range(7):
        assert scores.recall[c] == pytest.approx(100 * (order[labels == c, 0] == c).float().mean().item())
    assert math.isnan(scores.recall[7])


def test_sums_of_two_devices_add_up():
    logits, labels = torch.randn(20, 3), torch.randint(0, 3, (20,))
    whole, left, right = Tally(3), Tally(3), Tally(3)
    whole.update(logits, labels)
    left.update(logits[:7], labels[:7])
    right.update(logits[7:], labels[7:])
    assert Tally.scores(left.sums() + right.sums()).top1 == Tally.scores(whole.sums()).top1
    assert Tally.scores(whole.sums()).top5 == 100.0  # three classes: all are among the first five


def test_nothing_scored_is_refused():
    with pytest.raises(ValueError, match="no image was scored"):
        Tally.scores(Tally(3).sums())
