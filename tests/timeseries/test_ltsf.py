"""The long-term-forecasting runner: its cells, its baselines, its tables, and going on after a stop."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch

from timeseries import ltsf
from timeseries.config import LtsfConfig
from timeseries.data import make_split, read_csv, standardize
from timeseries.models.lag_ridge import LagRidge
from timeseries.models.ridge import fit_linear_ssm


@pytest.fixture
def folder(tmp_path):
    """An hourly file that passes for Weather, and a bare matrix that passes for the exchange rates."""
    rng = np.random.default_rng(0)
    rows = np.arange(600)
    daily = np.sin(2 * np.pi * rows / 24)[:, None] + 0.1 * rng.standard_normal((600, 2))
    frame = pd.DataFrame(daily, columns=["a", "b"])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=600, freq="h"))
    frame.to_csv(tmp_path / "weather.csv", index=False)
    walk = 1 + 0.01 * rng.standard_normal((400, 3)).cumsum(0)
    np.savetxt(tmp_path / "exchange_rate.txt.gz", walk, delimiter=",", fmt="%.6f")
    return tmp_path


def config(folder, **options):
    defaults = {"data_dir": str(folder), "output": str(folder / "out"), "horizons": (8, 12)}
    return LtsfConfig(**{**defaults, **options})


def test_it_writes_every_table_and_goes_on_where_it_stopped(folder, monkeypatch, capsys):
    options = config(folder, horizons=(8,), lookbacks=("short",))
    real, count = ltsf.Runner.run, [0]

    def stops_after_three(self, cell):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return real(self, cell)

    monkeypatch.setattr(ltsf.Runner, "run", stops_after_three)
    with pytest.raises(KeyboardInterrupt):
        ltsf.run(options)
    assert len(list((folder / "out/cells").iterdir())) == 3
    ltsf.run(options)
    assert count[0] == 1 + 2 * 4  # the one that was stopped, and the other five: none twice
    text = (folder / "out/ltsf.md").read_text()
    assert "### Weather, lookback fixed" in text
    assert "### Exchange" in text
    assert "*S-Mamba*" in text
    rows = list(csv.DictReader((folder / "out/ltsf.csv").open()))
    assert {row["model"] for row in rows} == {"naive", "seasonal_naive", "ridge", "linear_ssm"}
    by_model = {row["model"]: float(row["mse"]) for row in rows if row["dataset"] == "Weather"}
    assert by_model["ridge"] < 0.5 * by_model["naive"]
    assert by_model["linear_ssm"] < 0.5 * by_model["naive"]
    assert (folder / "out/ltsf.png").stat().st_size > 1000


def test_all_windows_count(folder):
    options = config(folder, datasets=("Weather",), horizons=(8,), lookbacks=("free",))
    ltsf.run(options)
    for path in (folder / "out/cells").iterdir():
        assert json.loads(path.read_text())["windows"] == 120 - 8 + 1


def test_trained_models_run_once_a_seed(folder):
    train = {"epochs": 1, "steps_per_epoch": 2}
    options = config(
        folder, datasets=("Weather",), horizons=(8,), lookbacks=("short",), models=("s4d",), seeds=2, train=train
    )
    ltsf.run(options)
    rows = [r for r in csv.DictReader((folder / "out/ltsf.csv").open()) if r["model"] == "s4d"]
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert "±" in (folder / "out/ltsf.md").read_text()


def test_the_ridge_baseline_is_least_squares(folder):
    table = read_csv(folder / "weather.csv")
    split = make_split(table, "70/10/20", 5, 3)
    values = torch.from_numpy(standardize(table, split)[0].values.T.copy())
    train, validation = split.origins("train", 5, 3), split.origins("validation", 5, 3)
    model = LagRidge(3, 5)
    fit_linear_ssm(model, values, train, validation, strengths=(0.0,))
    x = torch.cat([values[:, o - 4 : o + 1] for o in train])
    y = torch.cat([values[:, o + 1 : o + 4] for o in train])
    design = torch.cat([x[:, :4] - x[:, 4:], torch.ones(len(x), 1, dtype=x.dtype)], 1)
    weights = torch.linalg.lstsq(design, y - x[:, 4:]).solution
    window = values[:, 100:105]
    expected = window[:, 4:] + torch.cat([window[:, :4] - window[:, 4:], torch.ones(2, 1, dtype=x.dtype)], 1) @ weights
    torch.testing.assert_close(model.from_origins(values)(torch.tensor([104]))[:, 0], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_dir": "/nowhere"}, "give a folder with --data-dir"),
        ({"datasets": ("Traffic",)}, "there is no file for Traffic"),
    ],
)
def test_absent_data_get_a_sentence(folder, options, message, capsys):
    words = [f"--data-dir={options.get('data_dir', folder)}", f"--output={folder / 'out'}"]
    if "datasets" in options:
        words.append("--datasets=[Traffic]")
    assert ltsf.main(words) == 2
    assert message in capsys.readouterr().err
