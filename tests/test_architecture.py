"""The gates: what keeps the house easy to read. Each looks at the source, so each can fail."""

import ast
import difflib
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("ssm_kernels", "ssmcore", "vision", "audio", "timeseries", "graph", "apps")
DOMAINS = {"vision", "audio", "timeseries", "graph"}
FOLDERS = {room: ROOT / ("kernels/ssm_kernels" if room == "ssm_kernels" else room) for room in ROOMS}
FILES = sorted(path for folder in FOLDERS.values() for path in folder.rglob("*.py"))
# What each room may import from the others.
ARROWS = {
    "ssm_kernels": set(),
    "ssmcore": {"ssm_kernels"},
    **{domain: {"ssm_kernels", "ssmcore"} for domain in DOMAINS},
    "apps": {"ssm_kernels", "ssmcore", *DOMAINS},
}
MOST_LINES, MOST_FUNCTION_LINES, MOST_ALIKE = 500, 60, 0.6


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return next(room for room, folder in FOLDERS.items() if path.is_relative_to(folder))


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports by absolute name, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_import_arrows(path):
    room = room_of(path)
    forbidden = (imported(path) & set(ROOMS)) - ARROWS[room] - {room}
    assert not forbidden, f"{room} must not import {', '.join(sorted(forbidden))}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_only_engine_tasks_and_training_import_lightning(path):
    relative = name(path)
    allowed = relative.startswith("ssmcore/engine/") or path.name in ("task.py", "train.py")
    assert allowed or not imported(path) & {"lightning", "pytorch_lightning"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= MOST_FUNCTION_LINES, f"{node.name} has {lines} lines"


def sibling_pairs():
    folders = {path.parent for path in FILES}
    for folder in sorted(folders):
        siblings = [p for p in FILES if p.parent == folder and p.name != "__init__.py"]
        yield from combinations(siblings, 2)
    # The same role in two rooms or operators: train.py beside train.py, op.py beside op.py.
    by_name: dict[str, list[Path]] = {}
    for path in FILES:
        by_name.setdefault(path.name, []).append(path)
    for paths in by_name.values():
        if paths[0].name != "__init__.py":
            yield from combinations(paths, 2)


def code_lines(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if len(line) > 3 and not line.startswith(("#", "import ", "from "))]


def test_no_near_copies():
    alike = []
    for a, b in sorted(set(sibling_pairs())):
        left, right = code_lines(a), code_lines(b)
        if min(len(left), len(right)) < 20:
            continue
        matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
        if matcher.quick_ratio() > MOST_ALIKE and matcher.ratio() > MOST_ALIKE:
            alike.append(f"{name(a)} and {name(b)}: {matcher.ratio():.2f}")
    assert not alike, "\n".join(alike)


def public_functions():
    """Functions that an __init__ of kernels or ssmcore exports, and everything public in ssmcore's top files."""
    for path in FILES:
        if room_of(path) not in ("ssm_kernels", "ssmcore") or "engine" in path.parts or path.name.startswith("_"):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield pytest.param(path, node, id=f"{name(path)}:{node.name}")


@pytest.mark.parametrize(("path", "node"), public_functions())
def test_public_functions_are_documented(path, node):
    """A docstring for every public function; shapes for every tensor it takes; Raises where it raises itself."""
    text = ast.get_docstring(node) or ""
    assert text, "no docstring"
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    takes_tensors = any(a.annotation and re.search(r"\bTensor\b", ast.unparse(a.annotation)) for a in arguments)
    in_signature = any(re.search(r"\[Tensor, '", ast.unparse(a.annotation)) for a in arguments if a.annotation)
    if takes_tensors and path.name not in ("reference.py", "native.py") and len(text.splitlines()) > 1:
        assert in_signature or re.search(r"[Ss]hape|\([a-z.,*\d +/]+\)", text), "no shapes"
    raises = any(
        isinstance(inner, ast.Raise) and inner.exc is not None for inner in ast.walk(ast.Module(node.body, []))
    )
    assert not raises or "Raises:" in text, "raises, but the docstring does not say what"


def test_core_imports_without_its_optional_company():
    """`import ssmcore` needs torch alone of the large packages."""
    blocked = (
        "triton",
        "lightning",
        "pytorch_lightning",
        "timm",
        "gluonts",
        "torch_geometric",
        "torchaudio",
        "matplotlib",
    )
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import ssm_kernels, ssmcore\n"
        "ssmcore.create_mixer('mamba', 8)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_backend_files_agree():
    """Every operator's folder has the same files, and its backends the same function names."""
    for folder in sorted(p.parent for p in FOLDERS["ssm_kernels"].glob("*/op.py")):
        assert (folder / "reference.py").exists(), f"{folder.name} has no oracle"
        assert (folder / "__init__.py").exists()
        tree = ast.parse((folder / "reference.py").read_text())
        assert any(isinstance(n, ast.FunctionDef) and n.name == folder.name for n in tree.body), folder.name


def test_every_room_has_tests():
    for room, folder in FOLDERS.items():
        modules = [p for p in folder.rglob("*.py") if p.name != "__init__.py"]
        tests = ROOT / "tests" / ("kernels" if room == "ssm_kernels" else room)
        assert len(modules) < 2 or any(tests.rglob("test_*.py")), f"{room} has code and no tests"
