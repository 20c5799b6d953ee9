"""Layers in PyG's dress: `forward(x, edge_index, batch)`, packed, `reset_parameters`, and a resolver."""

from typing import Any

from torch import nn
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.resolver import aggregation_resolver as _pygs

from ssmcore.registry import resolve

from .aggregation import SSMAggregation
from .gated_gcn import GatedGCNConv
from .hop_conv import HopConv
from .ssm_conv import SSMConv
from .subgraph_tokens import SubgraphTokens
from .walk_conv import WalkConv

LAYERS: dict[str, type[nn.Module]] = {
    "ssm": SSMConv,
    "hops": HopConv,
    "walks": WalkConv,
    "subgraph_tokens": SubgraphTokens,
    "gated_gcn": GatedGCNConv,
    "ssm_aggregation": SSMAggregation,
}


def layer_resolver(query: str | nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """A layer by its key in LAYERS or its class name, as PyG's resolvers do; a module comes back as it is. No shapes.

    Args:
        query: Name, or module.
        args: For the constructor.
        kwargs: For the constructor.
    Raises:
        ValueError: No such layer; gives the near misses.
    """
    if isinstance(query, nn.Module):
        return query
    by_class = {kind.__name__: kind for kind in LAYERS.values()}
    return resolve(query, {**LAYERS, **by_class}, "graph layer")(*args, **kwargs)


def aggregation_resolver(query: str | Aggregation, *args: Any, **kwargs: Any) -> nn.Module:
    """PyG's resolver of aggregations, which also knows "ssm" and "SSMAggregation". No shapes.

    Args:
        query: Name, or aggregation, which comes back as it is.
        args: For the constructor.
        kwargs: For the constructor.
    Raises:
        ValueError: No such aggregation; PyG's message lists its own.
    """
    if isinstance(query, str) and query.lower() in ("ssm", "ssmaggregation"):
        return SSMAggregation(*args, **kwargs)
    return _pygs(query, *args, **kwargs)
