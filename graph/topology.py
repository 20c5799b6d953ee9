"""What the layers of one forward pass share about a batch of graphs: who is in which graph, and in which order.

A model makes one Topology at its start; what is costly (orders, hop lists) is computed once, or was computed ahead of
training and stored beside the graphs (`graph.precompute`), and every layer reads it.

Names: n nodes, e edges, g graphs; batch (n,) the graph of each node, in any order; place (n,) a node's place in its
graph; rank (n,) its number in an order, from 0 in each graph, shared by tied nodes.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssmcore.array_types import Float, Int
from ssmcore.functional import Rows

from .bags import bounds_of
from .checks import GraphError, check_batch, check_edges
from .passage import MirroredRows


@dataclass(frozen=True, kw_only=True, eq=False)
class Topology:
    """A batch of graphs without their hidden features. Make it with `Topology.of`, which checks."""

    edge_index: Int[Tensor, "2 e"]
    """Sources and targets; undirected edges stand in both directions."""
    batch: Int[Tensor, "n"]
    """Graph of each node, in any order."""
    num_graphs: int
    """g; graphs without nodes are legal."""
    features: Tensor | None = None
    """Raw node features, shape (n, ...), that may tell nodes apart in an order; None for structure alone."""
    edge_features: Tensor | None = None
    """The same for edges, shape (e, ...)."""
    pos: Tensor | None = None
    """Points in the plane, shape (n, 2), for the Hilbert order."""
    ranks: Mapping[str, Tensor] = field(default_factory=dict)
    """Ranks by order, shape (n,), where they were computed ahead."""
    hops: tuple[Tensor, Tensor] | None = None
    """Pairs of nodes, shape (2, pairs), and their distance, shape (pairs,), where they were computed ahead."""
    encoding: Tensor | None = None
    """Positional encoding of the nodes, shape (n, ...), where it was computed ahead."""

    @classmethod
    def of(
        cls,
        edge_index: Int[Tensor, "2 e"],
        batch: Int[Tensor, "n"] | None,
        num_nodes: int,
        *,
        batch_size: int | None = None,
        op: str = "Topology",
        **known,
    ) -> "Topology":
        """Check, and make one.

        Args:
            edge_index: Shape (2, e).
            batch: Shape (n,); None for a single graph.
            num_nodes: n.
            batch_size: Number of graphs g; None takes it from `batch`, which then may skip none.
            op: Who asks, for messages.
            **known: Further fields of the class.
        Raises:
            GraphError: An edge or a graph number that cannot be; says which.
        """
        check_edges(op, edge_index, num_nodes)
        if batch is None:
            batch, batch_size = edge_index.new_zeros(num_nodes), batch_size or 1
        g = check_batch(op, batch, num_nodes, batch_size)
        return cls(edge_index=edge_index.long(), batch=batch.long(), num_graphs=g, **known)

    @property
    def num_nodes(self) -> int:
        """n."""
        return len(self.batch)

    @functools.cached_property
    def sizes(self) -> Int[Tensor, "g"]:
        """Nodes in each graph."""
        return torch.bincount(self.batch, minlength=self.num_graphs)

    @functools.cached_property
    def starts(self) -> Int[Tensor, "g"]:
        """Where each graph starts when the nodes are sorted by graph."""
        return self.sizes.cumsum(0) - self.sizes

    @functools.cached_property
    def place(self) -> Int[Tensor, "n"]:
        """Each node's place among the nodes of its graph."""
        by_graph = torch.sort(self.batch, stable=True).indices
        position = torch.empty_like(by_graph)
        position[by_graph] = torch.arange(self.num_nodes, device=self.batch.device)
        return position - self.starts[self.batch]

    @functools.cached_property
    def degree(self) -> Int[Tensor, "n"]:
        """Edges that end at each node."""
        return torch.bincount(self.edge_index[1], minlength=self.num_nodes)

    @functools.cached_property
    def neighbours(self) -> tuple[Int[Tensor, "n1"], Int[Tensor, "e"], Int[Tensor, "e"]]:
        """Edges by source: bounds, shape (n + 1,); targets in the order of their places, and the edges, shape (e,)."""
        source, target = self.edge_index
        by_place = torch.argsort(self.place[target], stable=True)
        order = by_place[torch.argsort(source[by_place], stable=True)]
        counts = torch.bincount(source, minlength=self.num_nodes)
        return bounds_of(counts), target[order], order

    @functools.cached_property
    def rows(self) -> Rows:
        """The graphs as rows of one packed sequence: nodes sorted by graph, the state starting anew at each."""
        return rows_of(self.sizes)

    def rank(self, order: str) -> Int[Tensor, "n"]:
        """Ranks of an order that draws nothing at random; computed at most once.

        Raises:
            GraphError: The order is unknown, or lacks what it needs.
        """
        if order in self.ranks:
            return self.ranks[order]
        cache: dict = self.__dict__.setdefault("_ranks", {})
        if order not in cache:
            from .orders import rule_of

            cache[order] = rule_of(order).rank(self)
        return cache[order]

    def classes(self, order: str) -> Int[Tensor, "n"]:
        """Ranks made unique over the batch, rising with the graph: equal for tied nodes of a graph and no others."""
        cache: dict = self.__dict__.setdefault("_classes", {})
        if order not in cache:
            # A rank is below its graph's size, so the graphs' starts keep them apart.
            cache[order] = self.starts[self.batch] + self.rank(order)
        return cache[order]

    def ties(self, order: str) -> "Ties":
        """The tied nodes of an order; found at most once."""
        cache: dict = self.__dict__.setdefault("_ties", {})
        if order not in cache:
            cache[order] = Ties.of(self.classes(order))
        return cache[order]


