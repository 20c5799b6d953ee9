"""The benchmark for GPUs and the script that calls it, as far as a machine without one can run them."""

import json
import subprocess
import tarfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from apps.bench import gpu
from apps.bench.__main__ import main
from apps.bench.cases import Case

ROOT = Path(__file__).parents[2]


class Clock:
    """Stands for a CUDA event: one millisecond between any two."""

    def __init__(self, **_):
        pass

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1.0


class NoGraph:
    def __init__(self, *_, **__):
        raise RuntimeError("no capture here")


@pytest.fixture
def pretended(monkeypatch):
    """torch.cuda as the benchmark uses it, on a CPU: the reference for Triton, events that tick by themselves."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: SimpleNamespace())
    gpu.stream.cache_clear()
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", NoGraph)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(name="pretended", multi_processor_count=132, clock_rate=1_755_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "BACKEND", "reference")
    monkeypatch.setattr(gpu, "copy_rate", lambda: 3e12)
    monkeypatch.setattr(gpu, "GPU_CASES", {"vision": Case("vision", 1, 3, 64, 2)})


def test_every_row_can_be_made(pretended, tmp_path, capsys):
    written = tmp_path / "scan.json"
    assert main(["scan", "--device", "cuda", "--seconds", "0", "--json", str(written)]) == 0
    result = json.loads(written.read_text())
    assert {row["row"] for row in result["rows"]} == {*gpu.ROWS, "floor"} - {"mamba_ssm", "mamba_ssm_ref"}
    assert {row["reason"] for row in result["skipped"]} == {"mamba_ssm's CUDA kernel is not installed"}
    assert "| vision | backward | one_exponential | 1.0000 | 1.00x |" in capsys.readouterr().out


def test_loops_are_not_run_for_ever():
    for row, longest in gpu.LOOPS.items():
        with pytest.raises(RuntimeError, match=f"run up to {longest} steps only"):
            gpu.make(row, Case("long", 1, longest + 1, 4))


def test_upstream_is_loaded_without_its_package(monkeypatch, tmp_path):
    """mamba_ssm's __init__ wants packages that have nothing to do with the scan."""
    operators = tmp_path / "mamba_ssm" / "ops"
    operators.mkdir(parents=True)
    (tmp_path / "selective_scan_cuda.py").write_text("")
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("raise ImportError('tilelang')")
    (operators / "selective_scan_interface.py").write_text("import selective_scan_cuda\nselective_scan_fn = len\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface", "selective_scan_cuda"):
        monkeypatch.delitem(gpu.sys.modules, name, raising=False)
    assert gpu.upstream().selective_scan_fn is len
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface", "selective_scan_cuda"):
        gpu.sys.modules.pop(name)


def test_training_on_a_cpu(tmp_path, capsys):
    written = tmp_path / "training.json"
    words = [
        "training",
        "--device",
        "cpu",
        "--img-sizes",
        "32",
        "--seconds",
        "0",
        "--blocks-only",
        "--json",
        str(written),
    ]
    assert main(words) == 0
    rows = json.loads(written.read_text())["rows"]
    assert [row["what"] for row in rows] == ["block mamba", "block routed_mamba", "block attention"]
    assert {row["tokens"] for row in rows} == {5}
    assert all(row["seconds"] > 0 for row in rows)
    assert "images/s" in capsys.readouterr().out


def test_a_row_that_fails_costs_no_other(pretended, monkeypatch, tmp_path):
    make, written = gpu.make, tmp_path / "scan.json"

    def fails(row, case):
        if row == "one_exponential":
            raise TypeError("no such thing")
        return make(row, case)

    monkeypatch.setattr(gpu, "make", fails)
    words = ["--seconds", "0", "--json", str(written), "--impl", "one_exponential", "sdpa"]
    assert main(["scan", "--device", "cuda", *words]) == 0
    result = json.loads(written.read_text())
    assert [row["reason"] for row in result["skipped"]] == ["no such thing"]
    assert [row["row"] for row in result["rows"]] == ["floor", "floor", "sdpa", "sdpa"]


def test_rows_of_the_other_device_are_refused(pretended, capsys):
    assert main(["scan", "--device", "cuda", "--impl", "mambapy"]) == 2
    assert main(["scan", "--impl", "sdpa"]) == 2
    assert main(["scan", "--device", "cuda", "--case", "audio"]) == 2
    assert "mambapy is not measured with --device cuda" in capsys.readouterr().out


class TestScript:
    """The script's own work, with a command in place of Python that says what it was asked for."""

    @pytest.fixture
    def script(self, tmp_path):
        fake = tmp_path / "python"
        fake.write_text(
            '#!/bin/sh\n[ "$1" != -c ] || exit 1\necho "asked: $*"\ncase "$*" in *gpu_forms*) exit 3;; esac\n'
        )
        fake.chmod(0o755)

        def run(*words, **environment):
            environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(fake), "WORK": str(tmp_path / "work"), **environment}
            command = [ROOT / "apps/bench/gpu_proof.sh", *words]
            return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

        return run

    def test_all_parts_and_then_none(self, script, tmp_path):
        done = script(tmp_path / "out")
        assert done.returncode == 1, "a part failed"
        summary = (tmp_path / "out/summary.txt").read_text()
        assert "MAMBA_SDIST names no file" in summary
        assert "forms: exit 3" in summary
        assert "nothing is left" in summary
        with tarfile.open(tmp_path / "out/results.tar.gz") as archive:
            names = {Path(name).name for name in archive.getnames()}
        assert names >= {
            f"{part}.txt" for part in ("forms", "scan", "tests", "tests_gpu", "training", "compile", "summary")
        }
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"summary.txt", "results.tar.gz"}
        again = script(tmp_path / "more")
        assert again.stdout == "nothing is left\n"

    def test_what_does_not_fit_is_left_for_another_call(self, script, tmp_path):
        done = script(tmp_path / "out", BUDGET="40")
        assert done.returncode == 1
        assert "left for another call: forms scan tests upstream sanitizer training compile" in done.stdout
        assert "asked" not in done.stdout
        assert "scan: exit 0" in script(tmp_path / "out", "scan").stdout

    def test_a_part_that_does_not_end_is_stopped_and_left(self, script, tmp_path):
        slow = tmp_path / "slow"
        slow.write_text("#!/bin/sh\necho begun\nexec sleep 60\n")
        slow.chmod(0o755)
        done = script(tmp_path / "out", "compile", LIMIT="16", PYTHON=str(slow))
        assert "compile: exit 124" in done.stdout
        assert "left for another call: compile" in done.stdout

    def test_words_that_are_wrong(self, script, tmp_path):
        done = script(tmp_path / "out", "nonsense")
        assert done.returncode == 2
        assert "no part nonsense, expected some of forms scan" in done.stderr
        assert script().returncode != 0
