"""`python -m apps.bench scan --device cuda`: the scan on a GPU against its peers, flash attention and the hardware.

Rows: triton and reference are the operator's backends, one_exponential the operator with A of the first state alone,
bidirectional two directions summed in one launch, mamba_ssm the CUDA kernel of that package where its extension can be
imported, mamba_ssm_ref its PyTorch loop, sdpa causal attention of the same width (heads of 64), floor the largest of
three bounds: bytes at the measured rate of a copy, exponentials and instructions at the device's clock.

x, dt, z, B and C are bfloat16, everything else float32. Times are medians of replays of a captured CUDA graph, so that
they hold no Python; where a row cannot be captured its line says so. Everything runs on one stream, the one that is
captured: backward runs on the stream of its forward, and on another it could not be. Files are written after every row.
"""

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cases import GPU_CASES, Case

ROWS = ("triton", "one_exponential", "bidirectional", "reference", "mamba_ssm", "mamba_ssm_ref", "sdpa")
# Loops in Python are run up to so many steps and not captured: a graph of 10^5 kernels takes longer than they do.
LOOPS = {"reference": 256, "mamba_ssm_ref": 256}
DEVICE, BACKEND = "cuda", "triton"
EXPS_A_CLOCK, LANES = 16, 128  # of one multiprocessor
UPDATE_SLOTS = {"forward": 5, "backward": 16}  # instructions a state update needs at least, the exponential included
EXPS = {"forward": 1, "backward": 1}


def traffic(case: Case, which_pass: str) -> float:
    """Bytes that have to move: in bfloat16 x, dt, z and y forward; x, dt, z, dy and three gradients backward."""
    return 2 * case.elements * (4 if which_pass == "forward" else 7)


def bounds(case: Case, which_pass: str, copy: float, processors: int, clock: float) -> dict[str, float]:
    """Seconds by each bound, and their largest as "floor".

    Args:
        case: The problem.
        which_pass: "forward" or "backward".
        copy: Bytes a second that a copy moves, read and written.
        processors: Multiprocessors of the device.
        clock: Its clock in Hz.
    """
    seconds = {
        "bytes": traffic(case, which_pass) / copy,
        "exp": EXPS[which_pass] * case.updates / (EXPS_A_CLOCK * processors * clock),
        "issue": UPDATE_SLOTS[which_pass] * case.updates / (LANES * processors * clock),
    }
    return {**seconds, "floor": max(seconds.values())}


def inputs(case: Case, routes: int = 0) -> dict[str, Any]:
    """A Mamba layer's tensors on the GPU: steps log-uniform in 1e-3..1e-1, A = -(1..n)."""
    import torch

    g = torch.Generator(DEVICE).manual_seed(0)
    b, l, d, n = case.batch, case.length, case.d, case.n
    own = (routes,) if routes else ()

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=g, device=DEVICE, dtype=torch.bfloat16)

    step = 10 ** (torch.rand(*own, b, l, d, generator=g, device=DEVICE) * 2 - 3)
    made = dict(
        x=normal(b, l, d), dt=step.expm1().log().bfloat16(),
        A=-torch.arange(1.0, n + 1, device=DEVICE).expand(*own, d, n).contiguous(),
        B=normal(*own, b, l, n), C=normal(*own, b, l, n), D=torch.ones(*own, d, device=DEVICE), z=normal(b, l, d),
        dt_bias=torch.zeros(*own, d, device=DEVICE),
    )  # fmt: skip
    return {name: t.requires_grad_() for name, t in made.items()}


def make(row: str, case: Case) -> tuple[Callable[[], Any], list[Any]]:
    """A row's forward pass and the tensors that it is differentiated by.

    Raises:
        RuntimeError: The row cannot run here, or not at this size; says why.
    """
    import torch
    import torch.nn.functional as F
    from ssm_kernels import selective_scan
    from ssm_kernels.selective_scan import routed_scan

    if case.length > LOOPS.get(row, case.length):
        raise RuntimeError(f"a Python loop: run up to {LOOPS[row]} steps only")
    if row == "sdpa":
        shape = (3, case.batch, case.d // 64, case.length, 64)
        qkv = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
        return lambda: F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True), [qkv]
    if row.startswith("mamba_ssm"):
        return make_upstream(row, inputs(case))
    backend = "reference" if row == "reference" else BACKEND
    if row == "bidirectional":
        given = inputs(case, 2)
        ahead = torch.arange(case.length, device=DEVICE, dtype=torch.int32)
        order = torch.stack([ahead, ahead.flip(0)])
        return lambda: routed_scan(**given, order=order, dt_softplus=True, backend=backend), list(given.values())
    given = inputs(case)
    if row == "one_exponential":
        given["A"] = given["A"].detach()[:, 0].contiguous().requires_grad_()
    return lambda: selective_scan(**given, dt_softplus=True, backend=backend), list(given.values())


def make_upstream(row: str, given: dict[str, Any]) -> tuple[Callable[[], Any], list[Any]]:
    """mamba_ssm's CUDA kernel, or with "mamba_ssm_ref" its loop, in its own layout; else as `make`."""
    scan = getattr(upstream(), "selective_scan_ref" if row == "mamba_ssm_ref" else "selective_scan_fn")
    rows = {name: given[name].detach().mT.contiguous().requires_grad_() for name in ("x", "dt", "B", "C", "z")}
    A, D, bias = (given[name] for name in ("A", "D", "dt_bias"))
    leaves = [*rows.values(), A, D, bias]
    return lambda: scan(rows["x"], rows["dt"], A, rows["B"], rows["C"], D, rows["z"], bias, True), leaves


