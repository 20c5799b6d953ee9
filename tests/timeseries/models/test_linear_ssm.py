"""LinearSSM: batch, window and stream agree; missing values are skipped; the closed form is the minimum it claims."""

import math
from itertools import pairwise

import pytest
import torch

from timeseries.models.linear_ssm import LinearSSM, default_poles, filter_bank, last_observed
from timeseries.models.ridge import DEFAULT_RIDGE, fit_linear_ssm, fit_read_out, out_of_sample, windows

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def series(b=3, t=200, missing=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, t, generator=generator, dtype=torch.float64).cumsum(1) / 5
    x += torch.sin(torch.arange(t) * 2 * math.pi / 24)
    holes = torch.rand(b, t, generator=generator) < missing
    return torch.where(holes, math.nan, x)


def model(context_length=None, h=5, seed=1):
    """Random read-out, so that every feature matters."""
    made = LinearSSM(h, *default_poles((24, 168), context_length), context_length=context_length)
    generator = torch.Generator().manual_seed(seed)
    for name in ("feature_mean", "weight", "bias"):
        buffer = getattr(made, name)
        buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
    return made


def test_filter_bank_is_the_recurrence():
    x = series(2, 150)
    poles = torch.polar(torch.tensor([0.5, 0.99, 0.9]).double(), torch.tensor([0.0, 0.3, 3.0]).double())
    z, states = torch.zeros(2, 3, dtype=torch.complex128), []
    for value in x.T:
        z = poles * z + value[:, None]
        states.append(z)
    torch.testing.assert_close(filter_bank(x, poles), torch.stack(states, 1), **CLOSE)
    torch.testing.assert_close(filter_bank(x, poles.abs())[..., 0], filter_bank(x, poles)[..., 0].real, **CLOSE)


