"""What a graph must be before it reaches a layer or a data set; anything else gets one sentence."""

import torch
from torch import Tensor

from ssmcore.array_types import Float, Int

WHOLE = (torch.int64, torch.int32)


class GraphError(ValueError):
    """A graph, a data set or an option cannot be used as it is; the text says which, and what to do. No arrays."""


def check_edges(op: str, edge_index: Int[Tensor, "2 e"], num_nodes: int) -> None:
    """Edges are pairs of existing nodes.

    Args:
        op: Who asks, for the message.
        edge_index: Sources and targets, shape (2, e), integers.
        num_nodes: n.
    Raises:
        GraphError: Wrong shape or dtype, or an end outside 0..n-1.
    """
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise GraphError(f"{op}: edge_index has shape {tuple(edge_index.shape)}, expected (2, e)")
    if edge_index.dtype not in WHOLE:
        raise GraphError(f"{op}: edge_index has dtype {_dtype(edge_index)}, expected int64")
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= num_nodes:
            bad = low if low < 0 else high
            raise GraphError(f"{op}: edge_index holds node {bad}, expected 0..{num_nodes - 1} for n={num_nodes} nodes")


def check_batch(op: str, batch: Int[Tensor, "n"], num_nodes: int, batch_size: int | None, name: str = "batch") -> int:
    """Graph numbers of the nodes, in any order; returns the number of graphs.

    Args:
        op: Who asks, for the message.
        batch: Graph of each node, shape (n,), integers.
        num_nodes: n.
        batch_size: Number of graphs; None takes it from `batch`, which then may skip none.
        name: The argument, for the message.
    Raises:
        GraphError: Wrong shape or dtype, a number outside 0..batch_size-1, or one that is skipped without a word.
    """
    if batch.shape != (num_nodes,):
        raise GraphError(f"{op}: {name} has shape {tuple(batch.shape)}, expected ({num_nodes},), one entry a node of x")
    if batch.dtype not in WHOLE:
        raise GraphError(f"{op}: {name} has dtype {_dtype(batch)}, expected int64")
    if not num_nodes:
        return batch_size or 0
    low, high = int(batch.min()), int(batch.max())
    if low < 0 or (batch_size is not None and high >= batch_size):
        top = "" if batch_size is None else f"..{batch_size - 1}"
        raise GraphError(f"{op}: {name} holds graph {low if low < 0 else high}, expected 0{top}")
    if batch_size is not None:
        return batch_size
    counts = torch.bincount(batch, minlength=high + 1)
    if not bool(counts.all()):
        missing = int((counts == 0).nonzero()[0, 0])
        raise GraphError(
            f"{op}: batch skips graph {missing}, which has no nodes; number the graphs 0, 1, 2, ... or give batch_size"
        )
    return high + 1


def check_features(op: str, name: str, x: Float[Tensor, "n d"], rows: int, channels: int, row: str = "node") -> None:
    """Features of nodes or edges: a row each, d columns, finite.

    Args:
        op: Who asks, for the message.
        name: The argument, for the message.
        x: Shape (n, d).
        rows: n.
        channels: d.
        row: What a row stands for, for the message.
    Raises:
        GraphError: Wrong shape, or NaN or infinity in it.
    """
    if x.ndim != 2 or x.shape[0] != rows or x.shape[1] != channels:
        expected = f"({rows}, {channels}), one row a {row}"
        raise GraphError(f"{op}: {name} has shape {tuple(x.shape)}, expected {expected}")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).any(1).nonzero()[0, 0])
        raise GraphError(f"{op}: {name} holds NaN or infinity, first at {row} {bad}; replace it before training")


def check_categories(op: str, name: str, x: Int[Tensor, "n columns"], rows: int, sizes: tuple[int, ...]) -> None:
    """Whole-number features, one column a property.

    Args:
        op: Who asks, for the message.
        name: The argument, for the message.
        x: Shape (n, columns), integers.
        rows: n.
        sizes: Number of values of each column.
    Raises:
        GraphError: Wrong shape or dtype, or a value outside its column's 0..size-1.
    """
    if x.ndim != 2 or x.shape[0] != rows or x.shape[1] != len(sizes) or x.is_floating_point():
        came = f"shape {tuple(x.shape)} and dtype {_dtype(x)}"
        raise GraphError(f"{op}: {name} has {came}, expected integers ({rows}, {len(sizes)})")
    limits = torch.tensor(sizes, device=x.device)
    wrong = (x < 0) | (x >= limits)
    if bool(wrong.any()):
        row, column = (int(i) for i in wrong.nonzero()[0])
        value = int(x[row, column])
        raise GraphError(f"{op}: {name}[{row}, {column}] is {value}, expected 0..{sizes[column] - 1}")


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")
