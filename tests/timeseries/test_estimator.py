"""What GluonTS asks of its own estimators, asked of ours; and what GluonTS itself gets wrong."""

import io
import json
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.split import split
from gluonts.ev.metrics import MASE
from gluonts.model.evaluation import evaluate_model
from gluonts.model.predictor import Predictor
from gluonts.torch import distributions
from lightning.pytorch.callbacks import Callback

from ssmcore.engine import load_weights, save_weights
from timeseries import SSMEstimator, from_pandas
from timeseries.config import FitConfig
from timeseries.heads import OUTPUTS
from timeseries.predictor import PLAN, WEIGHTS, SSMPredictor
from timeseries.series import read_series

KINDS = ["linear", "s4d", "mamba", "patch", "s_mamba", "time_machine", "simba"]


def finite(forecasts, horizon=6, channels=None):
    shape = (horizon,) if channels is None else (horizon, channels)
    for forecast in forecasts:
        for level in (0.1, 0.5, 0.9):
            values = forecast.quantile(level)
            assert values.shape == shape
            assert np.isfinite(values).all()
        assert (forecast.quantile(0.9) >= forecast.quantile(0.1)).all()
        assert np.isfinite(forecast.mean).all()
    return forecasts


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_constant_series_are_forecast_exactly(kind, validation, small, make_entries):
    data = [{**entry, "target": np.full(80, 10.0 * i)} for i, entry in enumerate(make_entries())]
    predictor = small(kind).train(data, data if validation else None)
    for i, forecast in enumerate(finite(list(predictor.predict(data)))):
        np.testing.assert_allclose(forecast.quantile(0.5), 10.0 * i, atol=1e-6)
        np.testing.assert_allclose(forecast.quantile(0.9), 10.0 * i, atol=1e-4)


@pytest.mark.parametrize("output", ["conformal", "student_t", "quantiles"])
@pytest.mark.parametrize("kind", KINDS)
def test_train_predict_serialize(kind, output, small, make_entries, tmp_path):
    data = make_entries()
    predictor = small(kind, output=output, num_samples=20).train(data)
    torch.manual_seed(1)
    forecasts = finite(list(predictor.predict(data)))
    for entry, forecast in zip(data, forecasts, strict=True):
        assert forecast.item_id == entry["item_id"]
        assert forecast.info == entry["info"]
        assert forecast.start_date == entry["start"] + len(entry["target"])
    predictor.serialize(tmp_path)
    copy = Predictor.deserialize(tmp_path)
    assert isinstance(copy, SSMPredictor)
    assert copy == predictor
    torch.manual_seed(1)
    for mine, theirs in zip(forecasts, copy.predict(data), strict=True):
        np.testing.assert_array_equal(mine.quantile(0.3), theirs.quantile(0.3))
        np.testing.assert_array_equal(mine.mean, theirs.mean)
    with torch.no_grad():
        copy.network.base.linear.bias += 1
    assert copy != predictor


def test_a_predictor_of_an_earlier_version_loads(small, make_entries, tmp_path):
    data = make_entries(features=True, future=6)
    predictor = small("linear").train(data)
    predictor.serialize(tmp_path)
    plan = json.loads((tmp_path / PLAN).read_text())  # before there were cycles, gains, and effects by channel
    del plan["schema"]["harmonics"], plan["gain"], plan["blueprint"]["sizes"]["channels"]
    (tmp_path / PLAN).write_text(json.dumps(plan))
    tensors, _ = load_weights(tmp_path / WEIGHTS)
    assert tensors["network.base.effect"].abs().max() > 0
    tensors["network.base.effect"] = tensors["network.base.effect"].squeeze(1)
    save_weights(tmp_path / WEIGHTS, tensors, {})
    assert Predictor.deserialize(tmp_path) == predictor


@pytest.mark.parametrize("output", sorted(OUTPUTS))
def test_every_gluonts_output(output, small, make_entries, tmp_path):
    data = make_entries()
    if output in ("poisson", "negative_binomial"):
        data = [{**entry, "target": np.round(entry["target"])} for entry in data]
    if output in ("beta", "truncated_normal"):
        data = [{**entry, "target": entry["target"] / 1000} for entry in data]
    predictor = small("linear", output=output, num_samples=50, fit=FitConfig(epochs=2, steps_per_epoch=5)).train(data)
    forecasts = finite(list(predictor.predict(data)))
    if OUTPUTS[output][2] != "real" and output != "truncated_normal":
        assert all((forecast.quantile(0.1) >= 0).all() for forecast in forecasts)
    predictor.serialize(tmp_path)
    assert Predictor.deserialize(tmp_path) == predictor


