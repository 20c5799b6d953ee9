"""WindowForecaster starts as LinearSSM, keeps series apart, and takes missing values."""

import math

import pytest
import torch

from timeseries.config import PatchConfig
from timeseries.models.linear_ssm import LinearSSM, default_poles
from timeseries.models.window_forecaster import WindowForecaster

SMALL = PatchConfig(d_model=8, num_layers=1, d_state=4, patch_length=8, stride=6, dropout=0.0)


def build(mixer="s4d", trained=True):
    torch.manual_seed(0)
    linear = LinearSSM(5, *default_poles((24,), 48), context_length=48)
    linear.weight.normal_(0, 0.1)
    model = WindowForecaster(linear, mixer, SMALL).eval()
    if trained:
        torch.nn.init.normal_(model.encoder.head.weight, 0, 0.1)
    return model


@pytest.mark.parametrize("mixer", ["s4d", "mamba"])
def test_starts_as_linear_ssm(mixer):
    model, past = build(mixer, trained=False), torch.randn(2, 3, 48)
    torch.testing.assert_close(model(past), model.linear(past.view(6, 48)).view(2, 3, 5).float())


@pytest.mark.parametrize("mixer", ["s4d", "mamba"])
def test_series_are_independent_and_scale_with_their_units(mixer):
    model, past = build(mixer), torch.randn(2, 3, 48)
    whole = model(past)
    torch.testing.assert_close(model(past[:, 1:2]), whole[:, 1:2])
    moved = model(3 * past + 5)
    base = model.linear((3 * past + 5).view(6, 48)).view(2, 3, 5) - 3 * model.linear(past.view(6, 48)).view(2, 3, 5)
    torch.testing.assert_close(moved, 3 * whole + base.float(), rtol=1e-4, atol=1e-4)


def test_missing_values_and_flat_windows_give_finite_forecasts():
    model, past = build(), torch.randn(1, 3, 48)
    past[0, 0, ::3], past[0, 1], past[0, 2] = math.nan, math.nan, 2.0
    assert model(past).isfinite().all()


def test_the_newest_value_is_in_a_patch():
    model, past = build(), torch.randn(1, 1, 48)
    model.linear.weight.zero_()
    past[..., -1] = 0
    changed = past.clone()
    changed[..., -1] = 1e-3
    assert not torch.equal(model(past), model(changed) - 1e-3)


def test_only_the_new_part_is_trained():
    assert not [name for name, _ in build().named_parameters() if name.startswith("linear.")]


def test_refuses_unlimited_memory_and_patches_that_do_not_fit():
    with pytest.raises(ValueError, match="needs a finite context_length"):
        WindowForecaster(LinearSSM(5, *default_poles((24,), None)), "s4d", SMALL)
    short = LinearSSM(5, *default_poles((24,), 6), context_length=6)
    with pytest.raises(ValueError, match="expected 1 <= patch_length <= context_length=6"):
        WindowForecaster(short, "s4d", SMALL)
