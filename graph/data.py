"""A set of graphs with its schema and its parts, from a generator, a local copy or PyG's loaders, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch_geometric.data import Data

from .checks import GraphError, check_categories, check_edges, check_features
from .config import Schema, SyntheticConfig


@dataclass(frozen=True, kw_only=True)
class GraphSet:
    """Graphs and what is asked about them."""

    name: str
    """As it was asked for."""
    schema: Schema
    """What every graph looks like."""
    graphs: list[Data]
    """All of them."""
    parts: dict[str, list[int]] | None
    """Graphs of train, validation and test; None for sets that are scored by folds."""

    @property
    def labels(self) -> np.ndarray:
        """Class of each graph, int64, shape (graphs,), for stratified folds."""
        return np.array([int(g.y.flatten()[0]) for g in self.graphs])

    def describe(self) -> str:
        """One line for a person."""
        nodes = [int(g.num_nodes) for g in self.graphs]
        return (
            f"{self.name}: {len(nodes)} graphs, {np.mean(nodes):.1f} nodes on average (at most {max(nodes)}), "
            f"{self.schema.out} outputs a {self.schema.level}, scored by {self.schema.metric}"
        )


def load_graphs(
    name: str,
    *,
    root: str | Path = "data/graph",
    source: str | Path | None = None,
    synthetic: SyntheticConfig | None = None,
    seed: int = 0,
) -> GraphSet:
    """Load or generate a set of graphs.

    Args:
        name: See `list_sets`.
        root: Folder of prepared sets; PyG downloads into it.
        source: Folder with local copies; these are used where they are.
        synthetic: Options of the generated tasks.
        seed: Of the generated graphs.
    Returns:
        The set, checked.
    Raises:
        GraphError: No such set, a package or file is missing, or a graph cannot be used; says which and why.
    """
    from .loaders import LOADERS
    from .synthetic import TASKS, generate

    if name in TASKS:
        schema, lists = generate(name, synthetic or SyntheticConfig(), seed)
        graphs = [g for part in lists.values() for g in part]
        found = GraphSet(name=name, schema=schema, graphs=graphs, parts=_ranges(lists))
    else:
        if name not in LOADERS:
            raise GraphError(_unknown(name, list_sets()))
        found = LOADERS[name](name, Path(root), None if source is None else Path(source))
    check_graphs(found)
    return found


def list_sets() -> list[str]:
    """Names of data sets and generated tasks. No shapes, raises nothing."""
    from .loaders import LOADERS
    from .synthetic import TASKS

    return [*LOADERS, *TASKS]


def check_graphs(data: GraphSet) -> None:
    """Look at every graph once.

    Raises:
        GraphError: No graphs, or one without nodes, with edges to nowhere, NaN, or other features than the rest.
    """
    if not data.graphs:
        raise GraphError(f"{data.name}: there are no graphs")
    for number, g in enumerate(data.graphs):
        op, n = f"{data.name}, graph {number}", int(g.num_nodes or 0)
        if not n:
            raise GraphError(f"{op}: there are no nodes; leave the graph out")
        check_edges(op, g.edge_index, n)
        e = g.edge_index.shape[1]
        for name, features, shape, rows in (
            ("x", g.x, data.schema.node, n),
            ("edge_attr", g.edge_attr, data.schema.edge, e),
        ):
            if shape is None:
                continue
            if features is None:
                raise GraphError(f"{op}: {name} is missing")
            if isinstance(shape, int):
                check_features(op, name, features, rows, shape, "node" if name == "x" else "edge")
            else:
                check_categories(op, name, features, rows, tuple(shape))


def split_set(name: str, schema: Schema, lists: dict[str, Sequence[Data]]) -> GraphSet:
    """A set from its three parts. No shapes, raises nothing."""
    graphs = [g for part in lists.values() for g in part]
    return GraphSet(name=name, schema=schema, graphs=graphs, parts=_ranges(lists))


def _ranges(lists: dict[str, Sequence[Data]]) -> dict[str, list[int]]:
    start, parts = 0, {}
    for part, graphs in lists.items():
        parts[part] = list(range(start, start + len(graphs)))
        start += len(graphs)
    return parts


def _unknown(name: str, known: list[str]) -> str:
    import difflib

    lower = {k.lower(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(name.lower(), lower, n=3)]
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"unknown data set {name!r}{hint} Known: {', '.join(known)}"
