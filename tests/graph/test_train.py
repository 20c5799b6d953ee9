"""The command, as a person types it: protocols, run folders, refusals, interruption and resume."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

from graph import reach, tables, train
from graph.config import ModelConfig, SyntheticConfig, TrainConfig
from graph.recipes import RECIPES
from ssmcore.engine import cli

ROOT = Path(__file__).parents[2]
TINY = [
    "--model.hidden",
    "8",
    "--model.layers",
    "1",
    "--model.d-state",
    "2",
    "--accelerator",
    "cpu",
    "--batch-size",
    "8",
]
TASK = ["--data", "two_cycles", "--synthetic.graphs", "24", "--synthetic.distance", "3"]


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def scores(run_dir):
    with (run_dir / "scores.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def one_thread():
    """Sums in another order give other bits: as many threads here as in the subprocess."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tu_set(tmp_path, monkeypatch):
    """A TU set of 40 rings and stars, and a name for it among the loaders."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("graph_test_data", Path(__file__).parent / "test_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_tu(tmp_path / "copies" / "tu", graphs=40)
    from graph import loaders

    monkeypatch.setitem(loaders.LOADERS, "TINY", loaders.tu)
    monkeypatch.chdir(tmp_path)
    return ["--data", "TINY", "--source", "copies", "--root", "root"]


def test_a_run_from_start_to_score(tmp_path, monkeypatch, capsys):
    """RWSE tells one ring from two, so a trained network does, and its folder has all that is promised."""
    monkeypatch.chdir(tmp_path)
    words = [*TASK, *TINY, "--model.encoding", "rwse", "--epochs", "12", "--lr", "1e-2", "--synthetic.graphs", "64"]
    assert train.main(words) == 0
    out = capsys.readouterr().out
    run_dir = tmp_path / "runs" / "two_cycles-graph_mamba"
    assert "two_cycles: 96 graphs" in out
    rows = {row["what"]: float(row["score"]) for row in scores(run_dir)}
    assert rows["test"] > 0.9
    for name in ("best.safetensors", "last.safetensors", "last.ckpt", "metrics.csv", "config.yaml", "finished.json"):
        assert (run_dir / name).exists()
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["model"]["encoding"] == "rwse"
    from graph.data import load_graphs
    from graph.experiment import load_model

    model = load_model(run_dir)
    graphs = load_graphs("two_cycles", synthetic=SyntheticConfig(graphs=64, distance=3), seed=0)
    chosen = [graphs.graphs[i] for i in graphs.parts["test"]]
    right = [int(model(g.x, g.edge_index).argmax()) == int(g.y) for g in chosen]
    assert sum(right) / len(right) == rows["test"]
    before = scores(run_dir)
    assert train.main(["--resume", str(run_dir)]) == 0  # finished: scores again, trains nothing
    assert scores(run_dir) == before


def test_protocol_a(tu_set, tmp_path, capsys):
    assert train.main([*tu_set, *TINY, "--protocol", "A", "--folds", "2", "--epochs", "2"]) == 0
    rows = scores(tmp_path / "runs" / "TINY-graph_mamba-A")
    assert [(r["what"], r["fold"]) for r in rows] == [
        ("protocol A", "0"), ("protocol A", "1"), ("last epoch", "0"), ("last epoch", "1"),
    ]  # fmt: skip
    assert "chosen by the mean test curve" in capsys.readouterr().out


def test_protocol_b_touches_the_test_fold_once(tu_set, tmp_path, monkeypatch):
    from graph import experiment

    asked = []
    score = experiment.score_graphs
    monkeypatch.setattr(experiment, "score_graphs", lambda *a: asked.append(tuple(a[2])) or score(*a))
    words = ["--protocol", "B", "--folds", "2", "--epochs", "1", "--grid-lr", "[0.01, 0.001]", "--model.name", "gin"]
    assert train.main([*tu_set, *TINY, *words]) == 0
    assert len(scores(tmp_path / "runs" / "TINY-gin-B")) == 2
    from graph.folds import ten_folds
    from graph.loaders import tu

    labels = tu("TINY", tmp_path / "root", tmp_path / "copies").labels
    assert len(asked) == 6
    for number, fold in enumerate(ten_folds(labels, 0)[:2]):
        first, second, final = asked[3 * number : 3 * number + 3]
        assert first == second  # both settings are judged by one tenth of the training part
        assert set(first) < set(fold.train)
        assert list(final) == fold.test


@pytest.mark.parametrize("name", ["gmn", "gred", "hop_lru", "walker", "gcn", "gin", "gated_gcn", "gps", "mlp"])
def test_every_model_trains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--epochs", "1", "--steps-per-epoch", "2", "--model.name", name, "--bucket", "true", "--model.heads", "2"]
    assert train.main([*TASK, *TINY, *words]) == 0
    assert (tmp_path / "runs" / f"two_cycles-{name}" / "best.safetensors").exists()


def test_interrupted_command_resumes_to_the_same_weights(tmp_path, one_thread):
    """With an order that draws at random, dropout and arranged batches: bit for bit."""
    words = [*TASK, *TINY, "--epochs", "3", "--batch-size", "4", "--model.order", "degree", "--model.dropout", "0.2"]
    words += ["--bucket", "true"]
    assert train.main([*words, "--output", str(tmp_path / "whole")]) == 0
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "graph.train", *words, "--output", "cut"],
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            os.kill(process.pid, signal.SIGINT)
            break
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, error
    assert "go on with: python -m graph.train --resume cut" in error
    run_dir = tmp_path / "cut" / "two_cycles-graph_mamba"
    assert train.main(["--resume", str(run_dir)]) == 0
    other = tmp_path / "whole" / "two_cycles-graph_mamba"
    for name in ("best.safetensors", "last.safetensors", "scores.csv", "metrics.csv"):
        assert (run_dir / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    """DDP on two CPU processes: one run folder, every graph scored once, the score that one process finds."""
    words = [*TASK, *TINY, "--epochs", "2", "--synthetic.graphs", "26", "--devices", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "graph.train", *words], env=environment(), cwd=tmp_path, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test: accuracy") == 1
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["two_cycles-graph_mamba"]
    run_dir = tmp_path / "runs" / "two_cycles-graph_mamba"
    rows = {row["what"]: float(row["score"]) for row in scores(run_dir)}
    with (run_dir / "metrics.csv").open() as file:
        logged = [float(r["val_score"]) for r in csv.DictReader(file) if r["val_score"]]
    assert rows["validation"] == pytest.approx(max(logged), abs=1e-6)


def test_help_explains_every_option_and_needs_no_torch(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    docs = cli.field_docs(TrainConfig)
    assert set(docs) >= {f.name for f in fields(TrainConfig)}
    for name, doc in docs.items():
        assert "--" + name.replace("_", "-") in text
        assert doc[:30] in text
    code = "import sys, graph.recipes, graph.train, graph.reach, graph.tables; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0


def test_recipes_build_their_networks():
    from graph.config import Schema
    from graph.models import create_model

    schema = Schema(node=(5,), edge=(2,), out=2)
    for name, recipe in RECIPES.items():
        config = recipe()
        assert config.data or config.protocol == "A", name
        small = replace(config.model, hidden=8, layers=1, d_state=4, heads=2)
        create_model(schema, small)
        assert cli.parse(TrainConfig, ["--recipe", name], prog="p", recipes=RECIPES) == config


REFUSED = {
    "no data": ([], "give a data set with --data NAME"),
    "unknown": (["--data", "MUTAGG"], "unknown data set 'MUTAGG'; did you mean MUTAG"),
    "protocol": ([*TASK, "--protocol", "A"], "two_cycles is scored by its own split: --protocol split"),
    "mixer": ([*TASK, "--model.mixer", "mambo"], "unknown mixer 'mambo'"),
    "order": ([*TASK, "--model.order", "degre"], "did you mean 'degree'"),
    "points": ([*TASK, "--model.order", "hilbert"], "points (n, 2) are needed"),
    "copies": (["--data", "MUTAG", "--source", "nowhere"], "nowhere: there is no tu/MUTAG.zip in it"),
    "readout": ([*TASK, "--model.readout", "[men]"], "men"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_sentence_and_leave_nothing_behind(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, message = REFUSED[case]
    assert train.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_data_list(capsys):
    assert train.main(["--data", "list"]) == 0
    out = capsys.readouterr().out
    assert "Peptides-func" in out
    assert "khop_copy" in out


def test_reach(tmp_path, monkeypatch, capsys):
    """A table, a plot, and a second call that trains nothing."""
    monkeypatch.chdir(tmp_path)
    words = ["--distances", "[1, 2]", "--models", "[gred, gcn]", "--graphs", "16", "--size", "10", "--epochs", "1"]
    assert reach.main([*words, "--hidden", "4", "--output", "reach"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-2].startswith("gred")
    assert (tmp_path / "reach" / "reach.png").read_bytes()[:4] == b"\x89PNG"
    assert len((tmp_path / "reach" / "scores.csv").read_text().splitlines()) == 5
    assert reach.main([*words, "--hidden", "4", "--output", "reach"]) == 0
    assert "epoch 1/1" not in capsys.readouterr().out
    tree = ["--task", "tree_neighbors_match", "--models", "[graph_mamba]", "--distances", "[2]", "--graphs", "16"]
    assert reach.main([*tree, "--epochs", "1", "--hidden", "4", "--output", "tree", "--beside", "[reach]"]) == 0
    assert (
        (tmp_path / "tree" / "scores.csv").read_text().splitlines()[1].startswith("tree_neighbors_match,graph_mamba,2,")
    )
    assert reach.main([*tree, "--epochs", "1", "--output", "tree", "--beside", "[nowhere]"]) == 2
    assert "nowhere: there is no scores.csv in it" in capsys.readouterr().err


def test_tables(tu_set, tmp_path, capsys):
    """Both protocols in one table; a second call trains nothing, one with another network adds a column."""
    words = [*tu_set[2:], "--sets", "[TINY]", "--folds", "2", "--epochs", "1", "--hidden", "4", "--layers", "1"]
    assert tables.main([*words, "--models", "[hop_lru, mlp]"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-4] == "| protocol | set | folds | hop_lru | mlp |"
    for line, letter in zip(out[-2:], "AB", strict=True):
        assert line.startswith(f"| {letter} | TINY | 2 | ")
    score = [float(row["score"]) for row in scores(tmp_path / "runs/tables/TINY-mlp-B")]
    assert f"{50 * sum(score):.1f}±" in out[-1]
    assert tables.main([*words, "--models", "[mlp]"]) == 0
    again = capsys.readouterr().out
    assert "epoch 1/1" not in again
    assert again.splitlines()[-4:] == out[-4:]
    assert (tmp_path / "runs/tables/table.md").read_text().splitlines() == out[-4:]
    recipe, row = RECIPES["hops_tu"](), tables.train_config(tables.TablesConfig(), "TINY", "hop_lru", "A")
    assert (row.model, row.epochs, row.batch_size, row.lr) == (
        recipe.model,
        recipe.epochs,
        recipe.batch_size,
        recipe.lr,
    )
    assert tables.main([*words, "--models", "mlp", "--hidden", "8"]) == 2
    assert "TINY-mlp-A: holds a run with other options (model.hidden 4, not 8)" in capsys.readouterr().err
    assert tables.main([*words, "--models", "mlp", "--folds", "3"]) == 0
    assert "| B | TINY | 3 | " in capsys.readouterr().out
    assert tables.main([*words, "--sets", "TINY,MUTAGG", "--output", "other"]) == 2
    assert not (tmp_path / "other").exists()
    assert "did you mean MUTAG" in capsys.readouterr().err


@pytest.mark.parametrize(("k", "least"), [(3, 0.9)])
def test_gred_copies_over_three_hops(k, least):
    """By construction one layer could; a short training finds it. Chance is 0.5; two rounds of GCN stay there."""
    from graph.batches import loader
    from graph.data import load_graphs
    from graph.models import create_model
    from graph.precompute import precompute
    from graph.task import GraphTask, score_graphs
    from ssmcore.engine import make_optimizer

    data = load_graphs("khop_copy", synthetic=SyntheticConfig(graphs=300, distance=k, size=14), seed=0)
    found = {}
    for name in ("gred", "gcn"):
        config = ModelConfig(name=name, hidden=24, layers=2, hops=k + 1, d_state=16)
        torch.manual_seed(0)
        task = GraphTask(create_model(data.schema, config), None, 1e-2, 0.0, 1, 0)
        graphs, optimizer = precompute(data.graphs, config, bar=False), make_optimizer(task.model, 1e-2, 0.0)
        task.train()
        for epoch in range(14):
            for batch in loader(graphs, data.parts["train"], 30, seed=epoch):
                optimizer.zero_grad()
                task.training_step(batch, 0).backward()
                optimizer.step()
        found[name] = score_graphs(task, graphs, data.parts["test"], 50)
    assert found["gred"] > least
    assert found["gcn"] < 0.65