def test_an_output_object_will_do(small, make_entries):
    by_object = small("linear", output=distributions.QuantileOutput([0.25, 0.5, 0.75]))
    assert by_object.output == {"name": "quantiles", "args": {"quantiles": [0.25, 0.5, 0.75]}}
    forecast = next(iter(by_object.train(make_entries()).predict(make_entries())))
    assert forecast.forecast_keys == ["0.25", "0.5", "0.75"]


def test_a_distribution_learns_how_wide_it_should_be(small, make_entries):
    """Normal noise of a known size around a level: the head finds that size, in any unit."""
    rng = np.random.default_rng(0)
    data = [{**entry, "target": 1e4 + 50 * rng.normal(size=600)} for entry in make_entries()]
    fit = FitConfig(epochs=6, steps_per_epoch=40, batch_size=16, lr=3e-2, accelerator="cpu")
    predictor = small("linear", output="normal", fit=fit, num_samples=2000).train(data)
    forecast = next(iter(predictor.predict(data)))
    width = (forecast.quantile(0.9) - forecast.quantile(0.1)).mean()
    assert abs(width / (2.563 * 50) - 1) < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_every_kind(kind, small, make_entries, cut_entries):
    data = make_entries(features=True)
    predictor = small(kind).train(data)
    ahead = cut_entries(data, 6)
    forecasts = finite(list(predictor.predict(ahead)))
    wide = [{**entry, "feat_dynamic_real": entry["feat_dynamic_real"] + 1.0} for entry in ahead]
    if kind == "linear":  # the effect of 2 in units of the amplitude is found, and used
        effect = [f.mean - np.sin(0) for f in forecasts]
        shuffled = [dict(entry) for entry in ahead]
        for entry in shuffled:
            entry["feat_dynamic_real"] = entry["feat_dynamic_real"].copy()
            entry["feat_dynamic_real"][0, -6:] += 1.0
        moved = [f.mean for f in predictor.predict(shuffled)]
        for i, (a, b) in enumerate(zip(effect, moved, strict=True)):
            np.testing.assert_allclose(b - a, 2.0 * (i + 1), rtol=0.3)
    finite(list(predictor.predict(wide)))
    wrong = r"item 'item 0': feat_dynamic_real has shape \(2, 160\), expected shape \(2, 166 or more\)"
    with pytest.raises(ValueError, match=wrong):
        list(predictor.predict(data))
    new = [{**entry, "feat_static_cat": np.array([77, 0])} for entry in ahead]
    finite(list(predictor.predict(new)))  # a category that training has not seen
    finite(list(small(kind, covariates=False).train(data).predict(data)))


def test_known_covariates_pay(small, make_entries, cut_entries):
    data = make_entries(features=True, length=300)
    errors = {}
    for covariates in (True, False):
        forecasts = small("linear", covariates=covariates).train(cut_entries(data, 6)).predict(cut_entries(data, 6))
        errors[covariates] = np.mean(
            [np.abs(f.mean - e["target"][-6:]).mean() for f, e in zip(forecasts, data, strict=True)]
        )
    assert errors[True] < 0.5 * errors[False]


@pytest.mark.parametrize("kind", KINDS)
def test_multivariate(kind, small, make_entries, tmp_path):
    data = make_entries(channels=3)
    predictor = small(kind).train(data)
    forecasts = finite(list(predictor.predict(data)), channels=3)
    np.testing.assert_allclose(forecasts[0].mean[:, 1], 2 * forecasts[0].mean[:, 0], rtol=1e-2)
    predictor.serialize(tmp_path)
    assert Predictor.deserialize(tmp_path) == predictor


@pytest.mark.parametrize("kind", KINDS)
def test_train_from(kind, small, make_entries):
    data = make_entries(length=300)
    first = small(kind).train(data)
    again = small(kind).train_from(first, data)
    finite(list(again.predict(data)))
    assert again != first
    with pytest.raises(ValueError, match="train_from: the predictor was trained with other options"):
        small(kind, prediction_length=7).train_from(first, data)


