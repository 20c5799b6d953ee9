"""Backtest, cross-validation, leaderboard tasks and anomaly scores."""

import math

import numpy as np
import pandas as pd
import pytest

from timeseries import anomaly_scores, backtest
from timeseries.backtesting import cross_validate
from timeseries.config import FitConfig
from timeseries.leaderboards import TASKS, load, main, seasonal_naive_backtest


@pytest.mark.parametrize("output", ["conformal", "quantiles"])
@pytest.mark.parametrize(("kind", "gain"), [("linear", 0.0), ("linear", 3.0), ("s4d", 0.0), ("patch", 0.0)])
def test_backtest_is_predict_from_every_origin(kind, gain, output, small, make_entries, cut_entries):
    data = make_entries(length=200, channels=2)
    fit = FitConfig(epochs=1, steps_per_epoch=2, batch_size=4, accelerator="cpu", memory=40, gain=gain)
    predictor = small(kind, output=output, fit=fit).train(cut_entries(data, 24))
    result = backtest(predictor, data, windows=3, distance=5, season=24)
    assert result.outcomes.shape == (3 * 2 * 3, 6)
    at = 0
    for entry in data:
        forecasts = {
            end: next(
                iter(predictor.predict([{**entry, "target": entry["target"][:, : entry["target"].shape[1] - end]}]))
            )
            for end in (16, 11, 6)
        }
        for channel in range(2):
            for end, forecast in forecasts.items():
                stop = entry["target"].shape[1] - end
                np.testing.assert_array_equal(result.outcomes[at], entry["target"][channel, stop : stop + 6])
                for level in (0.1, 0.5, 0.9):
                    mine = result.quantiles[result.levels.index(level), at]
                    np.testing.assert_allclose(mine, forecast.quantile(level)[:, channel], rtol=1e-5)
                at += 1
    assert 0 < result.mase < 5
    assert 0 < result.wql < 1
    assert result.coverage().shape == (6,)


def test_scores_are_those_of_gluonts(small, make_entries):
    from gluonts.dataset.split import split
    from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
    from gluonts.model.evaluation import evaluate_model

    data = make_entries(length=240)
    train, template = split(data, offset=-18)
    predictor = small("linear").train(list(train))
    test = template.generate_instances(prediction_length=6, windows=3)
    metrics = [MASE(), MeanWeightedSumQuantileLoss([k / 10 for k in range(1, 10)])]
    table = evaluate_model(model=predictor, test_data=test, metrics=metrics, axis=None, seasonality=24)
    result = backtest(predictor, data, windows=3, season=24)
    assert result.mase == pytest.approx(table["MASE[0.5]"].iloc[0], rel=1e-6)
    assert result.wql == pytest.approx(table["mean_weighted_sum_quantile_loss"].iloc[0], rel=1e-6)


def test_cross_validation_trains_before_each_fold(small, make_entries):
    data = make_entries(length=200)
    folds = cross_validate(small("linear"), data, folds=3, season=24)
    for fold, steps in zip(folds, (18, 12, 6), strict=True):
        expected = np.stack([e["target"][len(e["target"]) - steps :][:6] for e in data])
        np.testing.assert_array_equal(fold.outcomes, expected)


def test_backtest_of_a_short_series_is_refused(small, make_entries):
    predictor = small("linear").train(make_entries())
    with pytest.raises(ValueError, match="item 'item 0': 160 steps are too few for 30 windows of 6"):
        backtest(predictor, make_entries(), windows=30)


@pytest.mark.parametrize("output", ["conformal", "normal", "quantiles"])
@pytest.mark.parametrize("kind", ["linear", "mamba"])
def test_anomalies_stand_out(kind, output, small, make_entries):
    data = make_entries(n=1, length=400)
    fit = FitConfig(epochs=2, steps_per_epoch=20, batch_size=8, lr=1e-2, accelerator="cpu")
    predictor = small(kind, output=output, fit=fit).train(data)
    odd = {**data[0], "target": data[0]["target"].copy()}
    odd["target"][300] += 8
    odd["target"][200] = np.nan
    (scores,) = anomaly_scores(predictor, [odd])
    assert scores.shape == (400,)
    assert np.isnan(scores[[0, 200]]).all()
    assert np.nanargmax(scores) == 300
    assert np.nanmax(scores) > np.nanmedian(scores) + 20


def test_surprise_is_the_normal_likelihood(small):
    """White noise around a level: the score of a value is its negative log density."""
    rng = np.random.default_rng(0)
    data = [{"start": pd.Period("2020", "h"), "target": 5 + 2 * rng.normal(size=3000)}]
    predictor = small("linear").train(data)
    (scores,) = anomaly_scores(predictor, data)
    z = (data[0]["target"] - 5) / 2
    expected = 0.5 * z**2 + math.log(2) + 0.5 * math.log(2 * math.pi)
    assert np.abs(scores[500:] - expected[500:]).mean() < 0.15


def test_leaderboard_protocols_give_the_published_naive_scores(shared_data):
    """To four digits, from the files themselves: horizons, windows, sums and seasons are those of the leaderboards."""
    for name, task in TASKS.items():
        result = seasonal_naive_backtest(task, load(task, shared_data / "timeseries"))
        assert round(result.mase, 4) == task.naive, name
        second = getattr(result, task.second)
        if not name.startswith(("gift", "fev")):  # those two score a naive forecast with intervals
            assert second == pytest.approx(task.published["seasonal naive"][1], abs=5e-4)


def test_leaderboard_command(shared_data, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    words = ["--data-dir", str(shared_data / "timeseries"), "--tasks", "[gift/ett1/W]", "--output", str(out)]
    assert main(words) == 0
    table = pd.read_csv(out).set_index("model")
    assert table.loc["LinearSSM (ours)", "mase"] < table.loc["seasonal naive", "mase"]
    assert main(["--data-dir", "nowhere"]) == 2
    assert "--data-dir nowhere: ETTm1.csv is not there" in capsys.readouterr().err
