"""Graph networks by name, all of one skeleton."""

from collections.abc import Callable

from ssmcore.registry import resolve

from ..config import ModelConfig, Schema
from .baselines import gps, message_passing, structure_free
from .skeleton import GraphModel
from .state_space import gmn, graph_mamba, gred, hop_lru, walker

MODELS: dict[str, Callable[[Schema, ModelConfig], GraphModel]] = {
    "graph_mamba": graph_mamba,
    "gmn": gmn,
    "gred": gred,
    "hop_lru": hop_lru,
    "walker": walker,
    "gcn": message_passing,
    "gin": message_passing,
    "gated_gcn": message_passing,
    "gps": gps,
    "mlp": structure_free,
}


def create_model(schema: Schema, config: ModelConfig) -> GraphModel:
    """Build a network for graphs of a kind.

    Args:
        schema: What the graphs look like and what is predicted.
        config: The network.
    Returns:
        The model, initialised; called with nodes (n, features), edges (2, e) and batch (n,).
    Raises:
        ValueError: An unknown name, or an option that does not fit.
    """
    return resolve(config.name, MODELS, "graph model")(schema, config)