def upstream() -> Any:
    """mamba_ssm's module of the scan, without what else its package imports at once.

    Raises:
        RuntimeError: Its extension is not installed.
    """
    found = importlib.util.find_spec("selective_scan_cuda")
    if found is None or found.origin is None:
        raise RuntimeError("mamba_ssm's CUDA kernel is not installed")
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        package = sys.modules.setdefault(name, types.ModuleType(name))
        package.__path__ = [str(Path(found.origin).parent.joinpath(*name.split(".")))]
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface")


@functools.cache
def stream() -> Any:
    """The stream that everything runs on."""
    import torch

    return torch.cuda.Stream()


def timed(run: Callable[[], Any], seconds: float, capture: bool = True) -> tuple[float, int, bool]:
    """Median seconds of a call, how many were timed, and whether as a captured graph; on `stream`, as the caller."""
    import torch

    for _ in range(3):
        run()
    torch.cuda.synchronize()
    call = run
    if capture:
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream()):
                run()
            call = graph.replay
            call()
        except RuntimeError:
            call = run
        torch.cuda.synchronize()
    taken: list[float] = []
    while len(taken) < (10 if sum(taken) < 2 * seconds else 3) or (sum(taken) < seconds and len(taken) < 1000):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken), len(taken), call is not run


def copy_rate() -> float:
    """Bytes a second of a large copy, read and written."""
    import torch

    with torch.cuda.stream(stream()):
        source = torch.ones(2**30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        seconds, _, _ = timed(lambda: target.copy_(source), 0.2)
    return 2 * source.numel() / seconds


def measure_row(row: str, case: Case, seconds: float) -> list[dict[str, Any]]:
    """Forward and backward of a row: seconds, and memory above what was held. Raises: RuntimeError: as `make`."""
    import torch

    with torch.cuda.stream(stream()):
        run, leaves = make(row, case)

        def forward() -> Any:
            with torch.no_grad():
                return run()

        y = run()
        given = torch.randn_like(y)
        backward = lambda: torch.autograd.grad(y, leaves, given, retain_graph=True)  # noqa: E731
        found = []
        for which_pass, call in (("forward", forward), ("backward", backward)):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            call()
            peak = (torch.cuda.max_memory_allocated() - held) / 2**20
            taken, runs, captured = timed(call, seconds, capture=row not in LOOPS)
            found.append(
                dict(case=case.name, row=row, runs=runs, captured=captured, seconds=taken, peak_mib=peak)
                | {"pass": which_pass}
            )
    return found


def run(args: argparse.Namespace) -> int:
    """Measure on the GPU, print the table, write the files; returns the exit status."""
    import torch
    from tqdm import tqdm

    if not torch.cuda.is_available():
        print("bench: --device cuda needs a CUDA device, and torch sees none")
        return 2
    if missing := [name for name in args.impl or () if name not in ROWS]:
        print(f"bench: {', '.join(missing)} is not measured with --device cuda; there: {', '.join(ROWS)}")
        return 2
    if missing := [name for name in args.case or () if name not in GPU_CASES]:
        print(f"bench: {', '.join(missing)} is not measured with --device cuda; there: {', '.join(GPU_CASES)}")
        return 2
    properties = torch.cuda.get_device_properties(0)
    clock = 1e3 * getattr(properties, "clock_rate", 1_755_000)
    copy = copy_rate()
    machine = dict(device=properties.name, clock_hz=clock, copy_bytes_per_second=copy, torch=torch.__version__)
    result: dict[str, Any] = dict(machine=machine, rows=[], skipped=[])
    cases = [GPU_CASES[name] for name in GPU_CASES if args.case is None or name in args.case]
    for case in cases:
        for which_pass in ("forward", "backward"):
            least = bounds(case, which_pass, copy, properties.multi_processor_count, clock)
            floor = dict(case=case.name, row="floor", seconds=least["floor"], bounds=least)
            result["rows"].append(floor | {"pass": which_pass})
    for case, row in tqdm([(c, r) for c in cases for r in args.impl or ROWS], disable=None):
        try:
            result["rows"] += measure_row(row, case, args.seconds)
        except Exception as error:  # a peer may fail in ways of its own, and must not cost the rows after it
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            result["skipped"].append(dict(case=case.name, row=row, reason=reason))
        torch.cuda.empty_cache()
        write(result, args)
    print(as_markdown(result))
    return 0


def write(result: dict[str, Any], args: argparse.Namespace) -> None:
    """The files that were asked for, as far as there are numbers."""
    for path, text in ((args.json, json.dumps(result, indent=1) + "\n"), (args.markdown, as_markdown(result))):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def as_markdown(result: dict[str, Any]) -> str:
    """The table, the ratio being to triton's time, and what was left out."""
    machine = result["machine"]
    lines = [
        f"{machine['device']}, copies {machine['copy_bytes_per_second'] / 1e12:.2f} TB/s, torch {machine['torch']}"
    ]
    lines += ["", "| case | pass | row | ms | to triton | peak MiB | runs |", "|---|---|---|---:|---:|---:|---:|"]
    ours = {(r["case"], r["pass"]): r["seconds"] for r in result["rows"] if r["row"] == "triton"}
    for r in sorted(result["rows"], key=lambda r: (r["case"], r["pass"])):
        base = ours.get((r["case"], r["pass"]))
        ratio = f"{r['seconds'] / base:.2f}x" if base else ""
        peak = f"{r['peak_mib']:.0f}" if "peak_mib" in r else ""
        runs = f"{r['runs']}{'' if r['captured'] else ' (not captured)'}" if "runs" in r else ""
        lines.append(
            f"| {r['case']} | {r['pass']} | {r['row']} | {r['seconds'] * 1e3:.4f} | {ratio} | {peak} | {runs} |"
        )
    lines += [f"\nskipped {s['row']} ({s['case']}): {s['reason']}" for s in result["skipped"]]
    return "\n".join(lines) + "\n"
