"""The Kalman filter and smoother against dense Gaussian algebra, statsmodels, and the Riccati equation."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.autograd import gradcheck

from ssmcore.kalman import (
    GaussianState,
    LinearGaussian,
    forecast,
    initial_state,
    kalman_filter,
    kalman_smoother,
    sample_paths,
    update,
)
from ssmcore.kalman_scan import Stretch, combine

F64 = torch.float64
METHODS = ["sequential", "parallel"]


def _spd(g, *shape):
    root = torch.randn(*shape, shape[-1], generator=g, dtype=F64)
    return root @ root.mT / shape[-1] + 0.1 * torch.eye(shape[-1], dtype=F64)


def _model(batch=2, length=7, n=3, c=2, seed=0, timed=False):
    g = torch.Generator().manual_seed(seed)
    lead = (batch, length) if timed else ()

    def normal(*s):
        return torch.randn(*s, generator=g, dtype=F64)

    return LinearGaussian(
        0.5 * normal(*lead, n, n),
        _spd(g, *lead, n),
        normal(*lead, c, n),
        _spd(g, *lead, c),
        normal(batch, n),
        _spd(g, batch, n),
        normal(*lead, n),
        normal(*lead, c),
    )


def _series(batch=2, length=7, c=2, seed=1, missing=True):
    y = torch.randn(batch, length, c, generator=torch.Generator().manual_seed(seed), dtype=F64)
    if missing:
        y[0, 2] = math.nan  # a whole step
        y[1, 3, 0] = math.nan  # one component
        y[0, 0, -1] = math.nan
        y[1, -1] = math.nan
    return y


def _dense(model, y, item):
    """Joint Gaussian of all states and observations of one item: E x, cov x, the map to y, cov of the noise."""
    length, n = y.shape[1], model.initial_mean.shape[-1]
    mean, cov = [model.initial_mean[item]], torch.zeros(length * n, length * n, dtype=F64)
    blocks = [[None] * length for _ in range(length)]
    blocks[0][0] = model.initial_cov[item]
    pick = lambda p, t, rank: p[item, t] if p.ndim == rank else p  # noqa: E731
    for t in range(1, length):
        F = pick(model.transition, t - 1, 4)
        mean.append(F @ mean[-1] + pick(model.state_offset, t - 1, 3))
        blocks[t][t] = F @ blocks[t - 1][t - 1] @ F.T + pick(model.process_noise, t - 1, 4)
        for s in range(t):
            blocks[t][s] = F @ blocks[t - 1][s]
            blocks[s][t] = blocks[t][s].T
    cov = torch.cat([torch.cat(row, 1) for row in blocks])
    H = torch.block_diag(*[pick(model.observation, t, 4) for t in range(length)])
    R = torch.block_diag(*[pick(model.observation_noise, t, 4) for t in range(length)])
    d = torch.cat([pick(model.observation_offset, t, 3) for t in range(length)])
    return torch.cat(mean), cov, H, R, d


def _posterior(mean, cov, H, R, d, y):
    seen = ~y.isnan()
    H, d, R, y = H[seen], d[seen], R[seen][:, seen], y[seen]
    gain = cov @ H.T @ torch.linalg.inv(H @ cov @ H.T + R)
    return mean + gain @ (y - H @ mean - d), cov - gain @ H @ cov


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_dense_gaussian_algebra(method, timed):
    model, y = _model(timed=timed), _series()
    filtered, smoothed = kalman_filter(model, y, method), kalman_smoother(model, y, method)
    n = 3
    for item in range(2):
        mean, cov, H, R, d = _dense(model, y, item)
        flat = y[item].flatten()
        seen = ~flat.isnan()
        marginal = torch.distributions.MultivariateNormal(
            (H @ mean + d)[seen], (H @ cov @ H.T + R)[seen][:, seen], validate_args=False
        )
        total = filtered.log_likelihood[item].sum()
        torch.testing.assert_close(total, marginal.log_prob(flat[seen]), rtol=1e-10, atol=1e-10)
        m, P = _posterior(mean, cov, H, R, d, flat)
        for t in range(y.shape[1]):
            at = slice(t * n, (t + 1) * n)
            torch.testing.assert_close(smoothed.mean[item, t], m[at], rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(smoothed.cov[item, t], P[at, at], rtol=1e-9, atol=1e-10)
            past = flat.clone()
            past[(t + 1) * 2 :] = math.nan
            now, now_cov = _posterior(mean, cov, H, R, d, past)
            torch.testing.assert_close(filtered.mean[item, t], now[at], rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(filtered.cov[item, t], now_cov[at, at], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_parallel_is_sequential(length):
    model, y = _model(length=length), _series(length=max(length, 4))[:, :length]
    for one, other in zip(kalman_filter(model, y), kalman_filter(model, y, "parallel"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    for one, other in zip(kalman_smoother(model, y), kalman_smoother(model, y, "parallel"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_the_monoid_is_associative():
    g = torch.Generator().manual_seed(0)
    a, b, c = (
        Stretch(
            torch.randn(4, 3, 3, generator=g, dtype=F64),
            torch.randn(4, 3, generator=g, dtype=F64),
            _spd(g, 4, 3),
            torch.randn(4, 3, generator=g, dtype=F64),
            _spd(g, 4, 3),
        )
        for _ in range(3)
    )
    for one, other in zip(combine(combine(a, b), c), combine(a, combine(b, c)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_gradients():
    model, y = _model(length=3), _series(length=4)[:, :3]

    def through(*fields):
        given = LinearGaussian(*fields)
        # Covariances are symmetric: a single element cannot be moved alone.
        covs = {f: (p + p.mT) / 2 for f, p in given._asdict().items() if f.endswith(("noise", "cov"))}
        filtered = kalman_filter(given._replace(**covs), y)
        return filtered.log_likelihood, filtered.next.mean, *kalman_smoother(given._replace(**covs), y)

    assert gradcheck(through, tuple(p.clone().requires_grad_() for p in model))


def test_deterministic_components_are_no_special_case():
    """A fixed, unknown level (Q = 0) is the running mean."""
    one = torch.ones(1, 1, dtype=F64)
    model = LinearGaussian(one, 0 * one, one, one, torch.zeros(1, dtype=F64), 1e6 * one)
    y = torch.randn(1, 20, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    smoothed = kalman_smoother(model, y)
    expected = y.sum(1, keepdim=True).expand_as(y) / (20 + 1e-6)
    torch.testing.assert_close(smoothed.mean, expected, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(smoothed.cov.flatten(), torch.full((20,), 1 / (20 + 1e-6), dtype=F64), rtol=1e-7, atol=0)


def test_the_steady_state_solves_the_riccati_equation():
    model = _model(batch=1, c=2)
    filtered = kalman_filter(model, torch.zeros(1, 200, 2, dtype=F64))
    F, Q, H, R = (p.numpy() for p in model[:4])
    expected = scipy.linalg.solve_discrete_are(F.T, H.T, Q, R)
    np.testing.assert_allclose(filtered.predicted_cov[0, -1], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("level", ["local level", "local linear trend", "lltrend + seasonal"])
def test_statsmodels_gives_the_same_likelihood_and_smoothing(level):
    structural = pytest.importorskip("statsmodels.tsa.statespace.structural")
    y = np.cumsum(np.random.default_rng(0).standard_normal(120))
    y[[5, 30, 31]] = np.nan
    seasonal = 12 if "seasonal" in level else None
    peer = structural.UnobservedComponents(y, level.split(" + ")[0], seasonal=seasonal)
    peer.ssm.initialize_approximate_diffuse(1e4)
    peer.ssm.loglikelihood_burn = 0
    params = np.linspace(0.5, 1.5, len(peer.start_params))
    result = peer.smooth(params)
    ssm = peer.ssm
    n = ssm["transition"].shape[0]
    selection = ssm["selection"]
    matrices = (
        ssm["transition"],
        selection @ ssm["state_cov"] @ selection.T,
        ssm["design"],
        ssm["obs_cov"],
        np.zeros(n),
        1e4 * np.eye(n),
    )
    model = LinearGaussian(*(torch.tensor(np.asarray(m), dtype=F64) for m in matrices))
    series = torch.tensor(y)[None, :, None]
    filtered, smoothed = kalman_filter(model, series), kalman_smoother(model, series)
    assert abs(filtered.log_likelihood.sum().item() - result.llf) < 1e-6
    np.testing.assert_allclose(smoothed.mean[0].T, result.smoothed_state, rtol=1e-6, atol=1e-6)
    ahead, theirs = forecast(model, filtered.next, 24), result.get_forecast(24)
    np.testing.assert_allclose(ahead.mean[0, :, 0], theirs.predicted_mean, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ahead.cov[0, :, 0, 0], theirs.var_pred_mean, rtol=1e-7)


def test_updates_one_by_one_are_the_filter():
    model, y = _model(), _series()
    filtered = kalman_filter(model, y)
    state, total = initial_state(model, 2), 0
    for value in y.unbind(1):
        state, log_likelihood = update(model, state, value)
        total = total + log_likelihood
    torch.testing.assert_close(total, filtered.log_likelihood.sum(1))
    for one, other in zip(state, filtered.next, strict=True):
        torch.testing.assert_close(one, other)


def test_items_do_not_meet_and_missing_values_have_no_gradient():
    model, y = _model(), _series()
    alone = LinearGaussian(
        *(p[1:] if p.ndim and name.startswith("initial") else p for name, p in model._asdict().items())
    )
    one, both = kalman_filter(alone, y[1:]), kalman_filter(model, y)
    torch.testing.assert_close(one.mean[0], both.mean[1])
    y.requires_grad_()
    kalman_filter(model, y).log_likelihood.sum().backward()
    assert torch.equal(y.grad[y.isnan()], torch.zeros(int(y.isnan().sum()), dtype=F64))
    assert y.grad[~y.isnan()].abs().min() > 0


def test_paths_have_the_moments_of_the_forecast():
    model = _model()
    start = GaussianState(model.initial_mean, model.initial_cov)
    paths = sample_paths(model, start, 5, 20000, torch.Generator().manual_seed(0))
    expected = forecast(model, start, 5)
    spread = expected.cov.diagonal(dim1=-2, dim2=-1)
    assert paths.shape == (20000, 2, 5, 2)
    assert ((paths.mean(0) - expected.mean).abs() < 5 * (spread / 20000).sqrt()).all()
    assert ((paths.var(0) / spread - 1).abs() < 5 * math.sqrt(2 / 20000)).all()


def test_float32_observations_with_a_float64_model():
    model, y = _model(), _series()
    assert kalman_filter(model, y.float()).mean.dtype == F64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, y: (m, y[0]), "kalman_filter: y has shape"),
        (lambda m, y: (m, y[:, :0]), "at least one measurement"),
        (lambda m, y: (m, y / 0), "infinite"),
        (lambda m, y: (m._replace(transition=m.transition[:2]), y), "kalman_filter: transition"),
        (lambda m, y: (m._replace(initial_mean=m.initial_mean[:, :1]), y), "initial_mean"),
        (lambda m, y: (m._replace(observation_noise=torch.eye(3, dtype=F64)), y), "observation_noise"),
    ],
)
def test_bad_input_gets_a_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        kalman_filter(*change(_model(), _series(missing=False)))
    with pytest.raises(ValueError, match="method"):
        kalman_filter(_model(), _series(), method="fast")
