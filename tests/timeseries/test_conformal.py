"""Intervals from past errors: the right ranks, the right memory, and coverage."""

import numpy as np
import pytest
import torch

from timeseries.conformal import LEVELS, PRIOR, Calibration, recent_errors


def calibration(horizon=2, memory=1000, spread=1.0, inflation=1.0):
    errors = spread * torch.randn(5000, horizon, dtype=torch.float64)
    made = Calibration.fit(errors, None, memory)
    return Calibration(sketch=made.sketch, inflation=made.inflation * inflation, memory=memory)


def test_ranks_are_those_of_conformal_prediction():
    """Of 19 errors the 90 % level is the 18th: rank ceil(0.9 (19 + 1)); the 10 % level the 1st or 2nd from below."""
    errors = torch.randperm(19).double().view(1, 1, 19, 1) + 1
    made = Calibration(sketch=torch.zeros(100, 1).double(), inflation=torch.ones(1).double(), memory=19)
    values = made.quantiles(errors, torch.ones(1, 1).double(), (0.1, 0.5, 0.9))
    assert values.flatten().tolist() == [1.0, 10.0, 18.0]


def test_both_ways_to_find_a_rank_agree():
    errors = torch.randn(2, 3, 400, 5, dtype=torch.float64)
    made, scale = calibration(5), torch.ones(2, 3).double()
    quick = made.quantiles(errors, scale)
    padded = torch.cat([torch.full((2, 3, 7, 5), torch.nan), errors], 2)
    torch.testing.assert_close(made.quantiles(padded, scale), quick)


def test_without_errors_of_its_own_a_series_gets_those_of_all_in_its_scale():
    none = torch.full((1, 2, 0, 2), torch.nan, dtype=torch.float64)
    scale = torch.tensor([[1.0, 10.0]]).double()
    values = calibration().quantiles(none, scale)
    i = LEVELS.index(0.9)
    assert values[i, 0, 0, 0] == pytest.approx(1.28, abs=0.12)
    torch.testing.assert_close(values[:, :, 1], 10 * values[:, :, 0])


def test_own_errors_replace_the_prior():
    made, scale = calibration(memory=1000), torch.ones(1, 1).double()
    grid = torch.linspace(-10, 10, 1001, dtype=torch.float64)  # spread evenly: its middle 80 % is 16 wide
    width = []
    for count in (1, PRIOR // 2, PRIOR, 1000):
        own = grid[:: 1001 // count][:count].view(1, 1, -1, 1).expand(-1, -1, -1, 2)
        low, high = made.quantiles(own, scale, (0.1, 0.9))
        width.append(float((high - low).mean()))
    assert width[0] == pytest.approx(2.563, rel=0.1)
    assert 3 < width[1] < 15
    assert width[2:] == pytest.approx([16.0, 16.0], rel=0.02)


def test_inflation_widens_own_errors():
    own = torch.randn(1, 1, 500, 2, dtype=torch.float64)
    scale = torch.ones(1, 1).double()
    plain, wide = (calibration(inflation=factor).quantiles(own, scale) for factor in (1.0, 1.5))
    torch.testing.assert_close(wide, 1.5 * plain)


def test_inflation_is_the_ratio_out_of_sample_to_in_sample():
    errors = torch.randn(4000, 3, dtype=torch.float64)
    torch.testing.assert_close(Calibration.fit(errors, errors / 1.2, 10).inflation, torch.full((3,), 1.2).double())
    assert (Calibration.fit(errors, 2 * errors, 10).inflation == 1).all()


def test_recent_errors_are_of_forecasts_whose_outcome_is_known():
    target = torch.tensor([[[10.0, 20.0, 30.0, 40.0, 50.0]]]).double()
    forecasts = torch.tensor([[[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]]).double()  # after steps 2, 3 and 4
    nan = torch.nan
    torch.testing.assert_close(
        recent_errors(target, forecasts, 3)[0, 0],
        torch.tensor([[nan, nan], [39.0, nan], [47.0, 48.0]]).double(),
        equal_nan=True,
    )


def test_quantiles_rise_and_cover():
    rng = np.random.default_rng(0)
    own = torch.from_numpy(rng.standard_t(4, size=(50, 1, 300, 4)))
    values = calibration(4).quantiles(own, torch.ones(50, 1).double())
    assert (values.diff(dim=0) >= 0).all()
    new = torch.from_numpy(rng.standard_t(4, size=(50, 1, 2000, 4)))
    low, high = values[LEVELS.index(0.1)], values[LEVELS.index(0.9)]
    share = ((new >= low[:, :, None]) & (new <= high[:, :, None])).double().mean()
    assert 0.79 < share < 0.83


def adaptive(horizon, gain=3.0):
    errors = torch.randn(5000, horizon, dtype=torch.float64)
    return Calibration.fit(errors, None, 1000, gain)


def test_widths_follow_what_was_covered():
    """Errors grow threefold half way, and come as late as the forecast reaches: intervals cover 80 % again."""
    horizon, t = 24, 6000
    made = adaptive(horizon)
    size = torch.where(torch.arange(t) < t // 2, 1.0, 3.0).double()
    errors = torch.randn(1, 1, t, horizon, dtype=torch.float64) * size[:, None]
    scale = torch.ones(1, 1, t, dtype=torch.float64)
    widths = made.widths(errors, scale)
    low, high = made.adapted(widths[0].transpose(0, 1), scale[0].T, (0.1, 0.9))[:, :, 0]  # (t, h) after every step
    for k in (0, horizon - 1):  # the outcome of step k comes k + 1 steps after the width that its forecast had
        came, before = errors[0, 0, k + 1 :, k], slice(0, t - k - 1)
        inside = (came >= low[before, k]) & (came <= high[before, k])
        for part in (slice(500, 2900), slice(3500, 6000)):
            assert 0.77 < float(inside[part].double().mean()) < 0.83
    assert widths[0, 0, 2900].mean().abs() < 0.25
    assert float(widths[0, 0, -1].mean()) == pytest.approx(np.log(3), abs=0.25)


def test_a_width_knows_no_outcome_before_it_comes():
    """The last step's forecast of a horizon of 3 is judged three steps after it was made."""
    made = adaptive(3, gain=3.0)
    errors = torch.full((1, 1, 4, 3), torch.nan, dtype=torch.float64)
    errors[0, 0, 3, 2] = 1e6
    widths = made.widths(errors, torch.ones(1, 1, 4).double())[0, 0]
    assert (widths[:3] == 0).all()
    torch.testing.assert_close(widths[3], torch.tensor([0.0, 0.0, 0.8]).double())


def test_an_interval_of_no_width_stays_finite():
    """A constant series has errors of zero; one leap cannot make the width infinite times zero."""
    made = Calibration.fit(torch.zeros(50, 2).double(), None, 10, 3.0)
    errors = torch.zeros(1, 1, 30, 2).double()
    errors[0, 0, 5:] = 1.0
    widths = made.widths(errors, torch.ones(1, 1, 30).double())
    assert made.adapted(widths[:, :, -1], torch.ones(1, 1).double()).isfinite().all()
