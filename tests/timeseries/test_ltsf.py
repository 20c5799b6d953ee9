"""The long-term-forecasting runner: its cells, its baselines, its tables, and going on after a stop."""

import csv
import json
import signal

import numpy as np
import pandas as pd
import pytest
import torch

from timeseries import ltsf
from timeseries.config import LtsfConfig
from timeseries.data import make_split, read_csv, standardize
from timeseries.models.lag_ridge import LagRidge
from timeseries.models.ridge import fit_linear_ssm
from timeseries.task import ForecastTask


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


def test_a_training_goes_on_where_it_was_stopped(folder, monkeypatch, capfd):
    options = {"datasets": ("Weather",), "horizons": (8,), "lookbacks": ("short",), "models": ("s4d",), "seeds": 1}
    train = {"epochs": 3, "steps_per_epoch": 2, "lr": 1e-2, "patch": {"d_model": 4, "num_layers": 1, "d_state": 4}}
    ltsf.run(config(folder, **options, train=train, output=str(folder / "whole")))
    real, epochs = ForecastTask.on_validation_epoch_end, []

    def stops_in_the_second_epoch(task):
        real(task)
        epochs.append(task.current_epoch)
        if len(epochs) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ForecastTask, "on_validation_epoch_end", stops_in_the_second_epoch)
    text = json.dumps(train)
    words = ["--data-dir", str(folder), "--output", str(folder / "out"), "--train", text, "--models=[s4d]"]
    words += ["--datasets=[Weather]", "--horizons=[8]", "--lookbacks=[short]", "--seeds=1"]
    assert ltsf.main(words) == 130
    said = capfd.readouterr().err
    assert "python -m timeseries.ltsf: stopped by SIGINT; the state is saved; the same command goes on where" in said
    assert "timeseries.train" not in said
    assert ltsf.main(words) == 0
    assert epochs in ([0, 1, 2], [0, 1, 1, 2])  # the first is not done again
    assert "Weather-short-8-s4d-0: " in capfd.readouterr().out
    whole, parts = (
        json.loads((folder / f"{name}/cells/Weather-short-8-s4d-0.json").read_text()) for name in ("whole", "out")
    )
    assert parts["mse"] == whole["mse"]


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


WEATHER = (
    "p (mbar),T (degC),Tpot (K),Tdew (degC),rh (%),VPmax (mbar),VPact (mbar),VPdef (mbar),sh (g/kg),H2OC (mmol/mol),"
    "rho (g/m**3),wv (m/s),max. wv (m/s),wd (deg),rain (mm),raining (s),SWDR (W/m\ufffd),PAR (\ufffdmol/m\ufffd/s),"
    "max. PAR (\ufffdmol/m\ufffd/s),Tlog (degC),OT"
).split(",")
ILI = "% WEIGHTED ILI,%UNWEIGHTED ILI,AGE 0-4,AGE 5-24,ILITOTAL,NUM. OF PROVIDERS,OT".split(",")
NUMBERED = [*map(str, range(320)), "OT"]
SHAPES = {  # file, header, rows, step, windows of the first horizon in the test part as the literature counts them
    "ILI": ("national_illness.csv", ILI, 966, "7D", "2002-01-01", 24, 170),
    "Weather": ("weather.csv", WEATHER, 52696, "10min", "2020-01-01 00:10", 96, 10444),
    "Electricity": ("electricity.csv", NUMBERED, 26304, "h", "2016-07-01 02:00", 96, 5165),
    "Traffic": ("traffic.csv", [*map(str, range(861)), "OT"], 17544, "h", "2016-07-01 02:00", 96, 3413),
}


def full_size(name, folder):
    """A file with the header, the rows and the calendar of the real one; Weather's leaves eight steps out."""
    stem, columns, rows, step, first, _, _ = SHAPES[name]
    rng, count = np.random.default_rng(0), len(columns)
    dates = pd.date_range(first, periods=rows + 8, freq=step)
    dates = dates.delete(range(20000, 20008)) if name == "Weather" else dates[:rows]
    season = {"7D": 52, "10min": 144, "h": 24}[step]
    wave = np.sin(2 * np.pi * (np.arange(rows)[:, None] / season + rng.random(count)))
    values = np.round(wave + 0.1 * rng.normal(size=(rows, 1)), 3)
    head, body = ",".join(["date", *columns]), zip(dates.astype(str), values.astype(str), strict=True)
    text = "\n".join([head, *(",".join([date, *row]) for date, row in body)]) + "\n"
    (folder / stem).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["ILI", "Weather", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Electricity", "Traffic"))]
)
def test_files_of_the_shape_of_the_real_ones(name, tmp_path):
    full_size(name, tmp_path)
    *_, horizon, windows = SHAPES[name]
    options = config(tmp_path, horizons=(horizon,), lookbacks=("short",), models=())
    files = ltsf.find_files(options)
    assert set(files) == {name}
    runner = ltsf.Runner(options, files)
    results = {
        cell.model: runner.run(cell)
        for cell in ltsf.cells(options, tuple(files))
        if cell.model != "ridge" or name == "ILI"
    }
    assert {r["windows"] for r in results.values()} == {windows}
    assert results["seasonal_naive"]["mse"] < results["naive"]["mse"]
    assert len(runner.table(name).columns) == len(SHAPES[name][1])


