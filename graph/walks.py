"""Random walks over a batch of graphs, and what may be known of a walk without node names.

Shapes: w walks, l nodes on each; n nodes, e edges. A walk at a node without edges stays there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmcore.array_types import Float, Int

from .noise import mix, uniform
from .topology import Topology


@dataclass(frozen=True, eq=False)
class Walks:
    """Walks of equal length."""

    nodes: Int[Tensor, "w l"]
    """The nodes in order."""
    edges: Int[Tensor, "w l"]
    """The edge by which each node was reached; -1 at the start and where the walk stayed."""


def walk_on(topology: Topology, at: Int[Tensor, "w"], before: Int[Tensor, "w"], draw: Tensor) -> tuple[Tensor, Tensor]:
    """One step to a neighbour, all equally likely but the one it came from; that one only where there is no other.

    Args:
        topology: The graphs.
        at: Where the walkers are, shape (w,).
        before: Where they were before, or -1, shape (w,).
        draw: Uniform in [0, 1), shape (w,).
    Returns:
        Where they are then, and by which edge, -1 where they stay; shape (w,) both.
    """
    bounds, targets, edges = topology.neighbours
    if not len(targets):
        return at, torch.full_like(at, -1)
    count = bounds[at + 1] - bounds[at]
    last = (bounds[at + 1] - 1).clamp_min(0)
    # Choose among all but the last neighbour; where that is the one before, the last stands in for it.
    turning = (before >= 0) & (count > 1)
    choices = torch.where(turning, count - 1, count)
    chosen = bounds[at] + (draw * choices).long().clamp(max=(choices - 1).clamp_min(0))
    chosen = torch.where(count > 0, chosen, 0)
    chosen = torch.where(turning & (targets[chosen] == before), last, chosen)
    return torch.where(count > 0, targets[chosen], at), torch.where(count > 0, edges[chosen], -1)


def sample_walks(topology: Topology, starts: Int[Tensor, "w"], length: int, *salt: int, fresh: bool) -> Walks:
    """Walks that do not turn round where they need not.

    Args:
        topology: The graphs.
        starts: First node of each walk; a node may start several, shape (w,).
        length: Nodes on a walk, l.
        salt: Seeds; see `graph.noise.uniform`.
        fresh: Draw from torch's generator.
    Returns:
        The walks. Unless they are fresh, those of a graph depend on that graph alone.
    """
    # The copies of one start are told apart by their number; equal starts must stand together.
    first = torch.ones_like(starts, dtype=torch.bool)
    first[1:] = starts[1:] != starts[:-1]
    number = torch.arange(len(starts), device=starts.device)
    copy = number - torch.where(first, number, 0).cummax(0).values if len(starts) else number
    key = topology.place[starts] + mix(copy)
    at, before = starts, torch.full_like(starts, -1)
    nodes, edges = [starts], [before]
    for step in range(1, length):
        there, edge = walk_on(topology, at, before, uniform(key, *salt, step, fresh=fresh))
        at, before = there, at
        nodes.append(at)
        edges.append(edge)
    return Walks(torch.stack(nodes, 1), torch.stack(edges, 1))


def walk_codes(topology: Topology, walks: Walks, window: int) -> Float[Tensor, "w l codes"]:
    """For each node of a walk: is it the node j steps before (j = 1..window), and is it its neighbour (j = 2..window).

    Args:
        topology: The graphs.
        walks: w of l nodes.
        window: How far to look back.
    Returns:
        0 and 1, shape (w, l, 2 window - 1); empty along the last axis for window = 0.
    Source: Tönshoff et al. 2021, Walking out of the Weisfeiler-Leman hierarchy (CRaWl), sec. 2.2.
    """
    nodes, n = walks.nodes, topology.num_nodes
    known = (topology.edge_index[0] * n + topology.edge_index[1]).unique()
    codes = []
    for back in range(1, window + 1):
        past = torch.full_like(nodes, -1)
        past[:, back:] = nodes[:, : max(0, nodes.shape[1] - back)]
        codes.append(past == nodes)
        if back > 1:
            codes.append((past >= 0) & torch.isin(past * n + nodes, known))
    like = torch.zeros(*nodes.shape, 0, device=nodes.device)
    return torch.stack(codes, -1).to(torch.get_default_dtype()) if codes else like