def test_train_from_keeps_what_new_data_say_nothing_about(small, make_entries):
    data = make_entries(length=400)
    first = small("linear").train(data)
    few = [{**data[0], "target": data[0]["target"][:16]}]
    again = small("linear").train_from(first, few)
    fresh = small("linear").train(few)
    before, kept, new = (next(iter(p.predict(data))).mean for p in (first, again, fresh))
    assert np.abs(kept - before).mean() < 0.5 * np.abs(new - before).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_devices(kind, small, make_entries, tmp_path):
    data = make_entries()
    predictor = small(kind).train(data)
    mean = next(iter(predictor.predict(data))).mean
    predictor.serialize(tmp_path)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        moved = Predictor.deserialize(tmp_path, device=device)
        np.testing.assert_allclose(next(iter(moved.predict(data))).mean, mean, rtol=1e-4)
    assert next(iter(predictor.to("cpu").predict(data))).mean == pytest.approx(mean)


def test_gluonts_evaluation(small, make_entries):
    data = make_entries(length=240)
    train, template = split(data, offset=-24)
    predictor = small("linear").train(list(train))
    test = template.generate_instances(prediction_length=6, windows=4)
    table = evaluate_model(model=predictor, test_data=test, metrics=[MASE()], axis=None, seasonality=24)
    assert 0 < table["MASE[0.5]"].iloc[0] < 1


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_repeat(kind, small, make_entries):
    data = make_entries()
    assert small(kind).train(data) == small(kind).train(data)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, object])
@pytest.mark.parametrize("kind", ["linear", "mamba", "s_mamba"])
def test_targets_of_any_type(kind, dtype, small, make_entries):
    data = [{**entry, "target": np.round(entry["target"] * 10).astype(dtype)} for entry in make_entries()]
    finite(list(small(kind).train(data).predict(data)))


@pytest.mark.parametrize("freq", ["ME", "QE", "MS", "YE", "W", "D", "B", "min", "s", "10s"])
def test_frequencies(freq, small):
    dates = pd.date_range("1950-01-31", periods=70, freq=freq)
    series = pd.Series(np.sin(np.arange(70)) + 5, index=dates)
    data = from_pandas(series, freq=freq)
    for given in (None, freq):
        predictor = SSMEstimator(4, given, linear=small("linear").linear).train(data)
        forecast = next(iter(predictor.predict(data)))
        assert forecast.start_date == data[0]["start"] + 70
        finite([forecast], horizon=4)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_values_and_gaps(kind, small, make_entries):
    rng = np.random.default_rng(1)
    data = make_entries()
    for entry in data:
        entry["target"] = np.where(rng.random(len(entry["target"])) < 0.3, np.nan, entry["target"])
        entry["target"][40:70] = np.nan
        entry["target"][-3:] = np.nan
    finite(list(small(kind).train(data).predict(data)))


class Count(Callback):
    def __init__(self):
        self.epochs = 0

    def on_train_epoch_end(self, trainer, module):
        self.epochs += 1


def test_callbacks_are_kept(small, make_entries):
    count = Count()
    estimator = small("mamba", callbacks=[count])
    for expected in (1, 2):
        estimator.train(make_entries())
        assert count.epochs == expected


def test_the_console_and_the_working_folder_stay_clean(small, make_entries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "ssm_kernels: no C compiler")  # once a process, and not ours to hide
        for kind in ("linear", "s4d", "s_mamba", "time_machine", "simba"):
            list(small(kind).train(make_entries()).predict(make_entries()))
    assert (out.getvalue(), err.getvalue()) == ("", "")
    assert not list(Path(tmp_path).iterdir())


def test_early_stopping(small, make_entries):
    count = Count()
    fit = FitConfig(epochs=50, steps_per_epoch=1, batch_size=2, lr=0.0, patience=2, accelerator="cpu")
    small("s4d", fit=fit, callbacks=[count]).train(make_entries())
    assert count.epochs == 3  # the first, and two that were not better


def test_a_network_that_does_not_help_is_left_out(small, make_entries):
    """A learning rate that ruins everything: what comes out is the linear base."""
    fit = FitConfig(epochs=1, steps_per_epoch=20, batch_size=4, lr=10.0, accelerator="cpu", memory=40)
    data = make_entries()
    ruined = small("s4d", fit=fit).train(data)
    linear = small("linear", fit=fit).train(data)
    for a, b in zip(ruined.predict(data), linear.predict(data), strict=True):
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-5)


