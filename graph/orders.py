"""In which order a scan visits the nodes of a graph.

An order gives every node a rank; nodes that it cannot tell apart share one. What is done about ties says what can be
promised of a layer:

    average   the scan reads, and gives back, the mean over tied nodes: exactly equivariant, whatever the features
    noise     ties are broken at random: equivariant in distribution; seeded ensembles bring single draws near the mean
    index     ties are broken by the node's place in its graph: not equivariant where there are ties

Here equivariant means that relabelling the nodes relabels the outputs. See `ORDERS` for the list.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ssmcore import orders as grid_orders
from ssmcore.array_types import Int
from ssmcore.registry import resolve

from .checks import GraphError
from .noise import uniform
from .passage import Passage
from .structure import (
    colours,
    dense_rank,
    distances,
    fingerprint,
    page_rank,
    quantise,
    return_probabilities,
    roots,
)
from .topology import Topology
from .walks import walk_on

_BUCKET_SALT = 17  # tells the draw of buckets from that of ties
Ties = Literal["average", "noise", "index"]

RETURN_STEPS = 8
"""Steps of the return probabilities in the canonical key; colour refinement says more than further ones would."""


@dataclass(frozen=True)
class OrderRule:
    """A token order."""

    rank: Callable[[Topology], Int[Tensor, "n"]]
    """Ranks from 0 in each graph, ties sharing one, shape (n,)."""
    ties: Ties
    """What is done about ties."""
    drawn: Callable[[Topology, int, int, bool], Int[Tensor, "n"]] | None = None
    """For orders that are random throughout: (topology, seed, member, fresh) to ranks, shape (n,)."""

    @property
    def random(self) -> bool:
        """Whether two draws differ."""
        return self.ties == "noise" or self.drawn is not None


def degree(topology: Topology) -> Int[Tensor, "n"]:
    """By degree, hubs last, where they have seen all others; shape (n,). Raises nothing.

    Source: Wang et al. 2024, Graph-Mamba, sec. 4.2.
    """
    return dense_rank(topology, topology.degree)


def canonical(topology: Topology) -> Int[Tensor, "n"]:
    """By degree, then return probabilities, then colour refinement from both and the raw features; shape (n,).

    Tied nodes are those that message passing on these features could not tell apart either. Raises nothing.
    """
    returns = quantise(return_probabilities(topology, RETURN_STEPS))
    start = fingerprint(returns, topology.degree) + 3 * topology.degree
    start = start + 5 * fingerprint(topology.features, topology.degree)
    return dense_rank(topology, topology.degree, returns, colours(topology, start))


def _from_roots(topology: Topology) -> tuple[Tensor, Tensor, Tensor]:
    """Canonical rank; canonical roots; and a key that keeps components together, the root's rank."""
    rank = topology.rank("canonical")
    return rank, *roots(topology, rank)


def breadth_first(topology: Topology) -> Int[Tensor, "n"]:
    """By distance from the canonical root of the component, then canonical; shape (n,). Raises nothing."""
    rank, is_root, component = _from_roots(topology)
    return dense_rank(topology, component, distances(topology, is_root), rank)


def hop_shells(topology: Topology) -> Int[Tensor, "n"]:
    """By distance from the canonical root alone: a whole shell is tied, and read as its mean; shape (n,).

    Raises nothing.
    """
    _, is_root, component = _from_roots(topology)
    return dense_rank(topology, component, distances(topology, is_root))


def depth_first(topology: Topology) -> Int[Tensor, "n"]:
    """Preorder of a depth-first search from each component's canonical root, children in canonical order; shape (n,).

    Nodes tied in the canonical order are taken by place: equivariant only where no two are tied. Raises nothing.
    """
    rank, _, _ = _from_roots(topology)
    key = (topology.classes("canonical") * (topology.num_nodes + 1) + topology.place).tolist()
    children: list[list[int]] = [[] for _ in key]
    for source, target in topology.edge_index.T.tolist():
        children[source].append(target)
        children[target].append(source)
    visited, seen = [], [False] * len(key)
    for root in sorted(range(len(key)), key=lambda v: -key[v]):  # the last node in canonical order is the root
        stack = [root]
        while stack:
            node = stack.pop()
            if not seen[node]:
                seen[node] = True
                visited.append(node)
                stack += sorted(children[node], key=lambda v: -key[v])
    time = torch.empty(len(key), dtype=torch.int64)
    time[visited] = torch.arange(len(key))
    return dense_rank(topology, time.to(rank.device))


def personalised_page_rank(topology: Topology) -> Int[Tensor, "n"]:
    """From little to much PageRank around the canonical roots, then canonical; shape (n,). Raises nothing.

    Source: Behrouz & Hashemi 2024, Graph Mamba (an order for single nodes).
    """
    rank, is_root, _ = _from_roots(topology)
    return dense_rank(topology, quantise(page_rank(topology, is_root), 1e-7), rank)