def test_filter_bank_takes_a_transposed_drive_of_whole_chunks():
    x, poles = series(3, 128), torch.tensor([0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(filter_bank(x.T.contiguous().T, poles), filter_bank(x, poles))


@pytest.mark.parametrize("context_length", [None, 30])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_irregular_steps_and_states(context_length, missing):
    """Steps of one are the regular series; any steps leave the state that value by value arrives at."""
    x, ssm = series(missing=missing), model(context_length)
    ones = torch.ones_like(x)
    for mine, other in zip(ssm.features(x, ones), ssm.features(x), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)
    if context_length:
        torch.testing.assert_close(ssm.forecast(ssm.state_after(x)), ssm(x))
        return
    dt = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).double() * 2 + 0.1
    state = ssm.init_state(len(x))
    for t in range(x.shape[1]):
        state = ssm.step(x[:, t], state, dt[:, t])
    torch.testing.assert_close(ssm.forecast(state), ssm(x, dt), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ssm.forecast(ssm.state_after(x, dt)), ssm(x, dt), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("context_length", [None, 30])
def test_stream_equals_batch_equals_window(context_length, missing):
    x, ssm = series(missing=missing), model(context_length)
    origins = torch.tensor([0, 1, 29, 30, 31, 150, 199])
    batch = ssm.forecast_series(x, origins)
    state, stream = ssm.init_state(len(x)), []
    for t, value in enumerate(x.T):
        state = ssm.step(value, state)
        if t in origins:
            stream.append(ssm.forecast(state))
    torch.testing.assert_close(torch.stack(stream, 1), batch, **CLOSE)
    window = torch.stack([ssm(x[:, : t + 1]) for t in origins.tolist()], 1)
    torch.testing.assert_close(window, batch, **CLOSE)


def test_step_leaves_the_state_alone_and_its_size_does_not_grow():
    ssm = model()
    state = ssm.init_state(2)
    kept = {name: value.clone() for name, value in state.items()}
    new = ssm.step(torch.tensor([1.0, math.nan]), state)
    assert all(torch.equal(state[name], kept[name]) for name in state)
    assert {name: value.shape for name, value in new.items()} == {name: value.shape for name, value in kept.items()}


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_finite_context_uses_only_its_last_values(missing):
    x, ssm = series(missing=missing), model(30)
    changed = x.clone()
    changed[:, :100] = 50 * series(seed=9)[:, :100]
    origins = torch.arange(129, 200)
    torch.testing.assert_close(
        ssm.forecast_series(x, origins), ssm.forecast_series(changed, origins), rtol=0, atol=1e-9
    )


def test_no_forecast_sees_the_future():
    x, ssm = series(), model()
    changed = x.clone()
    changed[:, 101:] = math.nan
    torch.testing.assert_close(
        ssm.forecast_series(x, torch.tensor([100])), ssm.forecast_series(changed, torch.tensor([100]))
    )


def test_level_shift_shifts_the_forecast():
    x, ssm = series(missing=0.2), model()
    torch.testing.assert_close(ssm(x + 7), ssm(x) + 7, **CLOSE)


def test_missing_values_are_skipped_not_filled():
    """A constant series with holes has no deviation, whatever the holes."""
    ssm = model()
    full = torch.full((1, 100), 3.0, dtype=torch.float64)
    holes = torch.where(torch.arange(100) % 3 == 1, math.nan, full)
    torch.testing.assert_close(ssm(holes), ssm(full), **CLOSE)
    nothing = torch.full((1, 10), math.nan)
    assert ssm(nothing).isfinite().all()


def test_last_observed():
    x = torch.tensor([[math.nan, 1.0, math.nan, math.nan, 4.0]])
    value, seen = last_observed(x, None)
    assert value.tolist() == [[0.0, 1.0, 1.0, 1.0, 4.0]]
    assert seen.tolist() == [[False, True, True, True, True]]
    assert last_observed(x, 2)[1].tolist() == [[False, True, True, False, True]]


def test_fit_is_the_minimum_of_the_ridge_objective():
    x, h, ridge = series(2, 300), 4, 0.05
    ssm = LinearSSM(h, *default_poles((24,), None, time_constants=(4.0,), harmonics=(2,)))
    fit_linear_ssm(ssm, x, range(0, 200), range(200, 296), strengths=(ridge,))
    features, last, _ = ssm.features(x)
    rows = torch.arange(0, 200)
    f = ((features[:, rows] - ssm.feature_mean) / ssm.feature_scale).flatten(0, 1)
    y = (x[:, 1:].unfold(1, h, 1)[:, rows] - last[:, rows, None]).flatten(0, 1)
    weight, bias = ssm.weight.clone().requires_grad_(), ssm.bias.clone().requires_grad_()
    loss = (f @ weight + bias - y).square().mean(0).sum() + ridge * weight.square().sum()
    slope = torch.autograd.grad(loss, [weight, bias])
    assert max(g.abs().max() for g in slope) < 1e-10


def test_fit_with_missing_targets_equals_fitting_the_rows_that_have_them():
    x, h = series(1, 260, missing=0.15), 3
    ssm = LinearSSM(h, *default_poles((24,), None, time_constants=(4.0, 12.0), harmonics=(2,)))
    fit_linear_ssm(ssm, x, range(0, 200), range(200, 256), strengths=(0.1,))
    features, last, seen = ssm.features(x)
    targets = x[:, 1:].unfold(1, h, 1)[0] - last[0, : 260 - h, None]
    for step in range(h):
        rows = [t for t in range(200) if seen[0, t] and not targets[t, step].isnan()]
        f = (features[0, rows] - ssm.feature_mean) / ssm.feature_scale
        f1 = torch.cat([f, torch.ones(len(rows), 1)], 1)
        penalty = 0.1 * len(rows) * torch.eye(f1.shape[1], dtype=torch.float64)
        penalty[-1, -1] = 0
        expected = torch.linalg.solve(f1.T @ f1 + penalty, f1.T @ targets[rows, step])
        torch.testing.assert_close(
            torch.cat([ssm.weight[:, step], ssm.bias[step, None]]), expected, rtol=1e-6, atol=1e-8
        )


def test_naive_is_in_the_grid_and_wins_on_a_random_walk():
    walk = torch.randn(1, 400, generator=torch.Generator().manual_seed(3), dtype=torch.float64).cumsum(1)
    ssm = LinearSSM(5, *default_poles((24,), None))
    report = fit_linear_ssm(ssm, walk, range(0, 250), range(250, 390), strengths=(1e-6, math.inf))
    assert math.isinf(DEFAULT_RIDGE[-1])
    assert report.strengths[report.chosen] == math.inf
    torch.testing.assert_close(ssm(walk), walk[:, -1:].expand(1, 5))


def test_choice_follows_the_selected_score():
    x = series(2, 400, seed=4)
    for select in ("mae", "mse"):
        ssm = LinearSSM(6, *default_poles((24,), 48), context_length=48)
        report = fit_linear_ssm(ssm, x, range(47, 250), range(250, 390), select=select)
        scores = getattr(report, select)
        assert scores[report.chosen] == min(scores)


def test_fit_refuses_nonsense():
    ssm = LinearSSM(2, *default_poles((24,), None))
    with pytest.raises(ValueError, match="strengths must be non-negative"):
        fit_linear_ssm(ssm, series(), range(10), range(10, 20), strengths=())
    with pytest.raises(ValueError, match="select='rmse'"):
        fit_linear_ssm(ssm, series(), range(10), range(10, 20), select="rmse")


def test_default_poles():
    tau, angle = default_poles((24, 168), None)
    assert sorted(set(tau.tolist())) == [2, 6, 24, 72, 168, 336, 720]
    assert len(tau) == 7 * (1 + 12 + 3)
    assert angle.max() == pytest.approx(math.pi)
    tau, angle = default_poles((24, 168), 96)
    assert sorted(set(tau.tolist())) == [2, 6, 24, 72, 96]
    assert angle[angle > 0].min() == pytest.approx(2 * math.pi / 24)  # a week does not fit into 96 hours
    assert len(default_poles((24, 168), 12)[0]) > 0
    assert len(default_poles((1,), None)[0]) > 0
    with pytest.raises(ValueError, match="time_constants must be positive"):
        default_poles((24,), None, time_constants=(0.0,))


@pytest.mark.parametrize("missing", [False, True])
def test_out_of_sample_errors_are_those_of_refitting_every_fold(missing):
    """From Gram matrices alone, and by refitting and predicting row by row."""
    x = series(t=240)
    if missing:
        x[0, 60:70] = math.nan
        x[-1, 150] = math.nan
    train, validation, horizon, strengths = range(5, 170), range(170, 220), 4, (1e-3, 0.1, math.inf)
    ssm = LinearSSM(horizon, *default_poles((8,), None, harmonics=(2,)))
    found, _ = out_of_sample(ssm, x, train, validation, strengths, 3)
    expected = torch.zeros(len(strengths), dtype=torch.float64)
    count = 0
    bounds = [5, 60, 115, 170]
    parts = [(range(a, b), [o for o in train if not a - horizon <= o < b + horizon]) for a, b in pairwise(bounds)]
    for scored, fitted in [*parts, (validation, list(train))]:
        for i, strength in enumerate(strengths):
            rows = [windows(ssm, x, range(o, o + 1)) for o in fitted]
            pieces = [(f, t - last[:, None]) for row in rows for f, last, t in row]
            fit_read_out(ssm, lambda p=pieces: p, lambda p=pieces: p, strengths=(strength,))
            for features, last, targets in windows(ssm, x, scored):
                error = (ssm.read_out(features, last) - targets).nan_to_num()
                expected[i] += error.square().sum()
                count += int((~targets.isnan()).sum()) * (i == 0)
    torch.testing.assert_close(found, expected / count, rtol=1e-8, atol=1e-10)


def test_folds_outvote_a_validation_part_that_misleads():
    """A cycle almost everywhere, and a validation part that is a random walk and wants no cycle."""
    torch.manual_seed(0)
    t = torch.arange(600, dtype=torch.float64)
    x = torch.sin(2 * math.pi * t / 8)[None] + 0.3 * torch.randn(1, 600, dtype=torch.float64)
    x[:, 480:] = torch.randn(1, 120, dtype=torch.float64).cumsum(1) / 5
    strengths, parts = (1e-2, math.inf), (range(0, 450), range(490, 590))
    ssm = LinearSSM(4, *default_poles((8,), None, harmonics=(2,)))
    alone = fit_linear_ssm(ssm, x, *parts, strengths=strengths, select="mse")
    assert (alone.chosen, alone.pooled) == (1, None)
    folded = fit_linear_ssm(ssm, x, *parts, strengths=strengths, folds=4)
    assert folded.chosen == 0
    assert folded.mse == pytest.approx(alone.mse, rel=1e-12)  # the same rows, summed stretch by stretch
    with pytest.raises(ValueError, match="folds=1"):
        fit_linear_ssm(ssm, x, *parts, folds=1)
