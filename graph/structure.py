"""Facts about nodes that no relabelling changes: return probabilities, colours, distances, canonical roots, PageRank.

All take a whole batch at once and give the same numbers for a graph whatever stands beside it. Real values are turned
into whole numbers by `quantise`, so that sums in another order cannot tell equal nodes apart.
Shapes: n nodes, e edges, g graphs; see topology.py.
"""

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import torch
from torch import Tensor

from ssmcore.array_types import Float, Int

from .noise import mix
from .topology import Topology

_CHUNK = 1024  # rows of a matrix power that are in memory at a time


def adjacency(topology: Topology) -> scipy.sparse.csr_array:
    """Number of edges from i to j, float64, shape (n, n), on the CPU. Raises nothing."""
    source, target = topology.edge_index.cpu().numpy()
    n = topology.num_nodes
    return scipy.sparse.coo_array((np.ones(len(source)), (source, target)), shape=(n, n)).tocsr()


def return_probabilities(topology: Topology, steps: int) -> Float[Tensor, "n steps"]:
    """Chance that a random walk is back at its start after 1, 2, ..., `steps` steps: the RWSE, for any n.

    A node without edges stays where it is nowhere: its probabilities are 0.

    Args:
        topology: The graphs.
        steps: At least 1.
    Returns:
        float64, shape (n, steps), device of the edges.
    Source: Dwivedi et al. 2022, Graph neural networks with learnable structural and positional representations, eq. 10.
    """
    walk = adjacency(topology)
    out = np.asarray(walk.sum(1)).ravel()
    walk = scipy.sparse.diags_array(1 / np.maximum(out, 1)) @ walk
    result = np.zeros((topology.num_nodes, steps))
    identity = scipy.sparse.eye_array(topology.num_nodes, format="csr")
    for first in range(0, topology.num_nodes, _CHUNK):
        rows = np.arange(first, min(first + _CHUNK, topology.num_nodes))
        power = identity[rows]
        for step in range(steps):
            power = power @ walk
            result[rows, step] = power.diagonal(k=first)
    return torch.from_numpy(result).to(topology.edge_index.device)


def quantise(x: Float[Tensor, "..."], quantum: float = 1e-5) -> Int[Tensor, "..."]:
    """Whole numbers that do not depend on the rounding of x, any shape.

    The quantum is made irrational, so that no fraction, as probabilities of walks are, lies on a border between two.
    Raises nothing.
    """
    return (x.double() / (quantum * 2**0.5)).round().long()


