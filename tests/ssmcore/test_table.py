"""The generated table of mixers."""

import subprocess
import sys

import pytest

import ssmcore
from ssmcore.mixers import MIXERS
from ssmcore.table import mixer_table, write_table


def test_every_mixer_has_a_row_that_says_something():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in mixer_table().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"`{name}`" for name in ssmcore.list_mixers()]
    assert all(all(row) for row in rows)
    assert len({row[1] for row in rows}) == len(rows)
    states = {row[0].strip("`"): row[2] for row in rows}
    assert states["gru"] == "1"
    assert states["s4d"] == "64"
    assert states["mamba"] == "38"  # twice the channels, each with 16 numbers and 3 past inputs
    assert states["attention"] == "grows with the tokens"
    streams = {row[0].strip("`"): row[3] for row in rows}
    assert (streams["mamba"], streams["hyena"], streams["grid_mamba"]) == ("yes", "no", "no")
    assert states["grid_mamba"] == "sees the future"


def test_titles_fit_a_table():
    assert all(0 < len(kind.title) <= 70 and "|" not in kind.title for kind in MIXERS.values())


def test_the_table_is_written_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- mixers -->\nold\n<!-- /mixers -->\nafter\n")
    subprocess.run([sys.executable, "-m", "ssmcore.table", str(page)], check=True)
    assert page.read_text() == f"before\n<!-- mixers -->\n{mixer_table()}\n<!-- /mixers -->\nafter\n"
    with pytest.raises(ValueError, match="does not hold"):
        write_table("no marks")
