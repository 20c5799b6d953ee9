"""Every module can be the first that a program imports: none needs another to have been there before it."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"ssm_kernels": ROOT / "kernels/ssm_kernels", "ssmcore": ROOT / "ssmcore"}
PROGRAM = """
import importlib, os, sys
import torch  # once for all: what is forked off has it already, and nothing of this suite

assert not [name for name in sys.modules if name.split(".")[0] in ("ssmcore", "ssm_kernels")]
failed = 0
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"{name}: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    failed += bool(os.waitpid(child, 0)[1])
sys.exit(failed)
"""


def modules() -> dict[str, Path]:
    """The files of the two rooms by module name."""
    found = {}
    for room, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((room, *parts)).removesuffix(".__init__")] = path
    return found


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs when a module is imported, but for what is for type checkers."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try)) and "TYPE_CHECKING" not in ast.unparse(node).splitlines()[0]:
            yield from statements([*node.body, *node.orelse])
        else:
            yield node


def needs(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that this one imports as it is imported; of a package that it is not in, the package too."""
    package, wanted = name if path.name == "__init__.py" else name.rpartition(".")[0], set()
    for node in statements(ast.parse(path.read_text()).body):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            wanted |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    ancestors = {name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)}
    with_packages = {w.rsplit(".", i)[0] for w in wanted for i in range(w.count(".") + 1)}
    return (with_packages & known.keys()) - ancestors - {name}


def test_no_module_waits_for_itself():
    """A circle of imports works or fails by where a program enters it."""
    known = modules()
    graph = {name: needs(name, path, known) for name, path in known.items()}
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_some_as_the_first():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    names = ("ssmcore.selective", "ssmcore.stack", "ssmcore.wrappers", "ssmcore.mixers.mamba", "ssmcore.compat.mamba")
    words = [sys.executable, "-W", "ignore", "-c", PROGRAM, *names]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
