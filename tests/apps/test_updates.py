"""The benchmark of updates on tiny sizes: the stream it times gives the forecast that it is set against."""

import json

from apps.bench.__main__ import main


def test_updates_equal_recomputing(tmp_path, capsys):
    path = tmp_path / "rows.json"
    words = ["--model", "linear", "--history", "150", "300", "--channels", "2", "--calls", "5", "--json", str(path)]
    assert main(["timeseries", *words]) == 0
    rows = json.loads(path.read_text())
    assert [(row["history"], row["channels"]) for row in rows] == [(150, 2), (300, 2)]
    assert all(row["difference"] < 1e-5 and row["update"] > 0 for row in rows)
    assert capsys.readouterr().out.count("linear") == 2
