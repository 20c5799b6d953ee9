"""The code of the room's page runs."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "timeseries" / "README.md"


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.S | re.M))
def test_the_page_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, PAGE.name, "exec"), {"__name__": "readme"})


def test_what_the_page_links_to_exists():
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).exists(), link