@pytest.mark.parametrize("mixer", ["gru", "s5", "lru", "gla", "attention", "retnet"])
def test_any_mixer(mixer, small, make_entries):
    predictor = small("s4d", mixer=mixer).train(make_entries())
    assert predictor.trained.blueprint.mixer == mixer
    finite(list(predictor.predict(make_entries())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_length": 0}, "SSMEstimator: prediction_length=0, expected a whole number of at least 1"),
        ({"context_length": 0}, "SSMEstimator: context_length=0, expected a whole number of at least 1"),
        ({"linear": {"median": True}}, "SSMEstimator: linear is of type dict, expected a LinearSSMConfig"),
        ({"fit": "quick"}, "SSMEstimator: fit is of type str, expected a FitConfig"),
        ({"freq": "fortnight"}, "freq='fortnight' is no frequency that pandas knows"),
        ({"output": "gauss"}, "unknown output 'gauss'"),
        ({"mixer": "s4d", "stack": 3}, "stack is 3, expected one of StreamConfig, PatchConfig, SMambaConfig"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        SSMEstimator(**{"prediction_length": 3, **options})


@pytest.mark.parametrize("kind", ["patch", "s_mamba", "time_machine", "simba"])
def test_networks_can_be_traced(kind, small, make_entries):
    """torch.jit.trace, as GluonTS's own tests do with its modules."""
    network = small(kind).train(make_entries(channels=2)).network.encoder.network
    torch.manual_seed(0)
    torch.nn.init.normal_(network.head.weight)
    past = torch.randn(3, 2, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that become constants: the shapes
        traced = torch.jit.trace(network, (past,))
    other = torch.randn(3, 2, 24)
    torch.testing.assert_close(traced(other), network(other))


def test_a_median_read_out_follows_no_wild_weeks(small, make_entries):
    """A tenth of the values leaps up: the median stays, the mean does not, and the validation part says which."""
    rng = np.random.default_rng(0)
    data = [
        {**entry, "target": entry["target"] + 8 * (i + 1) * (rng.random(len(entry["target"])) < 0.1)}
        for i, entry in enumerate(make_entries(length=500))
    ]
    linear = small("linear").linear
    biases = {}
    for median in (False, True):
        predictor = small("linear", linear=replace(linear, median=median, mean_by="mae")).train(data)
        errors = []
        for end in range(400, 500):
            series = read_series({**data[0], "target": data[0]["target"][:end]}, predictor.trained.schema, 6)
            point = predictor.look_ahead(series)[1][0, 0] + series.first
            errors.append(float((point - 20 - np.sin(2 * np.pi * (end + np.arange(6)) / 24)).mean()))
        biases[median] = np.mean(errors)
    assert biases[False] > 0.5
    assert 0 < biases[True] < 0.7 * biases[False]  # nearer to what mostly comes


def test_the_median_is_fitted_again_with_what_was_chosen(small, make_entries):
    data = make_entries(length=300)
    linear = replace(small("linear").linear, median=True)
    once = small("linear", linear=linear).train(data)
    assert once == small("linear", linear=linear).train(data)
    assert once != small("linear").train(data)
    finite(list(once.predict(data)))


@pytest.mark.parametrize("channels", [None, 2])
def test_a_cycle_helps_where_the_context_is_short(channels, small, make_entries, cut_entries, tmp_path):
    """With four values of context nothing but the calendar tells the hour; each channel has its own cycle."""
    data = make_entries(length=400, channels=channels)
    for entry in data:
        t, size = np.arange(np.shape(entry["target"])[-1]), np.mean(entry["target"]) / 20
        shapes = np.stack([np.sin(2 * np.pi * t / 24), np.cos(4 * np.pi * t / 24)])[: channels or 1]
        noise = np.random.default_rng(1).normal(size=shapes.shape)
        entry["target"] = size * (
            20 + 3 * (shapes if channels else shapes[0]) + 0.3 * (noise if channels else noise[0])
        )
    errors = {}
    for cycle in ((), (3,)):
        predictor = small("linear", 12, context_length=4, cycle=cycle).train(cut_entries(data, 12))
        forecasts = predictor.predict(cut_entries(data, 12))
        errors[cycle] = np.mean(
            [np.abs(f.mean.T - e["target"][..., -12:]).mean() for f, e in zip(forecasts, data, strict=True)]
        )
    assert errors[3,] < 0.5 * errors[()]
    predictor.serialize(tmp_path)
    assert Predictor.deserialize(tmp_path) == predictor
    predictor.start(cut_entries(data, 12))
    predictor.update(np.stack([entry["target"][..., -12] for entry in data]))
    ahead = next(iter(predictor.predict(cut_entries(data, 11))))
    np.testing.assert_allclose(predictor.forecast()[0].mean, ahead.mean, rtol=1e-5)
    np.testing.assert_allclose(predictor.forecast()[0].quantile(0.9), ahead.quantile(0.9), rtol=1e-5)
