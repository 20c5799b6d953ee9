"""`python -m apps.bench scan`: the selective scan against its peers and against what the machine can do.

Rows (see peers.py for exactly what each one computes): native and reference are the operator's backends, loop the
sequential PyTorch loop, loop_indexed the loop as it is mostly written, mambapy and transformers the packages,
projections the layer's own in and out Linear layers (projections_all: all four), floor the bound of floor.py.

Times are medians of interleaved runs. Where other processes keep the cores busy, times on two threads mean little (the
table says how many cores others used): compare the CPU times of `--threads 1` then.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from .cases import CASES, GPU_CASES, PASSES, Case
from .gpu import ROWS as GPU_IMPLS
from .timing import Neighbours, Protocol, Samples, interleave

IMPLS = (
    "native", "reference", "loop", "loop_indexed", "mambapy", "transformers", "projections", "projections_all", "floor",
)  # fmt: skip
QUICK_IMPLS = ("native", "loop", "mambapy", "projections", "floor")
QUICK = Protocol(budget=0.6, turn=0.05, least=2, least_slow=1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `scan`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: see gpu.py (default: cpu)")
    names = list(dict.fromkeys([*CASES, *GPU_CASES]))
    parser.add_argument("--case", nargs="+", choices=names, help="sizes to measure (default: all of the device)")
    rows = list(dict.fromkeys([*IMPLS, *GPU_IMPLS]))
    parser.add_argument("--impl", nargs="+", choices=rows, help="rows to measure (default: all of the device)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--seconds", type=float, default=3.0, help="measuring time a row and pass (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory (a process a row)")
    parser.add_argument("--quick", action="store_true", help="one case, few repetitions, no transformers: under 20 s")


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the files."""
    if args.device == "cuda":
        from . import gpu

        return gpu.run(args)
    import torch

    wanted = args.case or (("vision",) if args.quick else CASES)
    if missing := [name for name in wanted if name not in CASES]:
        print(f"bench: {', '.join(missing)} is measured with --device cuda only; on a CPU: {', '.join(CASES)}")
        return 2
    if missing := [name for name in args.impl or () if name not in IMPLS]:
        print(f"bench: {', '.join(missing)} is measured with --device cuda only; on a CPU: {', '.join(IMPLS)}")
        return 2
    cases = [CASES[name] for name in wanted]
    threads = args.threads or torch.get_num_threads()
    impls = args.impl or (QUICK_IMPLS if args.quick else IMPLS)
    protocol = QUICK if args.quick else Protocol(budget=args.seconds)
    result = measure(cases, impls, threads, protocol, memory=not args.no_memory)
    print(as_text(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(as_markdown(result))
    return 0


def measure(
    cases: list[Case], impls, threads: int, protocol: Protocol, memory: bool = True, progress: bool | None = None
) -> dict:
    """Measure the rows of each case, interleaved, then their peak memory.

    Args:
        cases: The problems.
        impls: Names of rows, from IMPLS.
        threads: Threads that torch and the kernels get.
        protocol: How long.
        memory: Whether to measure peak memory.
        progress: Whether to show a bar; None: when a person watches.
    Returns:
        machine, rows (case, pass, impl, threads, seconds, best_seconds, cpu_seconds, samples, peak_mib), skipped
        (case, pass, impl, reason).
    """
    import torch
    from tqdm import tqdm

    before, load = torch.get_num_threads(), os.getloadavg()[0]
    torch.set_num_threads(threads)
    rows, skipped, others, rates = [], [], {}, None
    total = len(cases) * len(PASSES) * len(impls) * (1.3 if memory else 1)
    layout = "{desc:<40.40} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    try:
        with tqdm(total=total, bar_format=layout, disable=None if progress is None else not progress) as bar:
            if "floor" in impls:
                bar.set_description_str("this machine's rates")
                rates = _rates(threads, min(1.0, protocol.budget), skipped, cases)
            for case in cases:
                for which_pass in PASSES:
                    busy = Neighbours()
                    found = _measure_pass(case, which_pass, impls, protocol, skipped, bar)
                    others[f"{case.name} {which_pass}"] = busy.cores()
                    for impl, samples in found.items():
                        rows.append(_row(case, which_pass, impl, threads, samples))
                        if memory:
                            bar.set_description_str(f"{case.name} {which_pass} {impl}: memory")
                            rows[-1]["peak_mib"] = _peak(impl, case, which_pass, threads)
                            bar.update(0.3)
                    if rates is not None:
                        rows.append(_floor_row(case, which_pass, rates))
            bar.set_description_str("measured")
            bar.update(max(0.0, total - bar.n))
    finally:
        torch.set_num_threads(before)
    machine = {**describe_machine(), "threads": threads, "load_before": load, "load_after": os.getloadavg()[0]}
    machine |= {"rates": asdict(rates) if rates else None, "cores_used_by_others": others}
    return {"machine": machine, "protocol": asdict(protocol), "rows": rows, "skipped": skipped}


def _rates(threads: int, seconds: float, skipped: list, cases: list[Case]):
    from .floor import measure_rates

    try:
        return measure_rates(threads, seconds)
    except RuntimeError as error:
        skipped += [_key(c, p, "floor") | {"reason": str(error)} for c in cases for p in PASSES]
        return None


def _measure_pass(case: Case, which_pass: str, impls, protocol: Protocol, skipped: list, bar) -> dict[str, Samples]:
    from .peers import PEERS, why_skipped

    jobs: dict[str, Callable[[], object]] = {}
    for impl in impls:
        if impl == "floor":
            continue
        reason = why_skipped(impl, case, which_pass)
        if reason is None:
            jobs[impl] = getattr(PEERS[impl].make(case), which_pass)
        else:
            skipped.append(_key(case, which_pass, impl) | {"reason": reason})

    def tell(name: str, share: float) -> None:
        bar.set_description_str(f"{case.name} {which_pass} {name}")
        bar.update(share)

    bar.set_description_str(f"{case.name} {which_pass}: warm-up")
    return interleave(jobs, protocol, tell)


def _peak(impl: str, case: Case, which_pass: str, threads: int) -> float:
    from .memory import peak_mib

    return round(peak_mib(impl, case, which_pass, threads), 2)


def _key(case: Case, which_pass: str, impl: str) -> dict:
    return {"case": case.name, "pass": which_pass, "impl": impl}


def _row(case: Case, which_pass: str, impl: str, threads: int, samples: Samples) -> dict:
    return _key(case, which_pass, impl) | {
        "threads": threads, "seconds": samples.median, "best_seconds": samples.best,
        "cpu_seconds": samples.cpu_mean, "samples": len(samples.wall), "peak_mib": None,
    }  # fmt: skip


def _floor_row(case: Case, which_pass: str, rates) -> dict:
    from .floor import bounds, least_mib

    seconds = bounds(case, which_pass, rates)
    return _key(case, which_pass, "floor") | {
        "threads": rates.threads, "seconds": seconds["floor"], "best_seconds": seconds["floor"], "cpu_seconds": None,
        "samples": 0, "peak_mib": round(least_mib(case, which_pass), 2),
        "bounds": {k: v for k, v in seconds.items() if k != "floor"},
    }  # fmt: skip


def describe_machine() -> dict:
    """What ran this: CPU, cores, system, versions."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    versions = {}
    for package in ("torch", "mambapy", "transformers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version(),
            "versions": versions}  # fmt: skip


# ---- tables ----


def _milliseconds(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def times(ratio: float) -> str:
    """A ratio in words."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


HEAD = ("", "median ms", "best ms", "cpu ms", "to native", "peak MiB", "runs")


def tables(result: dict) -> list[tuple[str, list[tuple[str, ...]]]]:
    """A title and lines of cells for every case and pass; the ratio is of medians, to native's."""
    out = []
    for case, which_pass in dict.fromkeys((row["case"], row["pass"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["case"], row["pass"]) == (case, which_pass)]
        native = next((row["seconds"] for row in rows if row["impl"] == "native"), None)
        lines = []
        for row in rows:
            counted = row["impl"] == "floor"
            lines.append((
                row["impl"], _milliseconds(row["seconds"]), "" if counted else _milliseconds(row["best_seconds"]),
                "" if counted else _milliseconds(row["cpu_seconds"]),
                times(row["seconds"] / native) if native else "",
                "" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}",
                "" if counted else str(row["samples"]),
            ))  # fmt: skip
        size, busy = CASES.get(case, case), result["machine"]["cores_used_by_others"].get(f"{case} {which_pass}")
        note = f" (other processes used {busy:.1f} cores)" if busy is not None and busy > 0.1 else ""
        out.append((f"{size}, {which_pass.replace('_', ' + ')}{note}", lines))
    return out


def machine_lines(result: dict) -> list[str]:
    """What the numbers were measured on, in words."""
    machine = result["machine"]
    lines = [
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, torch {machine['versions']['torch']}, "
        f"load {machine['load_before']:.1f} before and {machine['load_after']:.1f} after"
    ]
    if machine["rates"]:
        r = machine["rates"]
        lines.append(
            f"reaches {r['exp'] / 1e9:.1f} G exp/s, {r['multiply_add'] / 1e9:.0f} G multiply-add/s, "
            f"copies {r['copy'] / 1e9:.1f} GB/s ({32 * r['lanes']}-bit vectors)"
        )
    return lines


def as_text(result: dict) -> str:
    """The tables for a terminal."""
    out = machine_lines(result)
    for title, lines in tables(result):
        widths = [max(len(line[i]) for line in (HEAD, *lines)) for i in range(len(HEAD))]
        out += ["", title]
        for line in (HEAD, *lines):
            cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
            out.append("  " + "  ".join(cells).rstrip())
    return "\n".join([*out, *_skipped_lines(result)])


def as_markdown(result: dict) -> str:
    """The tables as Markdown."""
    out = ["  \n".join(machine_lines(result))]
    for title, lines in tables(result):
        out += ["", f"**{title}**", "", f"| {' | '.join(HEAD)} |", "|---" + "|---:" * (len(HEAD) - 1) + "|"]
        out += [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*out, *_skipped_lines(result)]) + "\n"


def _skipped_lines(result: dict) -> list[str]:
    """One line a row that was left out, with its passes and cases together."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in result["skipped"]:
        where = reasons.setdefault((row["impl"], row["reason"]), [])
        where.append(f"{row['case']} {row['pass']}")
    return [""] * bool(reasons) + [
        f"skipped {impl} ({', '.join(where)}): {why}" for (impl, why), where in reasons.items()
    ]
