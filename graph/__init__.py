"""Graphs: state spaces over orderings of nodes, packed and never padded, in PyG's dress.

Importing this package costs nothing; each name below is loaded on first use.
"""

from importlib import import_module

_HOME = {
    "GraphError": "checks",
    "GraphModel": "models",
    "HopConv": "layers",
    "ModelConfig": "config",
    "SSMAggregation": "layers",
    "SSMConv": "layers",
    "Schema": "config",
    "SubgraphTokens": "layers",
    "Topology": "topology",
    "TrainConfig": "config",
    "WalkConv": "layers",
    "aggregation_resolver": "layers",
    "create_model": "models",
    "layer_resolver": "layers",
    "load_graphs": "data",
    "visits": "orders",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'graph' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
