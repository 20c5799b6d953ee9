"""What the README and CONTRIBUTING say is true: their code runs, their commands and files exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md")


def blocks(language):
    for page in PAGES:
        found = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), flags=re.S | re.M)
        yield from (pytest.param(text, id=f"{page}-{i}") for i, text in enumerate(found))


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def commands():
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    return sorted(set(re.findall(r"python -m ([a-z]+\.[a-z]+)", text)))


@pytest.mark.parametrize("module", commands())
def test_commands_answer_help(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for targets in re.findall(r"(?:`|^)make ([a-z][a-z -]*)", (ROOT / page).read_text(), flags=re.M):
            for target in targets.split():
                assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_named_files_exist():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert (ROOT / link).exists(), link


def test_the_table_of_mixers_is_current():
    from ssmcore.table import write_table

    page = (ROOT / "README.md").read_text()
    assert write_table(page) == page, "run `python -m ssmcore.table README.md`"
