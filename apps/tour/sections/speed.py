"""The selective scan on this very machine, measured by `apps.bench`."""

import torch

from apps.bench import scan
from apps.bench.cases import CASES, Case

from ..charts import bars
from ..report import Command, Figure, Section, Table, Text
from . import Visit

WORDS = {
    "native": "this suite, native code",
    "reference": "this suite, plain PyTorch",
    "loop": "PyTorch loop over time",
    "mambapy": "mambapy, parallel scan",
    "projections": "the layer's two Linears",
    "floor": "this machine's floor",
}
PASSES = {"forward": "forward", "forward_backward": "forward + backward"}


def run(visit: Visit) -> Section:
    """Measure one size, quickly."""
    case = Case("tiny", 2, 32, 16, 4) if visit.tiny else CASES["vision"]
    protocol = scan.Protocol(budget=0.01, turn=0.001, least=2) if visit.tiny else scan.QUICK
    result = scan.measure([case], scan.QUICK_IMPLS, torch.get_num_threads(), protocol, memory=not visit.tiny)
    seconds = {(row["pass"], row["impl"]): row["seconds"] for row in result["rows"]}
    ours = next(name for name in ("native", "loop") if ("forward", name) in seconds)
    return Section(
        title="Speed of the scan",
        summary=_summary(seconds, ours, case)
        + (" Other programs were using the cores: roughly." if _busy(result) else ""),
        blocks=[
            Text(
                "Every selective state-space model here rests on one operator, the selective scan, measured in float32 "
                f"at batch {case.batch}, length {case.length}, {case.d} channels and {case.n} states a channel: images "
                "in 16 x 16 patches. On a CPU it runs as C code, compiled for this very machine on first use."
            ),
            Figure(
                bars({title: _milliseconds(seconds, key) for key, title in PASSES.items()}, "ms (log scale)", "speed"),
                "Median time of a call; shorter is better, the axis is logarithmic.",
                "Bars of the median milliseconds of each row, forward and with backward; the table has the numbers.",
            ),
            _table(result),
            Text(_protocol(result)),
        ],
        next=[
            Command("python -m apps.bench scan", "The same at three sizes with every peer, a few minutes."),
            Command("python -m apps.bench scan --threads 1 --case audio", "One second of 16 kHz sound, on one core."),
        ],
    )


def _busy(result: dict) -> float:
    """Cores that other programs used meanwhile, at most; 0 where that is next to nothing."""
    most = max((b or 0.0 for b in result["machine"]["cores_used_by_others"].values()), default=0.0)
    return most if most > 0.2 else 0.0


def _milliseconds(seconds: dict, which_pass: str) -> dict[str, float]:
    return {WORDS[impl]: s * 1e3 for (p, impl), s in seconds.items() if p == which_pass}


def _summary(seconds: dict, ours: str, case: Case) -> str:
    if ours != "native":
        return "no C compiler was found, so the slower PyTorch path runs here; install gcc for the fast one."
    f, b = ("forward", "forward_backward")
    text = f"{case.updates / seconds[f, 'native'] / 1e9:.1f} billion state updates a second forward"
    rivals = [impl for impl in ("loop", "mambapy") if (f, impl) in seconds]
    against = [
        f"{seconds[f, i] / seconds[f, 'native']:.0f}x ({seconds[b, i] / seconds[b, 'native']:.0f}x with backward) "
        f"{'the PyTorch loop' if i == 'loop' else i}"
        for i in rivals
    ]
    return text + (", " + " and ".join(against) + " in the same run." if against else ".")


def _table(result: dict) -> Table:
    rows, native = [], {r["pass"]: r["seconds"] for r in result["rows"] if r["impl"] == "native"}
    for impl in dict.fromkeys(row["impl"] for row in result["rows"]):
        cells = [WORDS[impl]]
        for which_pass in PASSES:
            row = next(r for r in result["rows"] if (r["impl"], r["pass"]) == (impl, which_pass))
            ratio = scan.times(row["seconds"] / native[which_pass]) if which_pass in native else ""
            memory = "" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}"
            cells += [f"{row['seconds'] * 1e3:.2f}", ratio, memory]
        rows.append(cells)
    head = ["", "forward, ms", "ratio", "peak MiB", "+ backward, ms", "ratio", "peak MiB"]
    strong = [i for i, row in enumerate(rows) if row[0] == WORDS["native"]]
    return Table(
        head,
        rows,
        "Medians of interleaved calls, their ratio to ours, and the memory that a call takes at its peak.",
        strong,
    )


def _protocol(result: dict) -> str:
    machine, busy = result["machine"], _busy(result)
    text = (
        f"Measured in one process on {machine['threads']} of {machine['cores']} cores ({machine['cpu']}), in turns, "
        f"for {result['protocol']['budget']:g} s a row; peak memory in a fresh process for each row. The floor is the "
        "work that cannot be avoided, at the rates that this machine was just measured to reach."
    )
    if busy:
        text += (
            f" Other programs kept up to {busy:.1f} cores busy meanwhile. Rows that synchronise often suffer from "
            "that more than others, so take the ratios as rough."
        )
    skipped = {row["impl"]: row["reason"] for row in result["skipped"]}
    return text + "".join(f" Left out: {impl}, {reason}." for impl, reason in skipped.items())
