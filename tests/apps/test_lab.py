"""The lab: tasks that ask what they say, a run that learns, resumes and answers, and the table."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch

from apps.lab import table
from apps.lab.__main__ import main
from apps.lab.config import LabConfig, TableConfig
from apps.lab.experiment import run
from apps.lab.listops import VOCABULARY, evaluate
from apps.lab.model import LabModel
from apps.lab.protocols import TASKS, Ramp, task
from apps.lab.regression import FUNCTIONS, least_squares
from apps.lab.task import Batches, measure
from apps.lab.tasks import NOTHING
from ssmcore.mixer import Unsupported


@pytest.mark.parametrize("name", TASKS)
def test_batches_repeat_by_seed_and_hold_what_they_promise(name):
    job = task(name)
    x, y = job(5, job.length, 7)
    again = job(5, job.length, 7)
    torch.testing.assert_close((x, y), again, equal_nan=True)
    other = job(5, job.length, 8)[0]
    assert not torch.equal(x, other)
    assert len(x) == len(y) == 5
    if job.kind == "classes":
        assert 0 <= x.min() <= x.max() < job.tokens
        asked = y[y != NOTHING]
        assert len(asked)
        assert 0 <= asked.min() <= asked.max() < job.classes
    else:
        assert x.shape[-1] == job.tokens
    task(name, "paper")


def test_induction_asks_what_followed_the_trigger():
    x, y = task("induction")(200, 32, 0)
    assert (x[:, -1] == 15).all()
    assert ((x == 15).sum(1) == 2).all()
    first = (x == 15).int().argmax(1)
    assert torch.equal(y[:, -1], x[torch.arange(200), first + 1])
    assert (y[:, :-1] == NOTHING).all()


@pytest.mark.parametrize(("name", "first"), [("copy", True), ("selective_copy", False)])
def test_copying_asks_for_the_data_in_order(name, first):
    x, y = task(name)(50, 32, 0)
    assert x.shape == (50, 36)
    for tokens, targets in zip(x, y, strict=True):
        data = tokens[:32][tokens[:32] != 0]
        assert torch.equal(data, targets[32:])
        assert (tokens[32:] == 15).all()
        assert (tokens[:4] != 0).all() == first or not first


def test_recall_has_one_value_a_key():
    x, y = task("recall")(50, 21, 0)
    for tokens, targets in zip(x.tolist(), y.tolist(), strict=True):
        book = dict(zip(tokens[:-1:2], tokens[1:-1:2], strict=True))
        assert all(book[k] == v for k, v in zip(tokens[:-1:2], tokens[1:-1:2], strict=True))
        assert targets[-1] == book[tokens[-1]]


def test_mqar_asks_every_key_once_and_soon_more_often():
    x, y = task("mqar")(2000, 64, 0)
    assert ((y != NOTHING).sum(1) == 4).all()
    for tokens, targets in zip(x[:50].tolist(), y[:50].tolist(), strict=True):
        book = dict(zip(tokens[:8:2], tokens[1:8:2], strict=True))
        assert len(book) == 4
        asked = [i for i, t in enumerate(targets) if t != NOTHING]
        assert {tokens[i] for i in asked} == set(book)
        assert all(targets[i] == book[tokens[i]] for i in asked)
    counts = (y != NOTHING).sum(0)[8::2]
    assert counts[0] > 5 * counts[-1] > 0


def test_parity_and_permutations_are_counted_step_by_step():
    x, y = task("parity")(20, 16, 0)
    assert torch.equal(y, x.cumsum(1) % 2)
    x, y = task("permutation")(20, 12, 0)
    from itertools import permutations

    elements = list(permutations(range(3)))
    for tokens, targets in zip(x.tolist(), y.tolist(), strict=True):
        things = (0, 1, 2)
        for token, target in zip(tokens, targets, strict=True):
            things = tuple(things[i] for i in elements[token])
            assert elements[target] == things


def test_regression_is_solved_by_least_squares():
    inputs, targets = task("regression")(10, 11, 0)
    for rows, answers in zip(inputs, targets, strict=True):
        points, values = rows[::2, :5], rows[1::2, 5]
        assert answers[1::2].isnan().all()
        torch.testing.assert_close(answers[::2], values)
        w = torch.linalg.lstsq(points[:10], values[:10, None]).solution
        torch.testing.assert_close(points[10:] @ w, values[10:, None], rtol=1e-3, atol=1e-3)
    answers = least_squares(inputs, targets)
    torch.testing.assert_close(answers[:, 10::2], targets[:, 10::2], rtol=1e-3, atol=1e-3)  # from 5 points on
    many = task("regression")(2000, 11, 0)
    # With i < 5 of 5 directions seen the rest is lost: 1 - (5 + 4 + 3 + 2 + 1) / 5 / 11.
    assert measure(least_squares(*many), many[1])[1].item() == pytest.approx(1 - 3 / 11, abs=0.02)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_variance_of_a_linear_one(name):
    inputs, targets = task("regression", "paper", {"function": name})(400, 41, 0)
    x, y = inputs[:, ::2, :-1], targets[:, ::2]
    want = {"classification": 1, "decision_tree": 1, "sparse": 3}.get(name, 20)
    assert y.square().mean().item() == pytest.approx(want, rel=0.12)
    again = task("regression", "paper", {"function": name, "active": 7})(400, 41, 0)[0]
    assert (again[:, ::2, 7:] == 0).all()
    assert (x[..., 7:] != 0).any()


def test_a_tree_has_sixteen_leaves():
    inputs, targets = task("regression", "paper", {"function": "decision_tree"})(3, 500, 0)
    for x, y in zip(inputs[:, ::2, :-1], targets[:, ::2], strict=True):
        assert 2 <= len(y.unique()) <= 16
        assert not torch.equal(x[0], x[1])


def test_a_curriculum_grows_with_the_training_step():
    assert [Ramp(start=5, end=8, by=2, every=10).at(i) for i in (0, 9, 10, 25, 99)] == [5, 5, 7, 8, 8]
    job = task("regression", "paper")
    x = Batches(job, 41, 2, 100, 0)[2500][0]
    assert x.shape == (2, 2 * 13, 21)
    assert (x[:, ::2, 6:] == 0).all()
    assert Batches(job, 41, 2, 100, 0, asking=True)[2500][0].shape == (2, 82, 21)


def test_rates_go_as_published():
    """H3's rises for 20 of 200 epochs and falls linearly; Zoology's falls by epochs along a cosine; Mamba's stays."""
    h3, zoology, mamba = (task(name, "paper").training for name in ("recall", "mqar", "selective_copy"))
    assert (h3.steps, h3.per_epoch, zoology.per_epoch) == (200 * 157, 157, 782)
    assert h3.pace(0) == 1 / (20 * 157 + 1)
    assert h3.pace(20 * 157) == 1
    assert h3.pace(110 * 157) == pytest.approx(0.5)
    assert h3.pace(h3.steps) == 0
    assert zoology.pace(781) == 1
    assert zoology.pace(32 * 782) == zoology.pace(33 * 782 - 1) == pytest.approx(0.5)
    assert mamba.pace(300_000) == 1