def fingerprint(x: Tensor, like: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """A 64-bit hash of each row of x, shape (n, ...) to (n,), int64; zeros when x is None. Raises nothing."""
    if x is None:
        return torch.zeros_like(like)
    bits = x.flatten(1) if x.ndim > 1 else x[:, None]
    if bits.is_floating_point():
        bits = (bits.double() + 0.0).view(torch.int64)  # -0.0 and 0.0 are one number
    column = mix(torch.arange(bits.shape[1], device=x.device))
    return mix(bits.long() + column).sum(1) if bits.shape[1] else torch.zeros_like(like)


def colours(topology: Topology, start: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Colour refinement (1-WL) until no class splits any more, graph by graph.

    A new colour is a hash of the old one and of the multiset of (colour, edge features) of the neighbours, incoming and
    outgoing; sums of hashes wrap, so their order does not matter. A graph's colours do not depend on its batch.

    Args:
        topology: The graphs.
        start: First colours, any whole numbers, shape (n,).
    Returns:
        Colours, int64, shape (n,): equal exactly where the refinement cannot tell nodes apart (but for collisions of
        64-bit hashes).
    Source: Weisfeiler & Leman 1968.
    """
    source, target = topology.edge_index
    edge = fingerprint(topology.edge_features, source)
    colour = mix(start)
    classes = _class_counts(topology, colour)
    growing = torch.ones(topology.num_graphs, dtype=torch.bool, device=start.device)
    while bool(growing.any()):
        incoming = torch.zeros_like(colour).index_add(0, target, mix(colour[source] + mix(edge + 1)))
        outgoing = torch.zeros_like(colour).index_add(0, source, mix(colour[target] + mix(edge + 2)))
        finer = mix(colour + 3 * incoming + 5 * outgoing)
        counts = _class_counts(topology, finer)
        growing &= counts > classes
        colour = torch.where(growing[topology.batch], finer, colour)
        classes = torch.where(growing, counts, classes)
    return colour


def dense_rank(topology: Topology, *keys: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Number the nodes of each graph from 0 by their keys, the first key first; equal keys share a number.

    Args:
        topology: The graphs.
        keys: Whole numbers, shape (n,) or (n, columns), each.
    Returns:
        int64, shape (n,).
    """
    columns = [topology.batch[:, None], *(k if k.ndim == 2 else k[:, None] for k in keys)]
    table = torch.cat([c.long() for c in columns], 1).cpu().numpy()
    order = np.lexsort(table.T[::-1])
    in_order = table[order]
    fresh = np.ones(len(table), dtype=np.int64)
    fresh[1:] = (in_order[1:] != in_order[:-1]).any(1)
    number = np.empty(len(table), dtype=np.int64)
    number[order] = fresh.cumsum() - 1
    number = torch.from_numpy(number).to(topology.batch.device)
    least = torch.full((topology.num_graphs,), len(table), device=number.device)
    return number - least.scatter_reduce(0, topology.batch, number, "amin")[topology.batch]


def components(topology: Topology) -> Int[Tensor, "n"]:
    """Connected component of each node, numbered over the batch, shape (n,). Raises nothing."""
    _, label = scipy.sparse.csgraph.connected_components(adjacency(topology), directed=False)
    return torch.from_numpy(label.astype(np.int64)).to(topology.batch.device)


def roots(topology: Topology, rank: Int[Tensor, "n"]) -> tuple[Tensor, Int[Tensor, "n"]]:
    """The last node of each component in an order; all of them, where several are tied.

    Args:
        topology: The graphs.
        rank: Order of the nodes, shape (n,).
    Returns:
        Which nodes are roots, bool, shape (n,); and the rank of each node's root, shape (n,).
    """
    component = components(topology)
    last = torch.zeros_like(rank).scatter_reduce(0, component, rank, "amax", include_self=True)[component]
    return rank == last, last


def distances(topology: Topology, sources: Tensor) -> Int[Tensor, "n"]:
    """Steps from the nearest source along edges in either direction.

    Args:
        topology: The graphs.
        sources: True at the sources, shape (n,).
    Returns:
        int64, shape (n,); n where no source can be reached.
    """
    n = topology.num_nodes
    ends = torch.cat([topology.edge_index, topology.edge_index.flip(0)], 1)
    distance = torch.where(sources, 0, n)
    for _ in range(n):
        nearer = distance.scatter_reduce(0, ends[1], distance[ends[0]] + 1, "amin")
        if torch.equal(nearer, distance):
            break
        distance = nearer
    return distance.clamp(max=n)


def page_rank(topology: Topology, sources: Tensor, restart: float = 0.15, steps: int = 50) -> Float[Tensor, "n"]:
    """Where walks that keep returning to the sources of their component are to be found.

    Args:
        topology: The graphs.
        sources: True where walks start, shape (n,).
        restart: Chance of a return at each step.
        steps: Terms of the series; the rest is below (1 - restart)^steps.
    Returns:
        float64, shape (n,), 1 in sum over each component that has a source (but for the rest of the series).
    Source: Page et al. 1999; Haveliwala 2002 (with chosen sources).
    """
    source, target = topology.edge_index
    component = components(topology)
    share = sources.double()
    share = share / torch.zeros_like(share).index_add(0, component, share)[component].clamp_min(1)
    out = torch.bincount(source, minlength=topology.num_nodes).clamp_min(1)
    term, total = restart * share, restart * share
    for _ in range(steps):
        term = torch.zeros_like(term).index_add(0, target, (1 - restart) * (term / out)[source])
        total = total + term
    return total


def hop_pairs(topology: Topology, most: int) -> tuple[Int[Tensor, "2 pairs"], Int[Tensor, "pairs"]]:
    """All pairs of nodes at distances 0 .. most - 1: a list, not a matrix.

    Args:
        topology: The graphs; edges count in both directions.
        most: Number of shells around a node, itself included.
    Returns:
        Pairs (far node, centre), shape (2, pairs), sorted by centre, then from far to near; distances, shape (pairs,).
    Source: Ding et al. 2024, Recurrent distance filtering for graph representation learning (the shells).
    """
    ahead = adjacency(topology)
    step = ((ahead + ahead.T) > 0).astype(np.int8)
    shell = seen = scipy.sparse.eye_array(topology.num_nodes, dtype=np.int8, format="csr")
    found = []
    for distance in range(most):
        pairs = shell.tocoo()
        found.append((*pairs.coords, np.full(pairs.nnz, distance)))
        reached = ((shell @ step) > 0).astype(np.int8)
        shell = (reached - reached.multiply(seen)).tocsr()
        shell.eliminate_zeros()
        if not shell.nnz:
            break
        seen = seen + shell
    centre, far, distance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((far, -distance, centre))
    table = torch.from_numpy(np.stack([far, centre, distance])[:, order].astype(np.int64)).to(topology.batch.device)
    return table[:2], table[2]


def _class_counts(topology: Topology, colour: Int[Tensor, "n"]) -> Int[Tensor, "g"]:
    """Different colours in each graph."""
    order = torch.argsort(colour, stable=True)
    order = order[torch.argsort(topology.batch[order], stable=True)]
    graph, colour = topology.batch[order], colour[order]
    fresh = torch.ones_like(graph, dtype=torch.bool)
    fresh[1:] = (graph[1:] != graph[:-1]) | (colour[1:] != colour[:-1])
    return torch.bincount(graph[fresh], minlength=topology.num_graphs)
