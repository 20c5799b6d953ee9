"""Building native code on first use: the cache, a broken cache, two builders at once, and no compiler at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ssm_kernels import native_build

ROOT = Path(__file__).parents[2]
USE = """
import warnings
warnings.simplefilter("always")
import torch
from ssm_kernels import selective_scan
x = torch.randn(1, 5, 4)
selective_scan(x, torch.rand(1, 5, 4), -torch.ones(4, 2), torch.randn(1, 5, 2), torch.randn(1, 5, 2))
selective_scan(x, torch.rand(1, 5, 4), -torch.ones(4, 2), torch.randn(1, 5, 2), torch.randn(1, 5, 2)).sum()
print("done")
"""
compiled = pytest.mark.skipif(native_build.compiler() is None, reason="no C compiler")


def environment(cache: Path, **changes: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": path, "SSM_KERNELS_CACHE": str(cache), "SSM_KERNELS_BACKEND": "auto", **changes}


def use(cache: Path, **changes: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", USE]
    return subprocess.run(command, env=environment(cache, **changes), capture_output=True, text=True, check=False)


@compiled
def test_two_processes_build_at_once(tmp_path):
    command = [sys.executable, "-c", USE]
    both = [subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["done", "done"]
    assert len(list(tmp_path.glob("*.so"))) == 1
    assert not list(tmp_path.glob("*.part"))


@compiled
def test_broken_cache_is_built_again(tmp_path):
    assert use(tmp_path).returncode == 0
    (library,) = tmp_path.glob("*.so")
    whole = library.read_bytes()
    for damage in (b"", whole[: len(whole) // 3]):
        library.write_bytes(damage)
        done = use(tmp_path)
        assert done.returncode == 0, done.stderr
        assert library.stat().st_size == len(whole)


@compiled
def test_a_changed_source_is_another_library(tmp_path, monkeypatch):
    monkeypatch.setenv("SSM_KERNELS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "answer" / "native.c"
    source.parent.mkdir()
    common = f'#include "{native_build.COMMON}"\n'
    for value in (1, 2):
        source.write_text(common + f"EXPORT int answer(void) {{ return {value}; }}\n")
        assert native_build.load(source).answer() == value
    assert native_build.load(source, ("-DSSM_DOUBLE",)).answer() == 2
    assert len(list((tmp_path / "cache").glob("*.so"))) == 3


@compiled
def test_a_failing_compiler_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SSM_KERNELS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "broken" / "native.c"
    source.parent.mkdir()
    source.write_text("this is not C\n")
    with pytest.raises(RuntimeError, match="failed:\n.*error"):
        native_build.load(source)
    assert not list((tmp_path / "cache").iterdir())


def test_without_a_compiler(tmp_path):
    """The PyTorch path serves, and one warning says how to get the fast one."""
    (tmp_path / "bin").mkdir()
    done = use(tmp_path, PATH=str(tmp_path / "bin"), CC="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"
    assert done.stderr.count("no C compiler was found") == 1
    assert "apt install gcc" in done.stderr


def test_a_compiler_that_does_not_work(tmp_path):
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    done = use(tmp_path, CC=str(fake))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the C compiler does not work") == 1
