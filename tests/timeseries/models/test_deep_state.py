"""DeepState: its likelihood is that of the filter, its network learns, its forecasts are exact."""

import math

import pytest
import torch

from ssmcore.kalman import kalman_filter
from timeseries.config import StructuralConfig
from timeseries.models.deep_state import DeepState, standardisation

CONFIG = StructuralConfig(trend="linear", seasons=(6,), harmonics=2)


def clock(batch, length, period=6):
    """Sine and cosine of the step."""
    angle = 2 * math.pi * torch.arange(length) / period
    return torch.stack((angle.sin(), angle.cos()), -1).expand(batch, -1, -1)


def series(batch=4, length=48, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(batch, length, generator=g, dtype=torch.float64).cumsum(1) * 0.2
    return 50 + 10 * (y + torch.randn(batch, length, generator=g, dtype=torch.float64))


def build(seed=0, **options):
    torch.manual_seed(seed)
    return DeepState(2, options.pop("static", 0), options.pop("config", CONFIG), d_model=16, num_layers=1, **options)


def test_the_loss_is_the_exact_likelihood_in_the_units_of_the_series():
    net, y, x = build(), series(), clock(4, 48)
    y[1, 5:9] = math.nan
    location, scale = standardisation(y)
    filtered = kalman_filter(net.model(x), ((y - location[:, None]) / scale[:, None])[..., None])
    H = net.model(x).observation[0]
    R = net.model(x).observation_noise[..., 0, 0]
    mean = filtered.predicted_mean @ H * scale[:, None] + location[:, None]
    var = (torch.einsum("btnm,n,m->bt", filtered.predicted_cov, H, H) + R) * scale[:, None] ** 2
    logs = torch.distributions.Normal(mean, var.sqrt(), validate_args=False).log_prob(y)
    torch.testing.assert_close(net.loss(y, x), -logs[~y.isnan()].mean())


def test_missing_values_are_skipped_not_filled():
    net, y, x = build(), series(), clock(4, 54)
    y[:, 20:25] = math.nan
    mean, var = net(y, x)
    assert mean.isfinite().all()
    assert (var > 0).all()
    # Whatever stands in the covariates of a missing step still moves the states; the target there does not exist.
    loss = net.loss(y.requires_grad_(), x[:, :48])
    loss.backward()
    assert (y.grad[:, 20:25] == 0).all()


def test_every_parameter_learns():
    net = build(static=3)
    net.loss(series(), clock(4, 48), torch.randn(4, 3)).backward()
    still = [n for n, p in net.named_parameters() if p.grad is None]
    assert not still
    assert net.variances.weight.grad.abs().max() > 0


def test_the_network_learns_when_noise_is_large():
    """Noise ten times larger at every sixth step; the covariates say which."""
    torch.manual_seed(0)
    noise = torch.where(torch.arange(60) % 6 == 0, 10.0, 1.0)
    y = (torch.randn(32, 60) * noise).double()
    x = (torch.arange(60) % 6 == 0).float()[None, :, None].expand(32, -1, -1)
    net = DeepState(1, 0, StructuralConfig(trend="level"), d_model=8, num_layers=1)
    before = net.loss(y, x).item()
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-2)
    for _ in range(60):
        optimiser.zero_grad()
        loss = net.loss(y, x)
        loss.backward()
        optimiser.step()
    _, var = net(y[:, :54], x)
    loud = var[:, 0] / var[:, 1:].mean(1)
    assert loss.item() < before - 0.4
    assert loud.min() > 10


def test_samples_have_the_moments_of_the_forecast():
    net, y, x = build(), series(), clock(4, 54)
    mean, var = net(y, x)
    drawn = net.sample(y, x, paths=4000, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 4, 6)
    assert ((drawn.mean(0) - mean).abs() < 5 * (var / 4000).sqrt()).all()
    assert ((drawn.var(0) / var - 1).abs() < 0.2).all()


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_a_constant_series_stays_where_it_is(value):
    mean, var = build()(torch.full((1, 20), value, dtype=torch.float64), clock(1, 26))
    torch.testing.assert_close(mean, torch.full_like(mean, value), atol=1e-6, rtol=1e-6)
    assert var.isfinite().all()


def test_a_series_with_nothing_observed_has_a_wide_forecast():
    y = series()
    y[2] = math.nan
    mean, var = build()(y, clock(4, 54))
    assert mean.isfinite().all()
    assert (var[2] > 1).all()


def test_bad_input_gets_a_sentence():
    net = build()
    with pytest.raises(ValueError, match="no observed value"):
        net.loss(torch.full((1, 5), math.nan), clock(1, 5))
    with pytest.raises(ValueError, match="expected more than target's 48"):
        net(series(), clock(4, 48))
    with pytest.raises(ValueError, match="infinite"):
        net.loss(torch.full((1, 5), math.inf), clock(1, 5))
    with pytest.raises(ValueError, match="covariates=0"):
        DeepState(0, 0, CONFIG)
