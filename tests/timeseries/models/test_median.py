"""The read-out of least absolute errors: what wild values do to the other one, repeatability, missing values."""

import copy
import math

import torch

from timeseries.models.linear_ssm import LinearSSM, default_poles
from timeseries.models.median import WhiteRows, fit_median
from timeseries.models.ridge import fit_linear_ssm


def spiky(t=3000):
    """A daily wave with rare spikes upwards, which lift the mean and not the median."""
    generator = torch.Generator().manual_seed(0)
    x = torch.sin(2 * math.pi * torch.arange(t, dtype=torch.float64) / 24).repeat(2, 1)
    x = x + 0.05 * torch.randn(2, t, generator=generator, dtype=torch.float64)
    return x + 8 * (torch.rand(2, t, generator=generator) < 0.06)


def fitted(x, train):
    model = LinearSSM(6, *default_poles((24,), 48, harmonics=(4,)), context_length=48)
    fit_linear_ssm(model, x, train, range(2400, 2900), strengths=(1e-3,))
    return model


def absolute_error(model, x, origins):
    made = model.forecast_series(x, origins)
    return float((made - x[:, 1:].unfold(1, 6, 1)[:, origins]).abs().nanmean())


def test_it_forecasts_the_median_and_not_the_mean():
    x, train = spiky(), range(48, 2300)
    ridge = fitted(x, train)
    median = copy.deepcopy(ridge)
    fit_median(median, WhiteRows.of(median, x, train))
    later = torch.arange(2400, 2900)
    assert absolute_error(median, x, later) < 0.95 * absolute_error(ridge, x, later)
    assert (median.forecast_series(x, later) - ridge.forecast_series(x, later)).mean() < -0.1


def test_it_repeats_and_takes_missing_values():
    x, train = spiky(), range(48, 2300)
    x[0, 500:560], x[1, ::7] = math.nan, math.nan
    ridge = fitted(x, train)
    one, two = copy.deepcopy(ridge), copy.deepcopy(ridge)
    fit_median(one, WhiteRows.of(one, x, train))
    fit_median(two, WhiteRows.of(two, x, train))
    assert torch.equal(one.weight, two.weight)
    assert one.weight.isfinite().all()
    assert absolute_error(one, x, torch.arange(2400, 2900)) < absolute_error(ridge, x, torch.arange(2400, 2900))


def test_a_naive_forecast_may_stay_one():
    """Of a random walk nothing can be learned: the medians stay near the last value."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3000, generator=generator, dtype=torch.float64).cumsum(1)
    model = LinearSSM(6, *default_poles((24,), 48, harmonics=(4,)), context_length=48)
    fit_linear_ssm(model, x, range(48, 2300), range(2400, 2900), strengths=(math.inf,))
    assert not model.weight.any()
    before = absolute_error(model, x, torch.arange(2400, 2900))
    fit_median(model, WhiteRows.of(model, x, range(48, 2300)))
    assert absolute_error(model, x, torch.arange(2400, 2900)) < 1.1 * before