def test_options_of_a_task_replace_the_presets():
    job = task("mqar", "paper", {"pairs": 4, "vocab": 100})
    assert job.tokens == job.classes == 100
    x, y = job(3, 64, 0)
    assert ((y != NOTHING).sum(1) == 4).all()
    assert ((x != 0).sum(1) == 12).all()  # the published figure has zeros between the questions
    with pytest.raises(ValueError, match="did you mean 'pairs'"):
        task("mqar", "small", {"pair": 4})


def test_listops_are_drawn_within_bounds_and_evaluated():
    assert evaluate("[MAX 2 9 [MIN 4 7 ] 0 ]".split()) == 9
    assert evaluate("[MED 1 4 ]".split()) == 2
    assert evaluate("[SM 9 9 [MED 1 2 8 ] ]".split()) == 0
    for wrong in ("[MAX 2 9", "2 ]", "[MAX ]", "3 4"):
        with pytest.raises(ValueError, match="evaluate"):
            evaluate(wrong.split())
    x, y = task("listops")(100, 96, 0)
    for tokens, targets in zip(x, y, strict=True):
        end = int((targets != NOTHING).nonzero())
        words = [VOCABULARY[i] for i in tokens]
        assert words[end] == "<eos>"
        assert 24 < end < 96
        assert evaluate(words[:end]) == targets[end]
        assert (tokens[end + 1 :] == 0).all()
    assert len(y[y != NOTHING].unique()) == 10


@pytest.mark.parametrize(("name", "length"), [("induction", 2), ("selective_copy", 3), ("mqar", 15), ("parity", 0)])
def test_lengths_that_cannot_be_are_named(name, length):
    with pytest.raises(ValueError, match=f"length={length}"):
        task(name)(2, length, 0)


