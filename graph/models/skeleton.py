"""What all models share: encoders before the layers, a read-out and a head after them, and the checks of the input."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch_geometric.nn.aggr import MultiAggregation
from torch_geometric.nn.resolver import aggregation_resolver

from ssmcore.array_types import Float, Int

from ..checks import GraphError, check_categories, check_features
from ..config import ModelConfig, Schema
from ..encoders import ENCODERS, CategoryEncoder
from ..spectral import laplacian_encoding
from ..structure import return_probabilities
from ..topology import Topology
from .blocks import reset_all


class GraphModel(nn.Module):
    r"""Encoders, blocks, read-out, head.

    Args:
        schema (Schema): What the graphs look like and what is predicted.
        config (ModelConfig): Width, encodings, read-out.
        blocks (sequence of torch.nn.Module): Called as `block(x, edge, topology)`; see :obj:`graph.models.blocks`.

    Shapes:
        - **input:** nodes :math:`(n, features)`, edges :math:`(2, e)`, batch :math:`(n)` in any order,
          edge features :math:`(e, features)`
        - **output:** :math:`(g, out)`, :math:`(n, out)` or :math:`(pairs)`, by the schema's level
    """

    def __init__(self, schema: Schema, config: ModelConfig, blocks: Sequence[nn.Module]):
        super().__init__()
        self.schema, self.config = schema, config
        d = config.hidden
        self.node_encoder = _encoder(schema.node, d)
        reads_edges = any(getattr(block, "takes_edges", False) for block in blocks)
        self.edge_encoder = _encoder(schema.edge if reads_edges else None, d)
        self.encoding = None
        if config.encoding != "none":
            self.encoding = ENCODERS[config.encoding](config.encoding_size, d)
        self.blocks = nn.ModuleList(blocks)
        width = d * (len(blocks) + 1 if config.jumping else 1)
        self.readout = None
        if schema.level == "graph":
            self.readout = MultiAggregation([aggregation_resolver(name) for name in config.readout])
            width *= len(config.readout)
        out = d if schema.level == "link" else schema.out
        self.head = nn.Sequential(nn.Linear(width, d), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(d, out))

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        reset_all(self)

    def forward(
        self,
        x: Tensor,
        edge_index: Int[Tensor, "2 e"],
        batch: Int[Tensor, "n"] | None = None,
        edge_attr: Tensor | None = None,
        *,
        batch_size: int | None = None,
        topology: Topology | None = None,
        pairs: Int[Tensor, "2 m"] | None = None,
    ) -> Float[Tensor, "..."]:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): Node features, shape (n, features).
            edge_index (torch.Tensor): Edges, shape (2, e).
            batch (torch.Tensor, optional): Graph of each node, shape (n,), in any order. (default: :obj:`None`)
            edge_attr (torch.Tensor, optional): Edge features, shape (e, features); must be given if the schema has
                them, and must not if it has not. (default: :obj:`None`)
            batch_size (int, optional): Number of graphs, where some have no nodes. (default: :obj:`None`)
            topology (Topology, optional): The same graphs with orders at hand. (default: :obj:`None`)
            pairs (torch.Tensor, optional): Pairs of nodes to score, shape (2, m), at level link.
                (default: :obj:`None`)
        Returns:
            Scores: (g, out) for graphs, (n, out) for nodes, (m,) for pairs.
        Raises:
            GraphError: The input is no such graph; says which argument, what was expected and what came.
        """
        self._check(x, edge_index, edge_attr)
        if topology is None:
            known = {"features": x, "edge_features": edge_attr}
            topology = Topology.of(edge_index, batch, len(x), batch_size=batch_size, op=type(self).__name__, **known)
        h, edge = self.encode(x, edge_attr, topology)
        states = [h]
        for block in self.blocks:
            h, edge = block(h, edge, topology)
            states.append(h)
        h = torch.cat(states, -1) if self.config.jumping else h
        if self.readout is not None:
            h = self.readout(h, topology.batch, dim_size=topology.num_graphs)
        out = self.head(h)
        if self.schema.level != "link":
            return out
        if pairs is None:
            raise GraphError(f"{type(self).__name__}: pairs is missing, expected (2, m) at level link")
        return (out[pairs[0]] * out[pairs[1]]).sum(-1)

    def encode(self, x: Tensor, edge_attr: Tensor | None, topology: Topology) -> tuple[Tensor, Tensor | None]:
        """Nodes (n, d) and edges (e, d) as the blocks take them."""
        h = self.node_encoder(x if isinstance(self.node_encoder, CategoryEncoder) else self._real(x))
        edge = None
        if self.edge_encoder is not None and edge_attr is not None:
            plain = isinstance(self.edge_encoder, CategoryEncoder)
            edge = self.edge_encoder(edge_attr if plain else self._real(edge_attr))
        if self.encoding is not None:
            given = topology.encoding
            if given is None:
                compute = return_probabilities if self.config.encoding == "rwse" else laplacian_encoding
                given = compute(topology, self.config.encoding_size)
            h = h + self.encoding(given, topology.batch)
        return h, edge

    def _real(self, x: Tensor) -> Tensor:
        return x.to(self.head[0].weight.dtype)

    def _check(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None) -> None:
        name = type(self).__name__
        if (edge_attr is None) != (self.schema.edge is None):
            wanted = "none" if self.schema.edge is None else f"features of edges, {self.schema.edge}"
            raise GraphError(f"{name}: edge_attr is {'missing' if edge_attr is None else 'given'}, expected {wanted}")
        if not len(x):
            raise GraphError(f"{name}: x has shape {tuple(x.shape)}: there are no nodes")
        ends = edge_index.shape[-1]
        for argument, features, shape, rows in (
            ("x", x, self.schema.node, len(x)), ("edge_attr", edge_attr, self.schema.edge, ends)
        ):  # fmt: skip
            if features is None or shape is None:
                continue
            columns = features[:, None] if features.ndim == 1 else features
            if isinstance(shape, int):
                check_features(name, argument, columns, rows, shape, "node" if argument == "x" else "edge")
            else:
                check_categories(name, argument, columns, rows, tuple(shape))


def _encoder(shape: int | tuple[int, ...] | None, channels: int) -> nn.Module | None:
    if shape is None:
        return None
    return nn.Linear(shape, channels) if isinstance(shape, int) else CategoryEncoder(tuple(shape), channels)