def hilbert(topology: Topology) -> Int[Tensor, "n"]:
    """Along a Hilbert curve over the bounding square of a graph's points; points in one of 64 x 64 cells are tied.

    Returns:
        Ranks, shape (n,).
    Raises:
        GraphError: The graphs have no points in the plane.
    """
    pos = topology.pos
    if pos is None or pos.ndim != 2 or pos.shape[1] != 2:
        came = "no pos" if pos is None else f"pos of shape {tuple(pos.shape)}"
        raise GraphError(f"order 'hilbert': points (n, 2) are needed, got {came}")
    side = 64
    index = topology.batch[:, None].expand(-1, 2)
    low = pos.new_full((topology.num_graphs, 2), torch.inf).scatter_reduce(0, index, pos, "amin")
    high = pos.new_full((topology.num_graphs, 2), -torch.inf).scatter_reduce(0, index, pos, "amax")
    extent = (high - low).amax(1, keepdim=True).clamp_min(torch.finfo(pos.dtype).tiny)
    cell = ((pos - low[topology.batch]) / extent[topology.batch] * side).long().clamp(0, side - 1)
    along = grid_orders.inverse(grid_orders.hilbert(side, side)).to(pos.device)
    return dense_rank(topology, along[cell[:, 1] * side + cell[:, 0]])


def _first_visits(topology: Topology, seed: int, member: int, fresh: bool) -> Int[Tensor, "n"]:
    """By the first visit of a random walk from a random node; nodes that it misses come last, by chance; shape (n,)."""
    n, g = topology.num_nodes, topology.num_graphs
    chance = uniform(topology.place, seed, member, fresh=fresh)
    first = dense_rank(topology, (chance * 2**52).long())
    walker = torch.empty(g, dtype=torch.int64, device=first.device)
    starts = first == 0
    walker[topology.batch[starts]] = starts.nonzero()[:, 0]
    alive = topology.sizes > 0
    walker = walker[alive]
    before = torch.full_like(walker, -1)
    visit = torch.full((n,), n * 8, device=first.device)
    patience = (4 * topology.sizes[alive]).clamp(max=2048)  # of its own graph: other graphs must not prolong a walk
    for step in range(int(patience.max()) if n else 0):
        seen = torch.where(step < patience, step, n * 8)
        visit[walker] = torch.minimum(visit[walker], seen)
        draw = uniform(torch.zeros_like(walker), seed, member, step + 1, fresh=fresh)
        there, _ = walk_on(topology, walker, before, draw)
        walker, before = there, walker
    return dense_rank(topology, visit, first)


ORDERS: dict[str, OrderRule] = {
    "degree": OrderRule(degree, "noise"),
    "canonical": OrderRule(canonical, "average"),
    "bfs": OrderRule(breadth_first, "average"),
    "dfs": OrderRule(depth_first, "index"),
    "ppr": OrderRule(personalised_page_rank, "average"),
    "walk": OrderRule(degree, "noise", drawn=_first_visits),
    "hilbert": OrderRule(hilbert, "average"),
    "shells": OrderRule(hop_shells, "average"),
}


def rule_of(order: str) -> OrderRule:
    """The rule of an order by its name. No shapes.

    Raises:
        ValueError: No such order; gives the near misses.
    """
    return resolve(order, ORDERS, "token order of a graph")


def visits(topology: Topology, order: str, *, seed: int = 0, member: int = 0, fresh: bool = False) -> Int[Tensor, "n"]:
    """The nodes as the scan meets them: graph after graph, and in each by the order.

    Args:
        topology: The graphs.
        order: Key of ORDERS.
        seed: Of what is drawn at random, unless it is fresh.
        member: Which of several draws with that seed.
        fresh: Draw from torch's generator.
    Returns:
        A permutation of the nodes, int64, shape (n,): entry t is the node visited at step t of the packed sequence.
    Raises:
        ValueError: No such order, or it lacks what it needs.
    """
    rule = rule_of(order)
    if rule.drawn is not None:
        return torch.argsort(topology.starts[topology.batch] + rule.drawn(topology, seed, member, fresh))
    if rule.ties == "noise":
        noise = uniform(topology.place, seed, member, fresh=fresh)
        return torch.argsort(topology.classes(order) + noise)
    by_place = torch.argsort(topology.place, stable=True)
    return by_place[torch.argsort(topology.classes(order)[by_place], stable=True)]


def passage_of(topology: Topology, order: str, *, seed: int = 0, member: int = 0, fresh: bool = False) -> Passage:
    """The maps into the order of a scan and back, averaging over ties where the order does; arguments as `visits`.

    No shapes.
    Raises:
        ValueError: No such order, or it lacks what it needs.
    """
    rule = rule_of(order)
    if rule.random:
        return Passage.of(visits(topology, order, seed=seed, member=member, fresh=fresh))
    cache: dict = topology.__dict__.setdefault("_passages", {})
    if order not in cache:
        cache[order] = Passage.of(visits(topology, order), topology.ties(order) if rule.ties == "average" else None)
    return cache[order]


def buckets_of(
    topology: Topology, count: int, *, seed: int = 0, member: int = 0, fresh: bool = False
) -> Int[Tensor, "n"]:
    """Which of so many buckets each node falls into, every one as likely and by itself; shape (n,).

    Args:
        topology: The graphs.
        count: Buckets a graph.
        seed: Of the draw, unless it is fresh.
        member: Which of several draws with that seed.
        fresh: Draw from torch's generator.
    Returns:
        int64 in 0 .. count - 1. Unless it is fresh, a node's bucket depends on its place in its graph alone.
    """
    return (uniform(topology.place, seed, member, _BUCKET_SALT, fresh=fresh) * count).long()
