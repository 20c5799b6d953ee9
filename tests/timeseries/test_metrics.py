"""Scores over all windows, and the naive forecasts."""

import math

import pytest
import torch

from timeseries.metrics import naive, score, score_means, seasonal_naive


def test_naive_and_seasonal_naive_by_hand():
    x = torch.arange(10.0).double()[None]
    origins = torch.tensor([5])
    assert naive(x, 3)(origins).tolist() == [[[5, 5, 5]]]
    assert seasonal_naive(x, 5, 4)(origins).tolist() == [[[2, 3, 4, 5, 2]]]
    assert seasonal_naive(x, 2, 4)(torch.tensor([1])).tolist() == [[[0, 0]]]  # nothing there yet: the mean


def test_missing_values_fall_back_to_the_season_before():
    x = torch.tensor([[1.0, 2.0, math.nan, 4.0, math.nan, 6.0]]).double()
    assert naive(x, 2)(torch.tensor([4])).tolist() == [[[4, 4]]]
    assert seasonal_naive(x, 2, 2)(torch.tensor([4])).tolist() == [[[4, 1]]]


def test_score_is_the_mean_over_all_windows_steps_and_series():
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).double()
    origins, h = range(19, 45), 4
    errors = torch.stack([x[:, o + 1 : o + 1 + h] - x[:, o : o + 1] for o in origins])
    scores = score(lambda series: naive(series, h), x, origins, h, block=7)
    assert scores.windows == 26
    assert scores.mse == pytest.approx(float(errors.square().mean()))
    assert scores.mae == pytest.approx(float(errors.abs().mean()))
    torch.testing.assert_close(scores.mse_by_step, errors.square().mean((0, 1)))


def test_missing_targets_do_not_count():
    x = torch.tensor([[0.0, 1.0, math.nan, 3.0]]).double()
    scores = score(lambda series: naive(series, 1), x, range(0, 3), 1)
    assert scores.mse == pytest.approx((1 + 4) / 2)
    with pytest.raises(ValueError, match="hold no observed value"):
        score(lambda series: naive(series, 1), torch.full((1, 4), math.nan).double(), range(0, 3), 1)


def test_means_of_forecasts_are_scored_as_forecasts():
    x = torch.randn(3, 60, generator=torch.Generator().manual_seed(0)).double()
    x[1, 40] = math.nan
    origins, h = range(19, 50), 4
    both = [lambda series: naive(series, h), lambda series: seasonal_naive(series, h, 5)]

    def mean(series):
        begun = [method(series) for method in both]
        return lambda rows: (begun[0](rows) + begun[1](rows)) / 2

    one, two, middle = score_means(both, [(0,), (1,), (0, 1)], x, origins, h, block=7, together=True)
    for found, method in ((one, both[0]), (two, both[1]), (middle, mean)):
        expected = score(method, x, origins, h)
        assert (found.mse, found.mae) == pytest.approx((expected.mse, expected.mae))
        assert found.both == pytest.approx(expected.mse * expected.mae)
