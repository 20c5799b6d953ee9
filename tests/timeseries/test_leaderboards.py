"""The published tasks: the data are the leaderboards' own, and the table keeps what it had."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from timeseries import leaderboards
from timeseries.backtesting import DECILES, Backtest
from timeseries.leaderboards import GIFT, OURS, TASKS, geometric_means


@pytest.mark.parametrize("name", TASKS)
def test_seasonal_naive_has_both_its_published_scores(name, etth1):
    task = TASKS[name]
    result = leaderboards.seasonal_naive_backtest(task, leaderboards.load(task, str(etth1.parent)))
    assert task.agrees(result)


def test_a_score_that_is_not_the_published_one_leaves_the_task_out(etth1, tmp_path, monkeypatch, capsys):
    """fev-bench's intervals from the whole history, in place of the latest 1,000 values, are not its own."""
    for change in ({"spread_of": 0}, {"naive": 1.3229}):
        monkeypatch.setitem(TASKS, "fev/ETT_1H", replace(leaderboards.TASKS["fev/ETT_1H"], **change))
        words = ["--data-dir", str(etth1.parent), "--output", str(tmp_path / "t.csv"), "--tasks", "[fev]"]
        assert leaderboards.main(words) == 1
        assert "task left out" in capsys.readouterr().out
        monkeypatch.undo()
    assert not (tmp_path / "t.csv").exists()


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