def test_linear_ssm_on_a_file_of_the_shape_of_ili(tmp_path):
    full_size("ILI", tmp_path)
    ltsf.run(config(tmp_path, horizons=(24,)))
    rows = list(csv.DictReader((tmp_path / "out/ltsf.csv").open()))
    mse = {(r["lookback"], r["model"]): float(r["mse"]) for r in rows}
    assert mse["free", "linear_ssm"] < 0.2 * mse["free", "naive"]
    assert {r["windows"] for r in rows} == {"170"}


def test_covariates_are_read_and_not_forecast(folder):
    """A column that drives the others one step later pays where its future is known, and makes a table of its own."""
    rng, column = np.random.default_rng(0), "rho (g/m**3)"  # a name of the real file, with a slash
    driver = rng.normal(size=600)
    frame = pd.DataFrame({"a": 2 * driver + 0.1 * rng.normal(size=600), "b": -driver, column: driver})
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=600, freq="h"))
    frame.to_csv(folder / "weather.csv", index=False)
    options = {"datasets": ("Weather",), "horizons": (8,), "lookbacks": ("short",)}
    mse = {}
    for role in ({}, {"known": (column,)}, {"past": (column,)}):
        ltsf.run(config(folder, **options, **role))
        rows = {r["model"]: float(r["mse"]) for r in csv.DictReader((folder / "out/ltsf.csv").open())}
        mse[next(iter(role), "none")] = rows["linear_ssm"]
    assert mse["known"] < 0.1 * mse["past"]
    assert len(list((folder / "out/cells").iterdir())) == 12
    train = {"epochs": 1, "steps_per_epoch": 2, "s_mamba": {"d_model": 8, "d_ff": 8, "num_layers": 1}}
    for models in (("s_mamba",), ("s_mamba-alone",)):
        ltsf.run(config(folder, **options, past=(column,), models=models, seeds=1, train=train))
    rows = [r["model"] for r in csv.DictReader((folder / "out/ltsf.csv").open())]
    assert set(rows) == {*ltsf.BASELINES, "linear_ssm", "s_mamba", "s_mamba-alone"}


@pytest.mark.parametrize("model", ["mamba", "time_machine", "simba"])
def test_every_network_fills_its_cell(model, folder):
    small = {
        "patch": {"d_model": 4, "num_layers": 1, "d_state": 4},
        "time_machine": {"n1": 8, "n2": 4},
        "simba": {"d_model": 8, "num_layers": 1, "blocks": 2},
    }
    train = {"epochs": 1, "steps_per_epoch": 2, **small}
    options = {"datasets": ("Weather",), "horizons": (8,), "lookbacks": ("short",), "seeds": 1}
    ltsf.run(config(folder, **options, models=(model, f"{model}-alone"), train=train))
    rows = {r["model"]: float(r["mse"]) for r in csv.DictReader((folder / "out/ltsf.csv").open())}
    assert rows[model] < rows["naive"]
    assert np.isfinite(rows[f"{model}-alone"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_dir": "/nowhere"}, "give a folder with --data-dir"),
        ({"datasets": "[Traffic]"}, "there is no file for Traffic"),
        ({"datasets": "[ETTx]"}, "--datasets: 'ETTx' is none of ETTh1, ETTh2"),
        ({"seeds": "0"}, "--seeds 0: at least 1"),
        ({"models": "[linear_ssm-alone]"}, "--models: 'linear_ssm-alone' is none of"),
        ({"train": "{epoch: 3}"}, "--train: 'epoch' is no option of TrainConfig"),
    ],
)
def test_absent_data_get_a_sentence(folder, options, message, capsys):
    words = [f"--data-dir={options.get('data_dir', folder)}", f"--output={folder / 'out'}"]
    words += [f"--{name}={value}" for name, value in options.items() if name != "data_dir"]
    assert ltsf.main(words) == 2
    assert message in capsys.readouterr().err
