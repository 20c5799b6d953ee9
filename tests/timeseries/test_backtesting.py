"""Backtest, cross-validation, leaderboard tasks and anomaly scores."""

import math

import numpy as np
import pandas as pd
import pytest

from timeseries import StructuralConfig, StructuralEstimator, anomaly_scores, backtest
from timeseries.backtesting import Backtest, cross_validate
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


def test_any_predictor_is_backtested(make_entries):
    """GluonTS's seasonal naive forecast, whose quantiles are all the value a day before."""
    from gluonts.model.seasonal_naive import SeasonalNaivePredictor

    data = make_entries(length=100, channels=2)
    single = [{**entry, "target": entry["target"][0]} for entry in data]
    naive = SeasonalNaivePredictor(prediction_length=6, season_length=24)
    result = backtest(naive, single, windows=2, distance=3, season=24)
    expected = [e["target"][len(e["target"]) - end - 24 :][:6] for e in single for end in (9, 6)]
    np.testing.assert_allclose(result.quantile(0.9), np.stack(expected), rtol=1e-6)
    structural = StructuralEstimator(6, configs=[StructuralConfig(trend="level")])
    (fold,) = cross_validate(structural, data, folds=1)
    forecasts = structural.train(data).predict([{**e, "target": e["target"][:, :-6]} for e in data])
    mine = np.concatenate([forecast.quantile(0.1).T for forecast in forecasts])
    np.testing.assert_allclose(fold.quantile(0.1), mine)


def test_covariates_and_steps_end_with_the_target(small, make_entries):
    data = [{**e, "dt": np.ones(len(e["target"]))} for e in make_entries(features=True)]
    folds = cross_validate(small("linear"), data, folds=2)
    plain = cross_validate(small("linear"), make_entries(features=True), folds=2)
    for one, other in zip(folds, plain, strict=True):
        np.testing.assert_allclose(one.quantiles, other.quantiles, rtol=1e-6)


def test_levels_between_those_of_the_head_are_as_gluonts_reads_them(small, make_entries):
    data = make_entries()
    predictor = small("linear", output="quantiles").train(data)
    result = backtest(predictor, data, windows=1, levels=(0.025, 0.25, 0.5))
    forecast = next(iter(predictor.predict([{**data[0], "target": data[0]["target"][:-6]}])))
    for level in (0.025, 0.25, 0.5):
        np.testing.assert_allclose(result.quantile(level)[0], forecast.quantile(level), rtol=1e-6)
    assert (result.quantile(0.025) < result.quantile(0.25)).all()


def test_what_is_not_known_does_not_count():
    outcomes = np.array([[1.0, np.nan], [3.0, np.nan], [5.0, np.nan]])
    levels = tuple(round(0.1 * k, 1) for k in range(1, 10))
    made = np.full((9, 3, 2), 2.0)
    result = Backtest(
        levels=levels, quantiles=made, outcomes=outcomes, seasonal_errors=np.array([1.0, 2.0, 0.0]), items=(0, 1, 2)
    )
    assert result.mase == pytest.approx((1 / 1 + 1 / 2) / 2)  # the third has never changed before
    assert result.sql == pytest.approx((1 / 1 + 1 / 2) / 2)
    assert result.wql == pytest.approx(5 / 9)
    np.testing.assert_array_equal(result.coverage(), [0.0, np.nan])
    with pytest.raises(ValueError, match=r"level 0.95 was not kept, only 0.1, 0.2, .* give backtest the levels"):
        result.coverage(0.1, 0.95)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 30}, "item 'item 0': 160 steps are too few for 30 windows of 6"),
        ({"windows": 2.5}, "backtest: windows=2.5, expected a whole number of at least 1"),
        ({"season": 0}, "backtest: season=0, expected a whole number"),
        ({"levels": (0.5, 1.5)}, r"backtest: levels=\[0.5, 1.5\], expected one or more between 0 and 1"),
        ({"dataset": []}, "backtest: the dataset has no entries"),
        ({"dataset": pd.DataFrame({"x": [1.0]})}, "item 0 of the dataset is of type str.*; from_pandas makes"),
        ({"predictor": StructuralEstimator(6)}, "predictor is of type StructuralEstimator, expected a predictor"),
    ],
)
def test_refused_backtests(options, message, small, make_entries):
    given = {"predictor": small("linear").train(make_entries()), "dataset": make_entries(), "windows": 1, **options}
    with pytest.raises(ValueError, match=message):
        backtest(given.pop("predictor"), given.pop("dataset"), **given)


def test_refused_folds_and_scores(small, make_entries):
    data, estimator = make_entries(), small("linear")
    with pytest.raises(ValueError, match="item 'item 0': 160 steps are too few to train before 27 folds of 6"):
        cross_validate(estimator, data, folds=27)
    predictor = estimator.train(data)
    with pytest.raises(ValueError, match="estimator is of type SSMPredictor, expected an estimator"):
        cross_validate(predictor, data, folds=2)
    with pytest.raises(ValueError, match="anomaly_scores: memory=0, expected a whole number"):
        anomaly_scores(predictor, data, memory=0)
    with pytest.raises(ValueError, match="predictor is of type StructuralPredictor, expected an SSMPredictor"):
        anomaly_scores(StructuralEstimator(6).train(data), data)


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
