"""Read-outs of each series' own: they start as the shared one, learn what that cannot say, and are averaged exactly."""

import copy
import math

import pytest
import torch

from timeseries.models import own_read_out
from timeseries.models.linear_ssm import LinearSSM, default_poles
from timeseries.models.median import WhiteRows, fit_median
from timeseries.models.own_read_out import OwnReadOut, average, fit_own_read_out
from timeseries.models.ridge import fit_linear_ssm

TRAIN, LATER = range(48, 3300), torch.arange(3400, 3900)


def clock(t):
    angle = 2 * math.pi / 24 * torch.arange(t, dtype=torch.float64)
    return torch.stack([angle.cos(), (2 * angle).cos(), angle.sin(), (2 * angle).sin()], 1)


def autoregression(weights, seed=0):
    """x[t + 1] = weights[:, t] x[t] + noise, shape (c, t)."""
    noise = torch.randn(weights.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = [noise[:, 0]]
    for t in range(1, weights.shape[1]):
        x.append(weights[:, t - 1] * x[-1] + noise[:, t])
    return torch.stack(x, 1)


def fitted(x):
    model = LinearSSM(4, *default_poles((24,), 48, harmonics=(4,)), context_length=48)
    fit_linear_ssm(model, x, TRAIN, range(3400, 3900), strengths=(1e-3,))
    rows = WhiteRows.of(model, x, TRAIN)
    fit_median(model, rows)
    return model, rows


def error(made, x):
    return float((made - x[:, 1:].unfold(1, 4, 1)[:, LATER]).abs().nanmean())


@pytest.fixture
def bold(monkeypatch):
    """At the careful rate, the 80 steps that so few rows get go only part of the way."""
    monkeypatch.setattr(own_read_out, "RATE", 1e-2)


def test_series_that_differ_get_read_outs_that_differ(bold):
    x = autoregression(torch.tensor([[0.9], [-0.8]], dtype=torch.float64).expand(2, 4000))
    shared, rows = fitted(x)
    own = fit_own_read_out(shared, rows, clock(4000)[:, :0])
    assert error(own.from_origins(x, clock(4000)[:, :0])(LATER), x) < 0.96 * error(shared.forecast_series(x, LATER), x)


def test_it_follows_the_hour(bold):
    hour = torch.arange(4000) % 24
    x = autoregression(torch.where(hour < 12, 0.95, -0.6).double().expand(2, -1))
    shared, rows = fitted(x)
    without = fit_own_read_out(shared, rows, clock(4000)[:, :0]).from_origins(x, clock(4000)[:, :0])(LATER)
    moving = fit_own_read_out(shared, rows, clock(4000)).from_origins(x, clock(4000))(LATER)
    assert error(moving, x) < 0.95 * error(without, x)


def test_it_repeats_and_takes_missing_values():
    x = autoregression(torch.tensor([[0.9], [-0.8]], dtype=torch.float64).expand(2, 4000))
    x[0, 500:700], x[1, ::5] = math.nan, math.nan
    shared, rows = fitted(x)
    one, two = (fit_own_read_out(shared, rows, clock(4000)) for _ in range(2))
    assert torch.equal(one.own, two.own)
    assert one.from_origins(x, clock(4000))(LATER).isfinite().all()


def test_new_it_is_the_shared_read_out():
    x = autoregression(torch.full((3, 4000), 0.7, dtype=torch.float64))
    shared, _ = fitted(x)
    own = OwnReadOut(shared, 3, 4)
    assert torch.allclose(own.from_origins(x, clock(4000))(LATER), shared.forecast_series(x, LATER), atol=1e-12)


@pytest.mark.parametrize("with_own", [False, True])
def test_an_average_forecasts_the_mean_of_the_forecasts(with_own):
    x = autoregression(torch.full((2, 4000), 0.7, dtype=torch.float64))
    one, rows = fitted(x)
    two = copy.deepcopy(one)
    two.weight.mul_(0.5)
    two.bias.add_(1.0)
    made = [one.forecast_series(x, LATER), two.forecast_series(x, LATER)]
    members = [one, two]
    if with_own:
        members.append(fit_own_read_out(one, rows, clock(4000)))
        made.append(members[-1].from_origins(x, clock(4000))(LATER))
    mean = average(members)
    forecast = mean.from_origins(x, clock(4000))(LATER) if with_own else mean.forecast_series(x, LATER)
    assert torch.allclose(forecast, torch.stack(made).mean(0), atol=1e-10)
    assert torch.equal(one.forecast_series(x, LATER), made[0])  # the members are as they were
