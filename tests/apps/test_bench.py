"""The benchmark on tiny shapes: what its rows compute, its protocol, its files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ssm_kernels import native_build

from apps.bench import gpu, peers, scan
from apps.bench.__main__ import main
from apps.bench.cases import CASES, GPU_CASES, PASSES, Case
from apps.bench.floor import bounds, least_mib, measure_rates
from apps.bench.memory import peak_mib
from apps.bench.timing import Neighbours, Protocol, interleave

compiled = pytest.mark.skipif(native_build.compiler() is None, reason="no C compiler: no native rows, no floor")

ROOT = Path(__file__).parents[2]
TINY = Case("tiny", batch=2, length=12, d=8, n=4)
BRIEF = Protocol(budget=0.01, turn=0.001, least=2)
SCANS = ("native", "reference", "loop", "loop_indexed", "mambapy")


def skip_if_absent(impl: str) -> None:
    reason = peers.why_skipped(impl, TINY, "forward")
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("impl", SCANS)
def test_scans_agree(impl):
    skip_if_absent(impl)
    want_y, want = peers.PEERS["loop"].make(TINY).forward_backward()
    got_y, got = peers.PEERS[impl].make(TINY).forward_backward()
    torch.testing.assert_close(got_y, want_y, rtol=1e-4, atol=1e-5)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", list(peers.PEERS))
def test_every_row_has_one_gradient_an_input(impl):
    skip_if_absent(impl)
    job = peers.PEERS[impl].make(TINY)
    _, gradients = job.forward_backward()
    assert [g.shape for g in gradients] == [t.shape for t in job.inputs]
    outputs = job.forward()
    for y in outputs if isinstance(outputs, tuple) else (outputs,):
        assert not y.requires_grad


def test_steps_lie_where_mamba_starts():
    x, dt, A, _B, _C, _D, _z, bias = peers.scan_inputs(CASES["vision"])
    step = torch.nn.functional.softplus(dt + bias)
    assert x.shape == (8, 197, 384)
    assert 0.99e-3 < step.min() < 2e-3
    assert 0.09 < step.max() < 0.101
    assert A[0].tolist() == [-float(k) for k in range(1, 17)]


def test_absent_peers_are_skipped_by_name(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda package: False)
    result = scan.measure([TINY], scan.IMPLS, 1, BRIEF, memory=False, progress=False)
    skipped = {(row["impl"], row["pass"]): row["reason"] for row in result["skipped"]}
    for impl in ("mambapy", "transformers"):
        for which_pass in PASSES:
            assert f"{impl} is not installed" in skipped[impl, which_pass]
    assert "skipped mambapy (tiny forward, tiny forward_backward): mambapy is not installed" in scan.as_text(result)
    assert {row["impl"] for row in result["rows"]}.isdisjoint({"mambapy", "transformers"})


def test_quadratic_backwards_are_not_run_at_length():
    for impl in ("transformers", "loop_indexed"):
        assert peers.PEERS[impl].quadratic
    if peers.installed("transformers"):
        assert "quadratic" in peers.why_skipped("transformers", CASES["audio"], "forward_backward")
        assert peers.why_skipped("transformers", CASES["audio"], "forward") is None
    assert "vision only" in peers.why_skipped("loop_indexed", CASES["long"], "forward")


@compiled
def test_rows_and_tables():
    result = scan.measure([TINY], scan.IMPLS, 1, BRIEF, memory=False, progress=False)
    assert json.loads(json.dumps(result)) == result
    keys = {"case", "pass", "impl", "threads", "seconds", "best_seconds", "cpu_seconds", "samples", "peak_mib"}
    for row in result["rows"]:
        assert keys <= set(row)
        assert row["seconds"] > 0
        assert row["threads"] == 1
    measured = {(row["impl"], row["pass"]) for row in result["rows"]}
    assert {(impl, p) for impl in ("reference", "loop", "projections", "floor") for p in PASSES} <= measured
    assert len(measured) == len(result["rows"])
    markdown, text = scan.as_markdown(result), scan.as_text(result)
    for row in result["rows"]:
        assert f"| {row['impl']} | " in markdown
        assert row["impl"] in text
    assert torch.get_num_threads() == result["machine"]["threads"] or torch.get_num_threads() > 0


def test_threads_are_given_back():
    before = torch.get_num_threads()
    scan.measure([TINY], ("loop",), before + 1, BRIEF, memory=False, progress=False)
    assert torch.get_num_threads() == before


@compiled
def test_floor():
    rates = measure_rates(threads=1, seconds=0.02)
    assert rates.exp > 1e7
    assert rates.multiply_add > rates.exp
    assert rates.copy > 1e7
    forward, both = (bounds(TINY, p, rates) for p in PASSES)
    assert all(0 < forward[k] < both[k] for k in ("multiply_add", "exp", "bytes"))
    assert forward["floor"] == max(forward[k] for k in ("multiply_add", "exp", "bytes"))
    assert least_mib(CASES["vision"], "forward") == pytest.approx(4 * 8 * 197 * 384 / 2**20)


def test_peak_memory_sees_what_a_row_holds():
    case = Case("wide", batch=1, length=256, d=256)
    result = 4 * case.elements / 2**20
    lean, states = (peak_mib(impl, case, "forward", 1) for impl in ("loop", "loop_indexed"))
    assert result / 2 < lean < states
    assert states > 2 * 4 * case.updates / 2**20 * 0.9  # a and b of every step


def test_interleave_takes_turns():
    order: list[str] = []
    jobs = {name: (lambda name=name: order.append(name)) for name in "ab"}
    told: dict[str, float] = {"a": 0.0, "b": 0.0}

    def tell(name, share):
        told[name] += share

    samples = interleave(jobs, Protocol(budget=0.002, turn=0.0, least=3), tell)
    assert order[:4] == ["a", "b", "a", "b"]
    assert all(len(s.wall) >= 3 for s in samples.values())
    assert all(s.best <= s.median for s in samples.values())
    assert told == pytest.approx({"a": 1.0, "b": 1.0})


def test_a_slow_row_is_called_twice_and_its_first_call_counts():
    import time

    samples = interleave({"slow": lambda: time.sleep(0.02)}, Protocol(budget=0.01, turn=0.01, least=5))
    assert len(samples["slow"].wall) == 2


def test_neighbours_are_counted():
    busy = Neighbours().cores()
    assert busy is None or busy >= 0


@compiled
def test_command(tmp_path):
    table, rows = tmp_path / "deep" / "scan.md", tmp_path / "scan.json"
    words = ["scan", "--case", "vision", "--impl", "native", "floor", "--threads", "1", "--seconds", "0.05"]
    done = subprocess.run(
        [sys.executable, "-m", "apps.bench", *words, "--json", str(rows), "--markdown", str(table)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "vision (B=8, L=197, D=384, N=16), forward + backward" in done.stdout
    result = json.loads(rows.read_text())
    found = {(r["impl"], r["pass"]): r for r in result["rows"]}
    assert found["floor", "forward"]["seconds"] < found["native", "forward"]["seconds"]
    assert found["native", "forward_backward"]["peak_mib"] > 0
    assert table.read_text().count("| native |") == 2


def test_help_names_every_row(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["scan", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in (*scan.IMPLS, *CASES, "--markdown", "--quick"))


def test_gpu_bounds_and_table():
    """The counted floor of the language shape, and the table, need no GPU."""
    case = GPU_CASES["language"]
    least = gpu.bounds(case, "forward", copy=3e12, processors=132, clock=1.755e9)
    assert least["exp"] == pytest.approx(290e-6, rel=0.01)
    assert least["bytes"] == pytest.approx(179e-6, rel=0.01)
    assert least["floor"] == least["exp"]
    rows = [
        {"case": "language", "pass": "forward", "row": row, "seconds": s, "runs": 9, "captured": c, "peak_mib": 1.0}
        for row, s, c in (("triton", 1e-3, True), ("sdpa", 2e-3, False))
    ]
    table = gpu.as_markdown(
        dict(machine=dict(device="X", copy_bytes_per_second=1e12, torch="2"), rows=rows, skipped=[])
    )
    assert "| language | forward | sdpa | 2.0000 | 2.00x | 1 | 9 (not captured) |" in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_a_sentence(capsys):
    assert main(["scan", "--device", "cuda"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().out
    assert main(["scan", "--case", "language"]) == 2
    assert "--device cuda only" in capsys.readouterr().out
