"""The commands, as a person types them: run folder, printed scores, refusals, interruption and resume."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import yaml

from ssmcore.engine import cli, load_weights
from timeseries import predict, train
from timeseries.config import TrainConfig
from timeseries.recipes import RECIPES

SMALL = ["--patch.d-model", "4", "--patch.num-layers", "1", "--patch.d-state", "4", "--accelerator", "cpu"]


def command(module, *words, env, cwd, timeout=120):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def scores(run_dir):
    with (run_dir / "scores.csv").open() as file:
        return {row["forecaster"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_csv, command_env):
    folder = tmp_path_factory.mktemp("trained")
    data = write_csv(folder / "waves.csv", rows=900)
    done = command("timeseries.train", "--data", data, "--prediction-length", "24", env=command_env, cwd=folder)
    return folder, done


def test_train_command_end_to_end(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "900 rows x 2 columns, step h, split 70/10/20" in done.stdout
    assert "157 windows of 24 steps" in done.stdout
    run_dir = folder / "runs" / "waves-24-linear_ssm-free"
    names = {
        "best.safetensors",
        "config.yaml",
        "errors.png",
        "forecast.png",
        "metrics.csv",
        "read_outs.csv",
        "scores.csv",
    }
    assert {path.name for path in run_dir.iterdir()} == names
    table = scores(run_dir)
    assert list(table) == ["linear_ssm", "naive", "seasonal naive (24)"]
    assert float(table["linear_ssm"]["mse"]) < 0.9 * float(table["seasonal naive (24)"]["mse"])
    assert float(table["linear_ssm"]["mae"]) < float(table["naive"]["mae"])
    assert (run_dir / "forecast.png").read_bytes()[:4] == b"\x89PNG"
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["prediction_length"] == 24


def test_predict_command(trained, capsys):
    folder, _ = trained
    words = ["--data", str(folder / "waves.csv"), "--output", str(folder / "f.csv"), "--run"]
    assert predict.main([*words, str(folder / "runs" / "waves-24-linear_ssm-free")]) == 0
    frame = pd.read_csv(folder / "f.csv", parse_dates=["date"])
    past = pd.read_csv(folder / "waves.csv", parse_dates=["date"])
    assert list(frame.columns) == ["date", "x0", "x0 0.1", "x0 0.9", "x1", "x1 0.1", "x1 0.9"]
    assert (frame["x1 0.1"] < frame["x1"]).all()
    assert (frame["x1"] < frame["x1 0.9"]).all()
    assert (folder / "f.png").read_bytes()[:4] == b"\x89PNG"
    assert len(frame) == 24
    assert frame["date"][0] == past["date"].iloc[-1] + pd.Timedelta("1h")
    assert abs(frame["x1"].mean() - past["x1"].iloc[-24:].mean()) < 3
    assert predict.main([*words, str(folder)]) == 2
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize("module", [train, predict])
def test_help_explains_every_option(module, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    config = TrainConfig if module is train else predict.PredictConfig
    docs = cli.field_docs(config)
    assert set(docs) >= {field.name for field in fields(config)}
    for name, doc in docs.items():
        assert "--" + name.replace("_", "-") in text
        assert doc[:30] in text


def test_help_needs_no_torch(command_env, tmp_path):
    code = "import sys, ssmcore.engine.cli; assert not {'torch', 'lightning', 'pandas'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=command_env, cwd=tmp_path).returncode == 0


def test_config_and_recipes_need_no_torch(command_env, tmp_path):
    code = "import sys, timeseries.config, timeseries.recipes, timeseries.train; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env=command_env, cwd=tmp_path).returncode == 0


REFUSED = {
    "no data": ([], "give a CSV file with --data FILE.csv"),
    "no file": (["--data", "none.csv"], "none.csv: there is no such file; give a CSV file with --data"),
    "too short": (["--data", "waves.csv", "--prediction-length", "200"], "are too few"),
    "free": (["--data", "waves.csv", "--model", "mamba", "--context-length", "free"], "free is for linear_ssm"),
    "patch": (
        ["--data", "waves.csv", "--prediction-length", "24", "--model", "s4d", "--context-length", "8"],
        "--model s4d: PatchNetwork: patch_length=16, stride=8, expected 1 <= patch_length <= context_length=8",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_sentence_and_leave_nothing_behind(case, tmp_path, write_csv, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "waves.csv")
    words, message = REFUSED[case]
    assert train.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--predction-length", "3"], "unknown option --predction-length; did you mean --prediction-length"),
        (["--prediction-length", "x"], "--prediction-length: expected int. Got value: x"),
        (["--model", "foo"], "--model: expected one of ['linear_ssm', 's4d', 'mamba', 's_mamba',"),
        (["--recipe", "linear"], "unknown recipe 'linear'; did you mean linear_96 or linear_free"),
        (["--resume", "nowhere"], "--resume nowhere: there is no config.yaml in it"),
    ],
)
def test_bad_options_are_one_sentence(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_options_win_over_recipes_and_files(tmp_path):
    def parse(*words):
        return cli.parse(TrainConfig, words, prog="p", recipes=RECIPES)

    assert parse("--recipe", "linear_96") == RECIPES["linear_96"]()
    config = parse("--recipe", "s4d_small", "--lr", "0.5", "--linear.ridge", "[0.1, 1]", "--patch.d-model=8")
    assert (config.lr, config.linear.ridge, config.patch.d_model, config.context_length) == (0.5, (0.1, 1.0), 8, 336)
    (tmp_path / "config.yaml").write_text(cli.dump(config))
    assert parse("--config", str(tmp_path / "config.yaml")) == config
    again = parse("--resume", str(tmp_path), "--seed", "4")
    assert (again.lr, again.seed, again.resume) == (0.5, 4, str(tmp_path))


def test_missing_values_are_allowed(tmp_path, write_csv, monkeypatch):
    def edit(frame):
        frame.loc[frame.index % 7 == 3, "x0"] = ""
        frame.loc[200:220, "x1"] = "nan"
        return frame

    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "waves.csv", edit=edit)
    assert train.main(["--data", "waves.csv", "--prediction-length", "12", "--context-length", "72"]) == 0
    table = scores(tmp_path / "runs" / "waves-12-linear_ssm-72")
    assert float(table["linear_ssm"]["mse"]) < float(table["seasonal naive (24)"]["mse"])


NETWORKS = {
    "s_mamba": ["--s-mamba.d-model=8", "--s-mamba.d-ff=8", "--s-mamba.num-layers=1"],
    "time_machine": ["--time-machine.n1=8", "--time-machine.n2=4"],
    "simba": ["--simba.d-model=8", "--simba.num-layers=1", "--simba.blocks=2"],
}


@pytest.mark.parametrize("base", ["linear_ssm", "none"])
@pytest.mark.parametrize("model", NETWORKS)
def test_published_networks_train_with_and_without_a_base(model, base, tmp_path, write_csv, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "waves.csv")
    words = ["--data", "waves.csv", "--prediction-length", "12", "--context-length", "48", "--model", model]
    words += ["--base", base, "--epochs", "2", "--steps-per-epoch", "4", "--batch-size", "8", "--accelerator", "cpu"]
    assert train.main([*words, *NETWORKS[model]]) == 0
    run_dir = tmp_path / "runs" / f"waves-12-{model}-48"
    table = scores(run_dir)
    assert math.isfinite(float(table[model]["mse"]))
    if base == "linear_ssm":
        assert float(table[model]["mse"]) < float(table["seasonal naive (24)"]["mse"])
    words = ["--run", str(run_dir), "--data", "waves.csv", "--output", "f.csv"]
    assert predict.main(words) == 0
    assert pd.read_csv("f.csv").notna().all(None)


def test_known_columns_are_used_and_asked_for(tmp_path, write_csv, monkeypatch, capsys):
    """x1 is twice a driver whose future the file tells: with it the forecast is all but exact."""

    def edit(frame):
        rng = np.random.default_rng(3)
        driver = rng.normal(size=len(frame))
        return frame.assign(
            x1=(2 * driver + 5).astype(str), driver=driver.astype(str), wind=rng.normal(size=len(frame))
        )

    monkeypatch.chdir(tmp_path)
    path = write_csv(tmp_path / "waves.csv", edit=edit)
    words = ["--data", "waves.csv", "--prediction-length", "6", "--known", "[driver]", "--past", "[wind]"]
    assert train.main([*words, "--columns", "[x1]"]) == 0
    run_dir = tmp_path / "runs" / "waves-6-linear_ssm-free"
    table = scores(run_dir)
    assert float(table["linear_ssm"]["mse"]) < 1e-3 * float(table["naive"]["mse"])
    ask = ["--run", str(run_dir), "--data", "waves.csv", "--output", "f.csv"]
    assert predict.main(ask) == 2
    assert "known for the future need 6 rows after the last value" in capsys.readouterr().err
    whole = pd.read_csv(path)
    cut = whole.copy()
    cut.loc[len(cut) - 6 :, ["x0", "x1", "wind"]] = np.nan
    cut.to_csv("waves.csv", index=False)
    assert predict.main(ask) == 0
    frame = pd.read_csv("f.csv")
    assert list(frame.columns) == ["date", "x1", "x1 0.1", "x1 0.9"]
    np.testing.assert_allclose(frame["x1"], whole["x1"][-6:], atol=0.1)
    assert train.main([*words, "--columns", "[driver]"]) == 2
    assert "'driver' is there twice" in capsys.readouterr().err


def test_a_cycle_is_taken_off_where_it_helps(tmp_path, write_csv, monkeypatch, capsys):
    """Ten values see no day; the table of the day, learned from the training part, does."""
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "waves.csv")
    mse = {}
    for cycle in ("[0]", "[12]"):
        words = ["--data", "waves.csv", "--prediction-length", "12", "--context-length", "3", "--cycle", cycle]
        assert train.main([*words, "--output", f"runs{cycle}"]) == 0
        mse[cycle] = float(scores(tmp_path / f"runs{cycle}" / "waves-12-linear_ssm-3")["linear_ssm"]["mse"])
    assert mse["[12]"] < 0.5 * mse["[0]"]
    assert "with a cycle of 24" in capsys.readouterr().out
    run_dir = tmp_path / "runs[12]" / "waves-12-linear_ssm-3"
    past = pd.read_csv("waves.csv", parse_dates=["date"])
    past.iloc[7:].to_csv("later.csv", index=False)  # a file that starts at another hour: the phase goes by the date
    made = []
    for data in ("waves.csv", "later.csv"):
        assert predict.main(["--run", str(run_dir), "--data", data, "--output", "f.csv"]) == 0
        made.append(pd.read_csv("f.csv")["x0"].to_numpy())
    np.testing.assert_allclose(made[0], made[1], rtol=1e-9)


@pytest.mark.parametrize("model", ["s4d", "mamba"])
def test_window_forecasters_train(model, tmp_path, write_csv, monkeypatch, capsys):
    def edit(frame):
        frame.loc[frame.index % 11 == 3, "x0"] = ""
        return frame

    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "waves.csv", edit=edit)
    words = ["--data", "waves.csv", "--prediction-length", "12", "--context-length", "48", "--model", model, *SMALL]
    assert train.main([*words, "--epochs", "2", "--steps-per-epoch", "4", "--batch-size", "8"]) == 0
    run_dir = tmp_path / "runs" / f"waves-12-{model}-48"
    for name in ("best.safetensors", "last.safetensors", "last.ckpt", "metrics.csv", "tensorboard", "scores.csv"):
        assert (run_dir / name).exists()
    assert load_weights(run_dir / "best.safetensors")[1]["model"] == model
    before = scores(run_dir)
    assert train.main(["--resume", str(run_dir)]) == 0  # finished: scores again, trains nothing
    assert scores(run_dir) == before
    assert float(before[model]["mse"]) < float(before["seasonal naive (24)"]["mse"])


def test_interrupted_command_resumes_to_the_same_weights(tmp_path, write_csv, command_env, one_thread):
    data = write_csv(tmp_path / "waves.csv", rows=400)
    words = ["--data", data, "--prediction-length", "6", "--context-length", "24", "--model", "s4d", *SMALL]
    words += ["--epochs", "3", "--batch-size", "2", "--patch.patch-length", "8"]
    assert train.main([*map(str, words), "--output", str(tmp_path / "whole")]) == 0
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "timeseries.train", *map(str, words), "--output", "cut"],
        env=command_env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            time.sleep(0.2)
            os.kill(process.pid, signal.SIGINT)
            break
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, error
    run_dir = tmp_path / "cut" / "waves-6-s4d-24"
    assert "go on with: python -m timeseries.train --resume" in error
    assert train.main(["--resume", str(run_dir)]) == 0
    other = tmp_path / "whole" / "waves-6-s4d-24"
    for name in ("best.safetensors", "last.safetensors", "scores.csv", "metrics.csv"):
        assert (run_dir / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(("context_length", "mse", "mae"), [("96", 0.375, 0.386), ("free", 0.362, 0.391)])
def test_etth1_is_as_good_as_promised(context_length, mse, mae, etth1, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--data", str(etth1), "--context-length", context_length]) == 0
    row = scores(tmp_path / "runs" / f"ETTh1-96-linear_ssm-{context_length}")["linear_ssm"]
    assert row["windows"] == "2785"
    assert float(row["mse"]) <= mse
    assert float(row["mae"]) <= mae
