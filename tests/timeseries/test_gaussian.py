"""Structural and DeepState estimators: what GluonTS asks of its own, and exactness."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.model.predictor import Predictor

from timeseries import DeepStateEstimator, StructuralEstimator, from_pandas
from timeseries.config import FitConfig, StructuralConfig
from timeseries.gaussian import candidates

QUICK = FitConfig(epochs=1, steps_per_epoch=3, batch_size=8)


def entries(count=2, length=120, freq="h", seed=0, **extra):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        t = np.arange(length + 7 * i)
        y = 10 * i + 3 * np.sin(2 * np.pi * t / 24) + rng.standard_normal(len(t)).cumsum() * 0.1
        made.append(
            {"start": pd.Period("2024-01-01", freq), "target": y, "item_id": f"i{i}", "info": {"n": i}, **extra}
        )
    return made


def build(kind, **options):
    if kind == "structural":
        configs = (StructuralConfig(), StructuralConfig(seasons=(4,), harmonics=1))
        return StructuralEstimator(6, configs=configs, **options)
    return DeepStateEstimator(6, fit=QUICK, d_model=8, num_layers=1, context_length=48, **options)


def finite(forecasts, shape=(6,)):
    for forecast in forecasts:
        low, middle, high = (forecast.quantile(level) for level in (0.1, 0.5, 0.9))
        assert middle.shape == shape
        assert np.isfinite(low).all()
        assert (low <= middle).all()
        assert (middle <= high).all()
        np.testing.assert_allclose(forecast.mean, middle, rtol=1e-6, atol=1e-6)
    return forecasts


@pytest.mark.parametrize("kind", ["structural", "deep_state"])
class TestBattery:
    def test_train_predict_save_load(self, kind, tmp_path):
        data = entries(unknown_field=3)
        predictor = build(kind).train(data)
        forecasts = finite(list(predictor.predict(data)))
        assert [f.item_id for f in forecasts] == ["i0", "i1"]
        assert [f.info for f in forecasts] == [{"n": 0}, {"n": 1}]
        assert forecasts[1].start_date == data[1]["start"] + 127
        predictor.serialize(tmp_path)
        again = Predictor.deserialize(tmp_path)
        assert again == predictor
        for one, other in zip(forecasts, again.predict(data), strict=True):
            np.testing.assert_allclose(one.quantile(0.9), other.quantile(0.9))

    @pytest.mark.parametrize("value", [0.0, 5.0])
    def test_constant_series(self, kind, value):
        data = [{**e, "target": np.full(80, value)} for e in entries()]
        for forecast in finite(list(build(kind).train(data).predict(data))):
            np.testing.assert_allclose(forecast.quantile(0.5), value, atol=1e-5)

    def test_missing_values_and_several_channels(self, kind):
        data = entries()
        for entry in data:
            entry["target"] = np.stack([entry["target"], -entry["target"]])
            entry["target"][0, 30:50] = np.nan
            entry["target"][1, -3:] = np.nan
        data[1]["target"][1] = np.nan
        finite(list(build(kind).train(data).predict(data)), (6, 2))

    def test_covariates_and_other_frequencies(self, kind):
        for freq in ("15min", "D", "W-SUN", "M"):
            data = entries(freq=freq)
            for entry in data:
                entry["feat_dynamic_real"] = np.ones((1, len(entry["target"]) + 6))
                entry["feat_static_real"] = np.array([1.5])
            finite(list(build(kind).train(data).predict(data)))

    def test_a_single_observation(self, kind):
        data = entries()
        predictor = build(kind).train(data)
        finite(list(predictor.predict([{**data[0], "target": np.array([4.0])}])))

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, object])
    def test_targets_of_any_type_and_validation_data(self, kind, dtype):
        data = [{**e, "target": np.round(e["target"] * 10).astype(dtype)} for e in entries()]
        finite(list(build(kind).train(data, data).predict(data)))

    @pytest.mark.parametrize("freq", ["ME", "QE", "MS", "YE", "B", "min", "10s"])
    def test_names_of_frequencies(self, kind, freq):
        series = pd.Series(np.sin(np.arange(70.0)), index=pd.date_range("1950-01-31", periods=70, freq=freq))
        data = from_pandas(series, freq=freq)
        finite(list(build(kind, freq=freq).train(data).predict(data)))

    def test_train_from(self, kind):
        data = entries()
        first = build(kind).train(data)
        again = build(kind).train_from(first, data)
        finite(list(again.predict(data)))
        with pytest.raises(ValueError, match="train_from: the predictor was trained with other options"):
            build(kind).__class__(7).train_from(first, data)

    def test_seeds_repeat_and_devices_are_taken(self, kind, tmp_path):
        data = entries()
        predictor = build(kind).train(data)
        assert predictor == build(kind).train(data)
        predictor.serialize(tmp_path)
        assert Predictor.deserialize(tmp_path, device="cpu") == predictor

    def test_a_horizon_longer_than_the_history(self, kind):
        data = [{**e, "target": e["target"][:4]} for e in entries()]
        finite(list(build(kind).train(data).predict(data)))

    def test_the_console_and_the_working_folder_stay_clean(self, kind, tmp_path, monkeypatch, capfd):
        monkeypatch.chdir(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "ssm_kernels: no C compiler")  # once a process, and not ours to hide
            list(build(kind).train(entries()).predict(entries()))
        assert capfd.readouterr() == ("", "")
        assert not list(tmp_path.iterdir())

    def test_bad_series_are_named(self, kind):
        data = entries()
        predictor = build(kind).train(data)
        with pytest.raises(ValueError, match="'i0'.*target is inf"):
            list(predictor.predict([{**data[0], "target": np.array([1.0, np.inf])}]))
        with pytest.raises(ValueError, match="its frequency is 'D', the others have 'h'"):
            build(kind).train([data[0], {**data[1], "start": pd.Period("2024-01-01", "D")}])
        with pytest.raises(ValueError, match="'i0'.*no observed value"):
            list(predictor.predict([{**data[0], "target": np.full(9, np.nan)}]))
        with pytest.raises(ValueError, match="'i0'.*frequency"):
            list(predictor.predict([{**data[0], "start": pd.Period("2024-01-01", "D")}]))
        with pytest.raises(ValueError, match="expected"):
            build(kind).__class__(0)


@pytest.mark.parametrize("values", [[3.0], [3.0, 4.0], [0.0, 1.0, 2.0, 3.0, 4.0]])
def test_few_values_get_no_more_states_than_they_can_tell(values):
    """A slope and a season of 24 would explain five values and forecast their own vague prior."""
    data = [{"start": pd.Period("2024-01-01", "h"), "target": np.array(values)}]
    (forecast,) = StructuralEstimator(12).train(data).predict(data)
    assert np.abs(forecast.quantile(0.9) - values[-1]).max() < 50


def test_the_season_is_found():
    data = entries(count=1, length=240)
    (forecast,) = StructuralEstimator(24).train(data).predict(data)
    expected = 3 * np.sin(2 * np.pi * np.arange(240, 264) / 24) + data[0]["target"][-24:].mean()
    assert np.corrcoef(forecast.mean, expected)[0, 1] > 0.97
    assert {c.seasons for c in candidates("h")} == {(), (24,)}
    assert candidates("15min")[-1].harmonics == 6


def test_deep_state_learns():
    data = entries(count=4, length=200)
    config = StructuralConfig(seasons=(24,), harmonics=2)
    options = {"d_model": 16, "num_layers": 1, "context_length": 72, "config": config}
    losses = []
    for steps in (1, 60):
        fit = FitConfig(epochs=2, steps_per_epoch=steps, batch_size=16, lr=5e-3)
        predictor = DeepStateEstimator(12, fit=fit, **options).train(data)
        errors = []
        cut = [{**e, "target": e["target"][:-12]} for e in data]
        for entry, forecast in zip(data, predictor.predict(cut), strict=True):
            spread = (forecast.quantile(0.9) - forecast.quantile(0.1)) / 2.563
            normal = torch.distributions.Normal(torch.tensor(forecast.mean), torch.tensor(spread))
            errors.append(-normal.log_prob(torch.tensor(entry["target"][-12:])).mean())
        losses.append(float(np.mean(errors)))
    assert losses[1] < losses[0] - 0.1