def topology_for(
    layer: nn.Module,
    x: Float[Tensor, "n d"],
    edge_index: Int[Tensor, "2 e"],
    batch: Int[Tensor, "n"] | None,
    batch_size: int | None,
    topology: Topology | None,
) -> Topology:
    """What a layer that was called with these arguments reads: the topology that came, or a new one, checked.

    Args:
        layer: Has `channels`, d; its class names the caller in messages.
        x: Node features, shape (n, d).
        edge_index: Shape (2, e).
        batch: Shape (n,), or None for a single graph.
        batch_size: Number of graphs, where some have no nodes.
        topology: Comes back as it is, and the others are not looked at.
    Raises:
        GraphError: The graph cannot be, x has other channels, or holds whole numbers.
    """
    if topology is not None:
        return topology
    op = type(layer).__name__
    if x.ndim != 2 or x.shape[1] != layer.channels:
        raise GraphError(f"{op}: x has shape {tuple(x.shape)}, expected (n, {layer.channels})")
    if not x.is_floating_point():
        raise GraphError(f"{op}: x has dtype {str(x.dtype).removeprefix('torch.')}, expected floating point")
    return Topology.of(edge_index, batch, len(x), batch_size=batch_size, op=op)


@dataclass(frozen=True)
class Ties:
    """Nodes that share their class with others."""

    nodes: Int[Tensor, "m"]
    """Which."""
    index: Int[Tensor, "m"]
    """Class of each, numbered from 0."""
    counts: Int[Tensor, "k"]
    """Nodes in each class, 2 or more."""

    @classmethod
    def of(cls, classes: Int[Tensor, "n"]) -> "Ties":
        """From the class of every node, shape (n,). Raises nothing."""
        counts = torch.bincount(classes)
        nodes = (counts[classes] > 1).nonzero()[:, 0]
        index = (counts > 1).cumsum(0)[classes[nodes]] - 1
        return cls(nodes, index, counts[counts > 1])

    def mean(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Tied rows replaced by the mean of their class, shape (n, d); all others as they are. Raises nothing."""
        if not len(self.nodes):
            return x
        total = x.new_zeros(len(self.counts), x.shape[1]).index_add(0, self.index, x.index_select(0, self.nodes))
        means = total / self.counts[:, None].to(x.dtype)
        return x.index_copy(0, self.nodes, means.index_select(0, self.index))


def rows_of(sizes: Int[Tensor, "g"]) -> Rows:
    """Packed sequences of these lengths as the mixers take them, shape (g,); empty ones have no row. Raises nothing."""
    full = sizes[sizes > 0]
    reset = torch.zeros(1, int(full.sum()), dtype=torch.bool, device=sizes.device)
    reset[0, full.cumsum(0) - full] = True
    return MirroredRows.of(reset, None)
