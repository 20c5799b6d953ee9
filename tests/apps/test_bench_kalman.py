"""The Kalman benchmark measures the same thing on both sides."""

import json

import pytest

from apps.bench.__main__ import main

pytest.importorskip("statsmodels")


def test_it_measures_and_agrees(tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert main(["kalman", "--series", "16", "--steps", "40", "--calls", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["states"] for row in rows] == [1, 2, 13, 25]
    assert all(row["difference"] < 1e-6 for row in rows)
    assert all(row["statsmodels"] > 0 and row["ours"] > 0 for row in rows)
    assert "trend, season 24" in capsys.readouterr().out
