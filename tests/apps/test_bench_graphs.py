"""The graph benchmark on generated graphs: equal outputs, every row runs, and what the table says."""

import argparse
import json

import pytest
import torch

from apps.bench import graphs
from apps.bench.graphs import ROWS, Problem, as_text, make_job, padded_difference, padding_factor, prepare


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "tiny.pt"
    problem = Problem("shortest_paths", 4, 2, 8, "nowhere", None, str(file))
    prepare(problem)
    return problem


def test_packed_and_padded_give_the_same_and_padding_is_counted(tiny):
    assert padded_difference(tiny) < 1e-5
    assert 1 < padding_factor(tiny) < 2


@pytest.mark.parametrize("row", ROWS)
def test_every_row_runs_forward_and_backward(row, tiny):
    make_job(tiny, row, small=True)()
    make_job(tiny, row, small=False)()


def test_measure_and_table(tmp_path, monkeypatch, capsys):
    before = torch.get_num_threads()
    parser = argparse.ArgumentParser()
    graphs.add_arguments(parser)
    args = parser.parse_args(
        ["--seconds", "0.01", "--channels", "8", "--batch-size", "4", "--no-memory", "--graphs", "4"]
    )
    args.set, args.json = ["shortest_paths"], tmp_path / "deep" / "graph.json"
    assert graphs.run(args) == 0
    torch.set_num_threads(before)
    result = json.loads(args.json.read_text())
    assert [row["row"] for row in result["rows"]] == list(ROWS)
    assert all(row["cpu_ms"] > 0 for row in result["rows"])
    assert "of block" in capsys.readouterr().out
    assert as_text(result["rows"]).count("\n") == len(ROWS)
