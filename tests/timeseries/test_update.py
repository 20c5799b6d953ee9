"""A stream equals a look at the whole history, at a cost that does not grow, and can be saved and restored."""

import numpy as np
import pytest
import torch

from timeseries import at_rate
from timeseries.config import FitConfig

KINDS = ["linear", "s4d", "mamba", "patch", "s_mamba", "time_machine", "simba"]
STEPS = 50


def train(small, kind, data, **options):
    """With an encoder whose read-out is not zero, so that its state matters."""
    predictor = small(kind, **options).train(data)
    if predictor.network.encoder is not None:
        torch.manual_seed(2)
        torch.nn.init.normal_(predictor.network.encoder.head.weight, std=0.3)
    return predictor


def rows(data, step, field="target"):
    """Column `step` of the last STEPS columns of a field, one row an item."""
    return np.stack([np.asarray(entry[field])[..., len(entry["target"].T) - STEPS + step] for entry in data])


def agree(forecasts, others, tolerance=1e-5):
    for mine, other in zip(forecasts, others, strict=True):
        assert mine.start_date == other.start_date
        assert mine.item_id == other.item_id
        scale = np.abs(other.forecast_array - other.forecast_array.mean()).max()
        np.testing.assert_allclose(mine.forecast_array, other.forecast_array, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("output", ["conformal", "quantiles"])
@pytest.mark.parametrize("kind", KINDS)
def test_updates_equal_the_whole_history(kind, output, small, make_entries, cut_entries):
    data = make_entries(length=220)
    data[1]["target"][-30:-20] = np.nan
    predictor = train(small, kind, data, output=output)
    predictor.start(cut_entries(data, STEPS))
    for step in range(STEPS):
        predictor.update(rows(data, step))
    agree(predictor.forecast(), predictor.predict(data))


@pytest.mark.parametrize("kind", ["linear", "s4d"])
def test_widths_that_follow_equal_those_of_the_whole_history(kind, small, make_entries, cut_entries):
    data = make_entries(length=220)
    data[1]["target"][-30:-20] = np.nan
    data[2] = {**data[2], "target": data[2]["target"][:53]}  # three steps before the stream begins
    fit = FitConfig(epochs=1, steps_per_epoch=2, batch_size=4, accelerator="cpu", memory=40, gain=3.0)
    predictor = train(small, kind, data, fit=fit)
    plain = next(iter(train(small, kind, data).predict(data)))
    assert np.abs(plain.forecast_array - next(iter(predictor.predict(data))).forecast_array).max() > 1e-3
    predictor.start(cut_entries(data, STEPS))
    for step in range(STEPS):
        predictor.update(rows(data, step))
    agree(predictor.forecast(), predictor.predict(data))


@pytest.mark.parametrize("kind", ["linear", "mamba", "patch", "s_mamba", "time_machine", "simba"])
def test_with_covariates_and_channels(kind, small, make_entries, cut_entries):
    data = make_entries(length=220, features=True, channels=2)
    predictor = train(small, kind, cut_entries(data, 6))
    seen = cut_entries(data, 6)  # 6 steps of known future are left
    predictor.start(cut_entries(data, 6 + STEPS))
    for step in range(STEPS):
        known = rows(seen, step, "feat_dynamic_real")
        predictor.update(rows(seen, step), known=known, past=rows(seen, step, "past_feat_dynamic_real"))
    ahead = np.stack([e["feat_dynamic_real"][:, len(e["target"].T) - 6 :].T for e in data])
    agree(predictor.forecast(ahead), predictor.predict(seen))


@pytest.mark.parametrize("kind", ["linear", "s4d", "mamba"])
def test_irregular_steps(kind, small, make_entries, cut_entries):
    rng = np.random.default_rng(0)
    data = [{**e, "dt": rng.uniform(0.2, 3, size=len(e["target"]))} for e in make_entries(length=220)]
    predictor = train(small, kind, data)
    cut = [{**e, "dt": e["dt"][:-STEPS]} for e in cut_entries(data, STEPS)]
    predictor.start(cut)
    for step in range(STEPS):
        predictor.update(rows(data, step), dt=rows(data, step, "dt"))
    agree(predictor.forecast(), predictor.predict(data))
    even = next(iter(predictor.predict([{**e, "dt": None} for e in data])))
    assert np.abs(even.mean - predictor.forecast()[0].mean).max() > 1e-3  # the steps are not ignored


def test_steps_of_one_are_the_regular_series(small, make_entries):
    data = make_entries()
    predictor = small("linear").train(data)
    agree(predictor.predict([{**e, "dt": np.ones(len(e["target"]))} for e in data]), predictor.predict(data), 1e-9)


def test_irregular_sampling_is_the_same_wave(small):
    """A wave seen at random times is forecast from its phase; counting values instead of time would lose it."""
    import pandas as pd

    rng = np.random.default_rng(0)

    def entry(steps):
        time = steps.cumsum()
        x = np.sin(2 * np.pi * time / 24) + 0.01 * rng.normal(size=len(time))
        return {"start": pd.Period("2020", "h"), "target": x, "dt": steps}, time[-1]

    train_on, _ = entry(np.ones(2000))
    test_on, now = entry(rng.uniform(0.3, 1.1, size=2000))
    predictor = small("linear", prediction_length=12).train([train_on])
    truth = np.sin(2 * np.pi * (now + np.arange(1, 13)) / 24)
    errors = {
        name: np.abs(next(iter(predictor.predict([e]))).mean - truth).mean()
        for name, e in {"time": test_on, "count": {**test_on, "dt": None}}.items()
    }
    assert errors["time"] < 0.1
    assert errors["count"] > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_stream_goes_on(kind, small, make_entries, cut_entries, tmp_path):
    data = make_entries(length=220)
    predictor = train(small, kind, data)
    start = cut_entries(data, STEPS)
    stream = predictor.start(start)
    for step in range(20):
        stream.update(rows(data, step))
    stream.save(tmp_path / "stream.safetensors")
    restored = predictor.start(start)
    restored.load(tmp_path / "stream.safetensors")
    for step in range(20, STEPS):
        np.testing.assert_array_equal(stream.update(rows(data, step)), restored.update(rows(data, step)))
    agree(restored.forecast(), stream.forecast(), 0)
    with pytest.raises(ValueError, match="does not fit these series"):
        predictor.start(start[:1]).load(tmp_path / "stream.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_does_not_grow(kind, small, make_entries):
    predictor = train(small, kind, make_entries())
    stream = predictor.start(make_entries())

    def sizes(state):
        return {k: sizes(v) if isinstance(v, dict) else tuple(v.shape) for k, v in state.items()}

    before = sizes(stream.state)
    for _ in range(60):
        stream.update([1.0, 2.0, np.nan])
    assert sizes(stream.state) == before


def test_update_returns_the_one_step_error(small, make_entries):
    data = make_entries(n=1)
    predictor = small("linear").train(data)
    ahead = next(iter(predictor.predict(data))).mean[0]
    predictor.start(data)
    assert predictor.update(3.0)[0, 0] == pytest.approx(3.0 - ahead)
    assert np.isnan(predictor.update(np.nan)[0, 0])


def test_intervals_follow_the_latest_errors(small, make_entries):
    """After the noise has trebled for a while the intervals have too; those of the training part alone would not."""
    rng = np.random.default_rng(0)
    data = [{**make_entries()[0], "target": rng.normal(size=600)}]
    predictor = small("linear", fit=FitConfig(memory=100)).train(data)
    before = next(iter(predictor.predict(data)))
    predictor.start(data)
    for _ in range(150):
        predictor.update(3 * rng.normal())
    after = predictor.forecast()[0]
    width = [(f.quantile(0.9) - f.quantile(0.1)).mean() for f in (before, after)]
    assert 2 < width[1] / width[0] < 4


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0, 2.0], {}, r"values has shape \(2,\), expected \(3, 1\)"),
        ([1.0, 2.0, np.inf], {}, "values must be finite numbers, or NaN where missing"),
        ([1.0, 2.0, 3.0], {"dt": 0.0}, "dt must be positive"),
        ([1.0, 2.0, 3.0], {"known": [1.0, 2.0, 3.0]}, r"known has shape \(3,\), expected \(3, 0\)"),
    ],
)
def test_refused_updates(values, options, message, small, make_entries):
    predictor = small("linear").train(make_entries())
    with pytest.raises(ValueError, match="there is no history yet"):
        predictor.update(values)
    predictor.start(make_entries())
    with pytest.raises(ValueError, match=message):
        predictor.update(values, **options)


def test_another_sampling_rate(small):
    """Trained on hours, asked for half hours and for two hours of the same waves."""
    import pandas as pd

    rng = np.random.default_rng(0)

    def entry(step, freq, hours=1500):
        time = np.arange(0, hours, step)
        x = np.sin(2 * np.pi * time / 24) + 0.3 * np.sin(2 * np.pi * time / 12 + 1) + 0.01 * rng.normal(size=len(time))
        return {"start": pd.Period("2020-01-01", freq), "target": x}

    predictor = small("linear", prediction_length=24).train([entry(1, "h")])
    for step, freq in ((0.5, "30min"), (2, "2h")):
        other = at_rate(predictor, step, freq)
        forecast = next(iter(other.predict([entry(step, freq)])))
        time = 1500 + step * np.arange(int(24 / step))
        truth = np.sin(2 * np.pi * time / 24) + 0.3 * np.sin(2 * np.pi * time / 12 + 1)
        assert forecast.mean.shape == truth.shape
        assert np.abs(forecast.mean - truth).mean() < 0.12
        assert np.isfinite(forecast.quantile(0.9)).all()
    with pytest.raises(ValueError, match="expected above 0 and at most 24"):
        at_rate(predictor, 25, "25h")
