"""Generated tasks whose answer is known: what a graph network can and cannot carry from node to node.

Each generator makes one graph with its answer from a random generator and the task's difficulty; `TASKS` holds them
with their schema. Node answers of -1 (classes) or NaN (numbers) are not asked for.

A global layer passes a message over any distance whatever the graph, so ring and graph transfer say little about
structure by themselves; k-hop copy, shortest paths and the tree say more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from .checks import GraphError
from .config import Schema, SyntheticConfig

Rng = np.random.Generator


def tree_neighbors_match(rng: Rng, config: SyntheticConfig) -> Data:
    """A binary tree; the root holds a key, every leaf a key and a value; answer: the value beside the root's key.

    x: (key, value), whole numbers, 0 where a node has none, shape (n, 2). y: the root's class.
    Source: Alon & Yahav 2021, On the bottleneck of graph neural networks, sec. 4.1.
    """
    depth = config.distance
    leaves = 2**depth
    n = 2 * leaves - 1
    child = np.arange(1, n)
    keys, values, asked = rng.permutation(leaves) + 1, rng.permutation(leaves) + 1, rng.integers(leaves)
    x = np.zeros((n, 2), dtype=np.int64)
    x[leaves - 1 :, 0], x[leaves - 1 :, 1] = keys, values
    x[0, 0] = keys[asked]
    y = np.full(n, -1)
    y[0] = values[asked] - 1
    return _data(np.stack([child, (child - 1) // 2]), x, y)


def ring_transfer(rng: Rng, config: SyntheticConfig) -> Data:
    """A ring; the node opposite to the source holds one of five classes; the source must tell it.

    x: five classes and a mark of the source, shape (n, 6).
    Source: Bodnar et al. 2021, Weisfeiler and Lehman go cellular (CIN), sec. 5.
    """
    n, kind = 2 * config.distance, int(rng.integers(5))
    x = np.zeros((n, 6), dtype=np.float32)
    x[0, 5] = x[n // 2, kind] = 1
    y = np.full(n, -1)
    y[0] = kind
    return _data(_ring(n), x, y)


def graph_transfer(rng: Rng, config: SyntheticConfig) -> Data:
    """A line whose ends, `distance` apart, hold 1 and 0 and must swap them; nodes between keep random numbers.

    x: value, and marks of the ends, shape (n, 2).
    Source: Gravina et al. 2025, On oversquashing in graph neural networks through the lens of dynamical systems (SWAN).
    """
    n = config.distance + 1
    value = rng.random(n).astype(np.float32)
    value[0], value[-1] = 1, 0
    y = value.copy()
    y[0], y[-1] = 0, 1
    ends = np.zeros(n, dtype=np.float32)
    ends[[0, -1]] = 1
    return _data(np.stack([np.arange(n - 1), np.arange(1, n)]), np.stack([value, ends], 1), y[:, None])


def khop_copy(rng: Rng, config: SyntheticConfig) -> Data:
    """A random tree and a few more edges; every node holds a bit; answer: the sum mod 2 of those at distance k exactly.

    x: the bit, one-hot, shape (n, 2); nodes with nobody at that distance are not asked.
    """
    g = nx.random_labeled_tree(config.size, seed=int(rng.integers(2**31)))
    for _ in range(config.size // 10):
        g.add_edge(*rng.choice(config.size, 2, replace=False).tolist())
    bit = rng.integers(2, size=config.size)
    lengths = nx.floyd_warshall_numpy(g, nodelist=range(config.size))
    there = lengths == config.distance
    y = np.where(there.any(1), there @ bit % 2, -1)
    return _data(_edges(g), np.eye(2, dtype=np.float32)[bit], y.astype(np.int64))


def shortest_paths(rng: Rng, config: SyntheticConfig) -> Data:
    """Distance of every node from a marked source, in a random graph of one of several kinds. x: the mark, (n, 1).

    Source: Gravina et al. 2023, Anti-symmetric DGN, sec. 4 (graph property prediction).
    """
    g = _random_graph(rng, config.size)
    source = int(rng.integers(len(g)))
    x = np.zeros((len(g), 1), dtype=np.float32)
    x[source] = 1
    lengths = nx.single_source_shortest_path_length(g, source)
    return _data(_edges(g), x, np.array([[lengths[v]] for v in range(len(g))], dtype=np.float32))


def eccentricity(rng: Rng, config: SyntheticConfig) -> Data:
    """Distance of every node from the node farthest from it. x: noise, (n, 1). Source: as shortest_paths."""
    g = _random_graph(rng, config.size)
    far = nx.eccentricity(g)
    y = np.array([[far[v]] for v in range(len(g))], dtype=np.float32)
    return _data(_edges(g), rng.random((len(g), 1)).astype(np.float32), y)


def diameter(rng: Rng, config: SyntheticConfig) -> Data:
    """Longest of all shortest paths of a graph. x: noise, (n, 1). Source: as shortest_paths."""
    g = _random_graph(rng, config.size)
    y = np.array([[nx.diameter(g)]], dtype=np.float32)
    return _data(_edges(g), rng.random((len(g), 1)).astype(np.float32), y)


def circular_skip_links(rng: Rng, config: SyntheticConfig) -> Data:
    """A ring of 41 nodes with a second ring of skips; class: the length of a skip. x: ones, (41, 1), relabelled.

    Source: Murphy et al. 2019, Relational pooling for graph representations, sec. 4.1.
    """
    skips = (2, 3, 4, 5, 6, 9, 11, 12, 13, 16)
    kind, n = int(rng.integers(len(skips))), 41
    new = rng.permutation(n)
    v = np.arange(n)
    edges = np.concatenate([_ring(n), np.stack([v, (v + skips[kind]) % n])], 1)
    return _data(new[edges], np.ones((n, 1), dtype=np.float32), np.array([kind]))


def cycle_parity(rng: Rng, config: SyntheticConfig) -> Data:
    """One ring of even or odd length; class: its parity. x: ones, (n, 1)."""
    n = int(rng.integers(4, 2 * config.distance + 5))
    return _data(_ring(n), np.ones((n, 1), dtype=np.float32), np.array([n % 2]))


def two_cycles(rng: Rng, config: SyntheticConfig) -> Data:
    """One ring of 2n nodes or two of n; colour refinement sees no difference. x: ones, (2n, 1)."""
    n, two = int(rng.integers(3, config.distance + 4)), int(rng.integers(2))
    edges = np.concatenate([_ring(n), n + _ring(n)], 1) if two else _ring(2 * n)
    return _data(edges, np.ones((2 * n, 1), dtype=np.float32), np.array([two]))


@dataclass(frozen=True)
class Task:
    """A generated task."""

    make: Callable[[Rng, SyntheticConfig], Data]
    """One graph with its answer."""
    schema: Callable[[SyntheticConfig], Schema]
    """What the graphs look like at a difficulty."""


def _tree_schema(config: SyntheticConfig) -> Schema:
    values = 2**config.distance + 1
    return Schema(node=(values, values), out=values - 1, level="node")


_NUMBERS = {"loss": "mse", "metric": "log10_mse"}
TASKS: dict[str, Task] = {
    "tree_neighbors_match": Task(tree_neighbors_match, _tree_schema),
    "ring_transfer": Task(ring_transfer, lambda c: Schema(node=6, out=5, level="node")),
    "graph_transfer": Task(graph_transfer, lambda c: Schema(node=2, out=1, level="node", **_NUMBERS)),
    "khop_copy": Task(khop_copy, lambda c: Schema(node=2, out=2, level="node")),
    "shortest_paths": Task(shortest_paths, lambda c: Schema(node=1, out=1, level="node", **_NUMBERS)),
    "eccentricity": Task(eccentricity, lambda c: Schema(node=1, out=1, level="node", **_NUMBERS)),
    "diameter": Task(diameter, lambda c: Schema(node=1, out=1, **_NUMBERS)),
    "csl": Task(circular_skip_links, lambda c: Schema(node=1, out=10)),
    "cycle_parity": Task(cycle_parity, lambda c: Schema(node=1, out=2)),
    "two_cycles": Task(two_cycles, lambda c: Schema(node=1, out=2)),
}


def generate(name: str, config: SyntheticConfig, seed: int) -> tuple[Schema, dict[str, list[Data]]]:
    """Graphs of a task in three parts, each from a generator of its own.

    Args:
        name: Key of TASKS.
        config: How many, and how hard.
        seed: Of everything.
    Returns:
        The schema; train, validation and test graphs.
    Raises:
        GraphError: Numbers that make no graph.
    """
    if config.graphs < 4 or config.distance < 1 or config.size < 5:
        sizes = f"graphs={config.graphs}, distance={config.distance}, size={config.size}"
        raise GraphError(f"{name}: {sizes}, expected graphs >= 4, distance >= 1 and size >= 5")
    counts = {"train": config.graphs, "validation": config.graphs // 4, "test": config.graphs // 4}
    parts = {}
    for number, (part, count) in enumerate(counts.items()):
        rng = np.random.default_rng((seed, number))
        parts[part] = [TASKS[name].make(rng, config) for _ in range(count)]
    return TASKS[name].schema(config), parts


def _data(edges: np.ndarray, x: np.ndarray, y: np.ndarray) -> Data:
    """An undirected graph from one direction of its edges."""
    one_way = torch.from_numpy(edges.astype(np.int64))
    return Data(x=torch.from_numpy(x), edge_index=torch.cat([one_way, one_way.flip(0)], 1), y=torch.from_numpy(y))


def _ring(n: int) -> np.ndarray:
    v = np.arange(n)
    return np.stack([v, (v + 1) % n])


def _edges(g: nx.Graph) -> np.ndarray:
    return np.array(list(g.edges), dtype=np.int64).reshape(-1, 2).T


def _random_graph(rng: Rng, size: int) -> nx.Graph:
    """A connected graph of about `size` nodes: a tree, a lattice, a caterpillar, a line of rings, or a random one."""
    seed, n = int(rng.integers(2**31)), int(rng.integers(max(5, size - 5), size + 6))
    kinds: list[Callable[[], nx.Graph]] = [
        lambda: nx.random_labeled_tree(n, seed=seed),
        lambda: nx.barabasi_albert_graph(n, 2, seed=seed),
        lambda: nx.convert_node_labels_to_integers(nx.grid_2d_graph(round(math.sqrt(n)), round(n / math.sqrt(n)))),
        lambda: nx.convert_node_labels_to_integers(nx.ladder_graph(n // 2)),
        lambda: nx.connected_watts_strogatz_graph(n, 4, 0.1, seed=seed),
    ]
    g = nx.Graph(kinds[int(rng.integers(len(kinds)))]())
    new = rng.permutation(len(g)).tolist()
    return nx.relabel_nodes(g, dict(enumerate(new)))


def answered(y: Tensor) -> Tensor:
    """Where an answer is asked for, bool, shape of y. Raises nothing."""
    return ~y.isnan() if y.is_floating_point() else y >= 0
