"""`python -m apps.bench transformers` measures the same model on both sides."""

import json

import pytest

from apps.bench.__main__ import main


@pytest.mark.slow
def test_command(tmp_path, capsys):
    pytest.importorskip("transformers", minversion="5")
    file = tmp_path / "rows.json"
    sizes = "--batch 1 --length 20 --d-model 32 --layers 1 --rounds 1"
    assert main(["transformers", *sizes.split(), "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    rows = {(row["model"], row["pass"]): row for row in result["rows"]}
    assert len(rows) == 6
    for row in rows.values():
        assert row["transformers"] > 0
        assert row["ssmcore"] > 0
        assert row["times_faster"] == pytest.approx(row["transformers"] / row["ssmcore"])
        assert row["difference"] < 1e-4
    assert capsys.readouterr().out.count("x  (CPU time") == 6


def test_help(capsys):
    with pytest.raises(SystemExit):
        main(["transformers", "--help"])
    assert "with and without ssmcore.compat" in capsys.readouterr().out
