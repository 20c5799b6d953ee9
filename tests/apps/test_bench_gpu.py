"""The benchmark for GPUs and the script that calls it, as far as a machine without one can run them."""

import json
import subprocess
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
    def __init__(self, *_):
        raise RuntimeError("no capture here")


@pytest.fixture
def pretended(monkeypatch):
    """torch.cuda as the benchmark uses it, on a CPU: the reference for Triton, events that tick by themselves."""
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: SimpleNamespace(wait_stream=lambda _: None))
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


def test_the_script_says_what_it_left_out(tmp_path):
    script = ROOT / "apps" / "bench" / "gpu_proof.sh"
    done = subprocess.run([script, tmp_path / "out", "peer", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no part nonsense" in done.stderr
    assert "MAMBA_SDIST names no file" in (tmp_path / "out" / "summary.txt").read_text()
    assert subprocess.run([script], capture_output=True, check=False).returncode != 0
