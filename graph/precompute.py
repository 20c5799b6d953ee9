"""What costs time and never changes, once before training: ranks, encodings and hop lists, stored beside the graphs."""

from collections.abc import Sequence

from torch_geometric.data import Batch, Data
from tqdm import tqdm

from .config import ModelConfig
from .orders import rule_of
from .spectral import laplacian_encoding
from .structure import hop_pairs, return_probabilities
from .topology import Topology

_CHUNK = 200  # graphs at a time
MOST_PAIRS = 20_000_000
"""Hop lists above this size are made batch by batch during training instead."""


def orders_of(config: ModelConfig) -> str | None:
    """The order whose ranks a model reads, or None. No shapes, raises nothing."""
    scans = config.name in ("graph_mamba", "gmn") and rule_of(config.order).drawn is None
    return config.order if scans else None


def precompute(graphs: Sequence[Data], config: ModelConfig, bar: bool | None = None) -> list[Data]:
    """Copies of the graphs with `rank` (n,), `encoding` (n, ...), `hop_index` (2, pairs) and `hop` (pairs,) as needed.

    Args:
        graphs: As they were loaded.
        config: The network that they are for.
        bar: Whether to show progress; None: when a person watches.
    Raises:
        GraphError: The order needs what the graphs do not have.
    """
    order, encoding = orders_of(config), config.encoding
    hops = config.name in ("gred", "hop_lru")
    if hops:
        hops = sum(g.num_nodes * min(g.num_nodes, 2**config.hops) for g in graphs) <= MOST_PAIRS
    if order is None and encoding == "none" and not hops:
        return list(graphs)
    out: list[Data] = []
    with tqdm(
        total=len(graphs), desc="orders and encodings", leave=False, disable=None if bar is None else not bar
    ) as p:
        for first in range(0, len(graphs), _CHUNK):
            part = [g.clone() for g in graphs[first : first + _CHUNK]]
            topology = topology_of(Batch.from_data_list(part))
            found = {}
            if order is not None:
                found["rank"] = topology.rank(order)
            if encoding != "none":
                compute = return_probabilities if encoding == "rwse" else laplacian_encoding
                found["encoding"] = compute(topology, config.encoding_size).float()
            for name, value in found.items():
                for g, piece in zip(part, value.split(topology.sizes.tolist()), strict=True):
                    g[name] = piece.clone()
            if hops:
                _store_hops(part, topology, config.hops)
            out += part
            p.update(len(part))
    return out


def topology_of(batch: Batch, order: str | None = None) -> Topology:
    """What a batch of stored graphs knows about itself.

    Args:
        batch: From `Batch.from_data_list`.
        order: The order that its `rank`, if it has one, belongs to.
    Raises:
        GraphError: The graphs cannot be.
    """
    hops = (batch.hop_index, batch.hop) if "hop_index" in batch else None
    return Topology.of(
        batch.edge_index,
        batch.batch,
        batch.num_nodes,
        batch_size=batch.num_graphs,
        features=batch.x,
        edge_features=batch.edge_attr,
        pos=batch.pos if "pos" in batch else None,
        ranks={order: batch.rank} if order is not None and "rank" in batch else {},
        hops=hops,
        encoding=batch.encoding if "encoding" in batch else None,
    )


def _store_hops(part: list[Data], topology: Topology, most: int) -> None:
    index, distance = hop_pairs(topology, most)
    counts = topology.batch[index[1]].bincount(minlength=len(part)).tolist()
    for g, start, i, d in zip(
        part, topology.starts.tolist(), index.split(counts, 1), distance.split(counts), strict=True
    ):
        g.hop_index, g.hop = i - start, d.clone()  # "index" in the name: PyG shifts it when graphs are put together
