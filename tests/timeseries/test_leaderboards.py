"""The published tasks: the data are the leaderboards' own, and the table keeps what it had."""

import csv
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from timeseries import leaderboards
from timeseries.backtesting import DECILES, Backtest
from timeseries.leaderboards import GIFT, OURS, TASKS, geometric_means


@pytest.mark.parametrize("name", ["chronos/ETTh", "chronos/exchange_rate", "fev/ETT_1H", "gift/ett1/H/short"])
def test_seasonal_naive_has_its_published_score(name, etth1):
    task = TASKS[name]
    result = leaderboards.seasonal_naive_backtest(task, leaderboards.load(task, str(etth1.parent)))
    assert abs(result.mase - task.naive) < 5e-5
    second = task.published["seasonal naive"][1]
    if name.startswith("fev"):  # published with intervals of its own; those of a point are the MASE
        assert result.sql == pytest.approx(result.mase)
        assert second < result.sql
        return
    if name.startswith("gift"):
        result = replace(result, quantiles=result.quantiles + normal_intervals(task, etth1.parent))
    assert abs(getattr(result, task.second) / second - 1) < 5e-3


def normal_intervals(task, folder):
    """What GIFT-Eval's seasonal naive forecast adds for every level: normal errors whose variance grows by the season.

    StatsForecast's, from all differences over a season before the window; shape (levels, windows, horizon).
    """
    sigmas = []
    for entry in leaderboards.load(task, str(folder)):
        for window in range(task.windows, 0, -1):
            seen = entry["target"][: len(entry["target"]) - window * task.horizon]
            sigmas.append(np.sqrt(np.mean((seen[task.season :] - seen[: -task.season]) ** 2)))
    growth = np.sqrt(np.arange(task.horizon) // task.season + 1)
    levels = [NormalDist().inv_cdf(level) for level in DECILES]
    return np.array(levels)[:, None, None] * np.array(sigmas)[:, None] * growth


def test_geometric_means_are_of_ratios_and_of_all_configurations():
    rows = [[name, model, *scores] for name, task in GIFT.items() for model, scores in task.published.items()]
    means = geometric_means(rows)
    assert means["seasonal naive"] == pytest.approx((1.0, 1.0))
    task = GIFT["gift/ett1/W/short"]
    more = [[name, OURS, 0.5 * t.published["seasonal naive"][0], 1.0] for name, t in GIFT.items()]
    assert geometric_means([*rows, *more])[OURS][0] == pytest.approx(0.5)
    logs = [np.log(t.published["TFT"][0] / t.published["seasonal naive"][0]) for t in GIFT.values()]
    assert means["TFT"][0] == pytest.approx(np.exp(np.mean(logs)))
    assert OURS not in geometric_means([*rows, *more[:-1]])  # one is missing
    assert task.published["FlowState"] == (1.451, 0.245)


def test_a_table_grows_task_by_task(etth1, tmp_path, monkeypatch, capsys):
    def perfect(task, entries):
        outcomes = np.ones((1, task.horizon))
        quantiles = np.repeat(outcomes[None], len(DECILES), 0)
        return Backtest(
            levels=DECILES, quantiles=quantiles, outcomes=outcomes, seasonal_errors=np.ones(1), items=("a",)
        )

    monkeypatch.setattr(leaderboards, "linear_backtest", perfect)
    words = ["--data-dir", str(etth1.parent), "--output", str(tmp_path / "t.csv")]
    for name in ("chronos/exchange_rate", "chronos/ETTh", "chronos/ETTh"):
        assert leaderboards.main([*words, "--tasks", f"[{name}]"]) == 0
    rows = [row["task"] for row in csv.DictReader((tmp_path / "t.csv").open()) if row["model"] == OURS]
    assert rows == ["chronos/exchange_rate", "chronos/ETTh"]
    assert "MASE 0.0000, wql 0.0000" in capsys.readouterr().out
    assert leaderboards.main([*words, "--tasks", "[nothing]"]) == 2
