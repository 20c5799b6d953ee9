"""`python -m apps.bench graph`: a packed scan over graphs against the same layer on padded batches and PyG's GPSConv.

Rows, all at the same width, in float32, forward + backward on the same batches:
packed (graph.SSMConv: bidirectional Mamba, canonical order), padded (its weights on dense batches, as public code does
it; outputs are equal and checked), block (the packed layer with norms and MLP, GPS layout), gps_multihead and
gps_performer (PyG's GPSConv without message passing, which has the same norms and MLP).

Ratios are of CPU time of the process, in one run, in turns. Orders are computed ahead for both, as in training.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .timing import Neighbours, Protocol, interleave

SETS = ("PROTEINS", "NCI1", "Peptides-func")
ROWS = ("packed", "padded", "block", "gps_multihead", "gps_performer")
HEADS = 4


@dataclass(frozen=True)
class Problem:
    """Batches of a data set."""

    name: str
    batch_size: int
    batches: int
    channels: int
    root: str
    source: str | None
    file: str
    """Where the prepared batches lie."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `graph`."""
    parser.add_argument("--set", nargs="+", choices=SETS, default=list(SETS), help="data sets (default: all)")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[32, 128], help="graphs a batch (default: 32 128)")
    parser.add_argument("--row", nargs="+", choices=ROWS, default=list(ROWS), help="rows (default: all)")
    parser.add_argument(
        "--graphs",
        type=int,
        default=1088,
        help="graphs a call goes through, in batches (default: 1088, nearly all of PROTEINS)",
    )
    parser.add_argument("--channels", type=int, default=64, help="width (default: 64)")
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time a row (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--root", default="data/graph", help="folder of prepared data sets (default: data/graph)")
    parser.add_argument("--source", help="folder with local copies, see python -m graph.train --help")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows as JSON")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory (a process a row)")


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the file."""
    result = measure(args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(args: argparse.Namespace) -> dict:
    """All rows of all problems, printed as they come: machine, and rows (set, batch_size, row, ms, times, MiB)."""
    import torch
    from tqdm import tqdm

    from .memory import peak_of
    from .scan import describe_machine

    torch.set_num_threads(args.threads)
    rows, protocol, folder = [], Protocol(budget=args.seconds), tempfile.TemporaryDirectory()
    for name in args.set:
        for size in args.batch_size:
            file = str(Path(folder.name) / f"{name}-{size}.pt")
            batches = max(1, args.graphs // size)
            problem = Problem(name, size, batches, args.channels, args.root, args.source, file)
            prepare(problem)
            jobs = {row: make_job(problem, row, small=False) for row in args.row}
            padding, difference, busy = padding_factor(problem), padded_difference(problem), Neighbours()
            with tqdm(total=len(jobs), desc=f"{name}, batch {size}", leave=False, disable=None) as bar:
                samples = interleave(jobs, protocol, lambda _, share, bar=bar: bar.update(share))
            for row, taken in samples.items():
                memory = None if args.no_memory else round(peak_of(make_job, problem, row, threads=args.threads), 1)
                rows.append(
                    {"set": name, "batch_size": size, "row": row, "batches": batches,
                     "cpu_ms": 1e3 * taken.cpu_mean / batches, "wall_ms": 1e3 * taken.median / batches,
                     "calls": len(taken.wall), "peak_mib": memory,
                     "padding": padding, "difference": difference, "cores_used_by_others": busy.cores()}
                )  # fmt: skip
            print(as_text([r for r in rows if (r["set"], r["batch_size"]) == (name, size)]), flush=True)
    folder.cleanup()
    sizes = {"channels": args.channels, "graphs": args.graphs, "threads": args.threads}
    return {"machine": describe_machine(), "sizes": sizes, "rows": rows}


def as_text(rows: list[dict]) -> str:
    """The table of one problem; ratios are to packed, or to block for GPSConv."""
    first = rows[0]
    title = f"{first['set']}, batch {first['batch_size']}: padding would add {first['padding'] - 1:.0%} of nodes"
    lines = [f"{title}, packed and padded differ by {first['difference']:.0e}"]
    by_row = {r["row"]: r for r in rows}
    for r in rows:
        base = by_row.get("block" if r["row"].startswith("gps") else "packed")
        ratio = f"{r['cpu_ms'] / base['cpu_ms']:6.2f}x" if base else ""
        memory = "" if r["peak_mib"] is None else f"{r['peak_mib']:8.1f} MiB"
        share = f"{r['peak_mib'] / base['peak_mib']:6.2f}x" if base and memory and base["peak_mib"] else ""
        to = "" if base is None or base is r else f" of {base['row']}"
        lines.append(f"  {r['row']:14} {r['cpu_ms']:9.2f} ms {ratio} {memory} {share}{to}")
    return "\n".join(lines)


def make_job(problem: Problem, row: str, small: bool) -> Callable[[], object]:
    """A call that runs forward and backward over all batches of a problem, or over one of two graphs."""
    import torch

    batches, layer = _batches(problem, small), _layer(problem, row)

    def job() -> None:
        for x, topology in batches:
            x = x.detach().requires_grad_()
            layer(x, topology).square().mean().backward()
            layer.zero_grad(set_to_none=True)

    torch.manual_seed(0)
    return job


def padding_factor(problem: Problem) -> float:
    """Nodes of the padded batches in multiples of the true ones."""
    batches = _batches(problem, small=False)
    return sum(int(t.sizes.max()) * t.num_graphs for _, t in batches) / sum(t.num_nodes for _, t in batches)


def padded_difference(problem: Problem) -> float:
    """Largest difference between packed and padded outputs, in units of the largest output."""
    import torch

    x, topology = _batches(problem, small=False)[0]
    with torch.no_grad():
        packed, padded = (_layer(problem, row)(x, topology) for row in ("packed", "padded"))
    return float((packed - padded).abs().max() / packed.abs().max())


def prepare(problem: Problem) -> None:
    """Draw the batches, compute their orders and write them to `problem.file`, which every row then reads."""
    import torch
    from torch_geometric.data import Batch

    from graph.config import ModelConfig
    from graph.data import load_graphs
    from graph.precompute import precompute

    if problem.name not in _KEPT:
        _KEPT[problem.name] = load_graphs(problem.name, root=problem.root, source=problem.source).graphs
    graphs, size = _KEPT[problem.name], problem.batch_size
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(len(graphs), generator=rng).tolist()[: size * problem.batches]
    chosen = precompute([graphs[i] for i in order], ModelConfig(), bar=False)
    parts = [chosen[:2], *(chosen[start : start + size] for start in range(0, len(chosen), size))]  # the first is small
    stored = []
    for batch in map(Batch.from_data_list, parts):
        x = torch.randn(batch.num_nodes, problem.channels, generator=rng)
        stored.append({"x": x, "edges": batch.edge_index, "batch": batch.batch, "rank": batch.rank})
    torch.save(stored, problem.file)


_KEPT: dict = {}  # graphs are read once


def _batches(problem: Problem, small: bool) -> list:
    import torch

    from graph.topology import Topology

    stored = torch.load(problem.file, weights_only=True)
    return [
        (b["x"], Topology.of(b["edges"], b["batch"], len(b["x"]), ranks={"canonical": b["rank"]}))
        for b in (stored[:1] if small else stored[1:])
    ]


def _layer(problem: Problem, row: str):
    """A module that takes nodes (n, d) and a topology; equal weights for packed and padded."""
    import torch
    from torch import nn
    from torch_geometric.nn import GPSConv

    from graph.layers import SSMConv
    from graph.models.blocks import GpsBlock

    class Called(nn.Module):
        """Gives the layers one signature."""

        def __init__(self, inner: nn.Module, call: Callable):
            super().__init__()
            self.inner, self.call = inner, call

        def forward(self, x, topology):
            return self.call(self.inner, x, topology)

    torch.manual_seed(0)
    d = problem.channels
    if row.startswith("gps"):
        kind = GPSConv(d, None, HEADS, attn_type=row.removeprefix("gps_"))
        return Called(kind, lambda m, x, t: m(x, t.edge_index, t.batch))
    scan = SSMConv(d, {"name": "mamba", "expand": 1.0}, order="canonical")
    if row == "block":
        return Called(GpsBlock(d, "none", scan, 0.0), lambda m, x, t: m(x, None, t)[0])
    if row == "padded":
        return Called(scan, padded_scan)
    return Called(scan, lambda m, x, t: m(x, t.edge_index, t.batch, topology=t))


def padded_scan(layer, x, topology):
    """SSMConv as public code runs it: a dense batch (g, longest, d), padding behind the nodes in both directions."""
    from torch_geometric.utils import to_dense_batch

    from graph.orders import passage_of
    from ssmcore.mixer import Context

    passage, graphs = passage_of(topology, layer.order), topology.num_graphs
    dense, mask = to_dense_batch(passage.read(x), topology.batch[passage.order], batch_size=graphs)
    ahead, back = layer.mixer.mixers  # both in one call of each operator, as the packed layer has it
    there, back_again = ahead.mix_pair(back, dense, _turned(dense, topology.sizes), Context(), Context())
    y = there + _turned(back_again, topology.sizes)
    return passage.back(y[mask])


def _turned(dense, sizes):
    """Each row's first `size` tokens from last to first, shape (g, longest, d)."""
    import torch

    time = torch.arange(dense.shape[1], device=dense.device)
    index = torch.where(time < sizes[:, None], sizes[:, None] - 1 - time, time)
    return dense.gather(1, index[..., None].expand_as(dense))