def test_measure_counts_what_is_asked_only():
    answers = torch.tensor([[[5.0, 0.0], [0.0, 5.0], [0.0, 5.0]]])
    _, score = measure(answers, torch.tensor([[0, NOTHING, 0]]))
    assert score == 0.5
    loss, score = measure(torch.tensor([[1.0, 9.0]]), torch.tensor([[4.0, math.nan]]))
    assert loss == 9
    assert score == 1 - 9 / 16


def test_a_mixer_that_looks_ahead_is_refused():
    with pytest.raises(Unsupported, match="causal"):
        LabModel(4, 4, "bidirectional", {"mixer": "gru"}, d_model=8, num_layers=1)


def small(folder, **options):
    defaults = {"task": ("parity",), "mixer": "gru", "length": 6, "steps": 40, "steps_per_epoch": 20, "fresh": 64}
    return LabConfig(**{**defaults, "output": str(folder), **options})


def test_a_gru_learns_parity_and_keeps_it_at_four_times_the_length(tmp_path):
    result = run(small(tmp_path, steps=600, steps_per_epoch=50, lr=1e-2), silent=True)
    assert result.steps < 600
    assert result.scores["1"] > 0.99
    assert result.scores["4"] > 0.9
    saved = json.loads((next(tmp_path.iterdir()) / "result.json").read_text())
    assert saved["scores"] == result.scores


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path):
    whole = run(small(tmp_path / "a"), silent=True)
    run(small(tmp_path / "b", steps=20), silent=True)
    folder = next((tmp_path / "b").iterdir())
    again = run(small(tmp_path / "b", resume=str(folder)), silent=True)
    assert again.scores == whole.scores


def test_the_table_trains_what_is_missing_and_shows_all(tmp_path, capsys):
    options = {"length": 6, "steps": 20, "steps_per_epoch": 20, "fresh": 32, "longer": [1, 2]}
    config = TableConfig(tasks=("parity", "induction"), mixers=("gru", "lru"), train=options, output=str(tmp_path))
    cells = table.run(config)
    assert len(cells) == 4
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "cells").iterdir()}
    assert table.run(config) == cells
    assert stamps == {f: f.stat().st_mtime_ns for f in (tmp_path / "cells").iterdir()}
    with pytest.raises(ValueError, match="other settings"):
        table.run(replace(config, train={**options, "steps": 40}))
    text = (tmp_path / "table.md").read_text()
    assert "parity 1x" in text
    assert "| `lru` |" in text
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(rows) == 8
    assert (tmp_path / "table.png").stat().st_size > 1000


def test_mistakes_are_named(capsys, tmp_path):
    assert main(["paritty", f"--output={tmp_path}"]) == 2
    assert "parity" in capsys.readouterr().err
    assert main(["parity", "--mixer=mambo", f"--output={tmp_path}"]) == 2
    assert "mamba" in capsys.readouterr().err
    assert main(["table", "--train={stepz: 3}", "--mixers=[gru]", f"--output={tmp_path}"]) == 2
    assert "steps" in capsys.readouterr().err
    assert main(["table", "--mixers=[mambo]", f"--output={tmp_path}"]) == 2
    assert "mamba" in capsys.readouterr().err
    assert main(["table", "--variants={x: {nam: gru}}", "--mixers=[x]", f"--output={tmp_path}"]) == 2
    assert "mixer of x" in capsys.readouterr().err
    assert main(["table", "--seeds=0", f"--output={tmp_path}"]) == 2
    assert "--seeds=0" in capsys.readouterr().err
    assert main(["table", "--mixers=[]", f"--output={tmp_path}"]) == 2
    assert "at least one" in capsys.readouterr().err
    for size in ("steps", "batch-size", "d-model", "num-layers", "fresh"):
        assert main(["parity", f"--{size}=0", f"--output={tmp_path}"]) == 2
        assert f"--{size}=0" in capsys.readouterr().err
    assert main(["parity", "--longer=[0]", f"--output={tmp_path}"]) == 2
    assert "--longer" in capsys.readouterr().err
    assert main(["parity", "--mixer=mamba", "--options={d_state: many}", f"--output={tmp_path}"]) == 2
    assert "d_state='many'" in capsys.readouterr().err
    assert main(["induction", "--length=2", f"--output={tmp_path}"]) == 2
    assert "length=2" in capsys.readouterr().err
