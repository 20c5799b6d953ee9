"""Structural models: matrices and likelihood of statsmodels, the optimum it finds, and what a fitted model answers."""

import math
import warnings

import numpy as np
import pytest
import torch

from ssmcore.kalman import log_likelihood
from timeseries.config import StructuralConfig
from timeseries.models.structural import VAGUE, structural_model, variance_names
from timeseries.structural import fit_structural

peer = pytest.importorskip("statsmodels.tsa.statespace.structural")

FORMS = [
    (StructuralConfig(trend="level"), {"level": "local level"}),
    (StructuralConfig(trend="linear"), {"level": "local linear trend"}),
    (StructuralConfig(trend="smooth"), {"level": "smooth trend"}),
    (StructuralConfig(trend="level", seasons=(7,)), {"level": "local level", "seasonal": 7}),
    (
        StructuralConfig(trend="linear", seasons=(12,), harmonics=3),
        {"level": "local linear trend", "freq_seasonal": [{"period": 12, "harmonics": 3}]},
    ),
    (
        StructuralConfig(trend="level", seasons=(4, 12), harmonics=9),  # all harmonics, Nyquist's too
        {"level": "local level", "freq_seasonal": [{"period": 4}, {"period": 12}]},
    ),
]


def series(batch=3, length=80, period=7, seed=0):
    rng = np.random.default_rng(seed)
    y = np.cumsum(rng.standard_normal((batch, length)) * 0.3, 1) + rng.standard_normal((batch, length))
    y += np.resize(2 * rng.standard_normal((batch, period)), (batch, length))
    y[0, 4:9] = np.nan
    return torch.tensor(y)


def statsmodels_model(y, form):
    model = peer.UnobservedComponents(np.asarray(y), **form)
    model.ssm.initialize_approximate_diffuse(VAGUE)
    model.ssm.loglikelihood_burn = 0
    return model


@pytest.mark.parametrize(("config", "form"), FORMS)
def test_the_likelihood_is_that_of_statsmodels(config, form):
    y, names = series(), variance_names(config)
    variances = torch.linspace(0.3, 1.1, len(names), dtype=torch.float64)
    ours = log_likelihood(structural_model(config, variances.expand(3, -1)), y[..., None])[0].sum(1)
    for item, value in zip(y, ours, strict=True):
        assert abs(statsmodels_model(item, form).loglike(variances.numpy()) - value.item()) < 1e-6


@pytest.mark.parametrize(("config", "form"), FORMS[:4])
def test_the_optimum_is_at_least_that_of_statsmodels(config, form):
    y = series()
    fitted = fit_structural(y, config)
    for i, item in enumerate((y - fitted.location[:, None]) / fitted.scale[:, None]):
        model = statsmodels_model(item, form)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            best = model.fit(disp=0, maxiter=500).llf
        diffuse = best + 0.5 * len(model.ssm["transition"]) * math.log(VAGUE)
        own_units = diffuse - (~y[i].isnan()).sum() * fitted.scale[i].log()
        assert fitted.log_likelihood[i] > own_units - 2e-3


def test_a_series_alone_is_the_series_in_a_batch():
    y, config = series(), StructuralConfig(trend="level", seasons=(7,))
    batch, alone = fit_structural(y, config), fit_structural(y[1:2], config)
    torch.testing.assert_close(batch.variances[1:2], alone.variances, rtol=1e-5, atol=1e-9)


def test_units_do_not_matter():
    y, config = series(), StructuralConfig(trend="linear")
    one, other = fit_structural(y, config), fit_structural(1e4 * y - 3e5, config)
    torch.testing.assert_close(one.variances, other.variances, rtol=1e-4, atol=1e-6)
    (mean, var), (mean2, var2) = one.forecast(5), other.forecast(5)
    torch.testing.assert_close(1e4 * mean - 3e5, mean2, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(1e8 * var, var2, rtol=1e-4, atol=1e-2)


def test_updates_are_the_filter_over_the_longer_history():
    y = series()
    fitted = fit_structural(y[:, :60], StructuralConfig(trend="linear", seasons=(7,), harmonics=2))
    streamed, total = fitted, fitted.log_likelihood * 0
    for value in y[:, 60:].unbind(1):
        streamed, odd = streamed.update(value)
        total = total + odd
    again = fitted.filter(y)
    for one, other in zip(streamed.forecast(10), again.forecast(10), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    counted = fitted.filter(y[:, :60]).log_likelihood
    gained = again.log_likelihood - counted - 20 * fitted.scale.log()
    torch.testing.assert_close(total, gained, rtol=1e-9, atol=1e-9)


def test_components_add_up_and_find_the_season():
    y = series(batch=2, length=140)[1:]
    pattern = torch.tensor([5.0, 0, 0, 0, 0, 0, 0]).repeat(20)
    fitted = fit_structural(y * 0.1 + pattern, StructuralConfig(trend="level", seasons=(7,)))
    parts = fitted.decompose(y * 0.1 + pattern)
    assert set(parts) == {"level", "season 7"}
    found = parts["season 7"][0].reshape(20, 7).mean(0)
    assert found.argmax() == 0
    assert 4 < found[0] - found[1:].mean() < 6
    residual = y * 0.1 + pattern - sum(parts.values())
    assert residual.std() < 0.3


def test_an_outlier_stands_out():
    y = series()
    fitted = fit_structural(y, StructuralConfig())
    y[2, 50] += 40
    scores = fitted.anomaly(y)
    assert scores[2].abs().argmax() == 50
    assert torch.equal(scores.isnan(), y.isnan())


@pytest.mark.parametrize("value", [0.0, 7.5, -1e8])
def test_a_constant_series_goes_on(value):
    mean, variance = fit_structural(torch.full((1, 30), value), StructuralConfig(seasons=(7,))).forecast(20)
    torch.testing.assert_close(mean, torch.full_like(mean, value), rtol=1e-6, atol=1e-6)
    assert variance.isfinite().all()
    assert (variance >= 0).all()


def test_one_observation_is_enough_for_a_forecast():
    y = torch.full((1, 10), math.nan)
    y[0, -1] = 3.0
    mean, variance = fit_structural(y, StructuralConfig(trend="level")).forecast(3)
    torch.testing.assert_close(mean, torch.full_like(mean, 3.0), rtol=1e-5, atol=1e-5)
    assert variance.isfinite().all()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(3), "has shape"),
        (torch.full((2, 5), math.nan), "series 0 has no value"),
        (torch.full((1, 5), math.inf), "infinite"),
    ],
)
def test_bad_series_get_a_sentence(y, message):
    with pytest.raises(ValueError, match=message):
        fit_structural(y, StructuralConfig())


@pytest.mark.parametrize("change", [{"seasons": (1,)}, {"damping": 0.0}, {"harmonics": 0}])
def test_bad_configurations_get_a_sentence(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        StructuralConfig(**change)
