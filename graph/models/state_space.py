"""The state-space models: which blocks each is made of.

graph_mamba   GPS layout: message passing beside a packed scan over all nodes
gmn           subgraph tokens of every node first, then the same layout
gred          recurrent units over hop shells, nothing else
hop_lru       the same units beside message passing
walker        a scan along random walks beside message passing
"""

from torch import nn

from ssmcore.mixer import config_of
from ssmcore.mixers import registered_mixers
from ssmcore.registry import resolve

from ..config import ModelConfig, Schema
from ..layers import HopConv, SSMConv, SubgraphTokens, WalkConv
from .blocks import GatedBlock, GpsBlock, ResidualBlock, local_of
from .skeleton import GraphModel


def mixer_spec(config: ModelConfig) -> dict:
    """The mixer with those of our options that it has; as `ssmcore.build_mixer` takes it. No shapes.

    Raises:
        ValueError: No such mixer.
    """
    kind = resolve(config.mixer, registered_mixers(), "mixer")
    known = set(vars(config_of(kind, {})))
    options = {"d_state": config.d_state, "expand": config.expand}
    return {"name": config.mixer, **{key: value for key, value in options.items() if key in known}}


def graph_mamba(schema: Schema, config: ModelConfig) -> GraphModel:
    """Graph-Mamba; with order="degree", bidirectional=False and local="gated_gcn" the published one, packed.

    Shapes as GraphModel.
    Raises:
        ValueError: An unknown name or an option that does not fit.
    Source: Wang et al. 2024, Graph-Mamba: towards long-range graph sequence modeling with selective state spaces.
    """
    edges = config.edge_decay and schema.edge is not None
    return GraphModel(schema, config, [_scan_block(schema, config, seed, edges) for seed in range(config.layers)])


def gmn(schema: Schema, config: ModelConfig) -> GraphModel:
    """Graph Mamba Network: neighbourhoods as subgraph tokens, then bidirectional scans over the nodes.

    Shapes as GraphModel.
    Raises:
        ValueError: An unknown name or an option that does not fit.
    Source: Behrouz & Hashemi 2024, Graph Mamba: towards learning on graphs with state space models.
    """
    reach, walks = config.token_reach, config.token_walks
    tokens = SubgraphTokens(config.hidden, mixer_spec(config), reach=reach, walks=walks)
    first = ResidualBlock(tokens, config.dropout)
    return GraphModel(schema, config, [first, *(_scan_block(schema, config, seed) for seed in range(config.layers))])


def gred(schema: Schema, config: ModelConfig) -> GraphModel:
    """GRED: exactly equivariant without an order or an encoding. Edge features are not used.

    Shapes as GraphModel.
    Raises:
        ValueError: An option that does not fit.
    Source: Ding, Orvieto, He & Hofmann 2024, Recurrent distance filtering for graph representation learning.
    """
    return GraphModel(schema, config, [ResidualBlock(_hops(config), config.dropout) for _ in range(config.layers)])


def hop_lru(schema: Schema, config: ModelConfig) -> GraphModel:
    """GRED's layer beside message passing, in either layout: exactly equivariant, and edges may have features.

    Shapes as GraphModel.
    Raises:
        ValueError: An option that does not fit.
    Source: Ours; the layer is GRED's, the layouts are those of `graph_mamba`.
    """
    return GraphModel(schema, config, [_beside(schema, config, _hops(config), i) for i in range(config.layers)])


def walker(schema: Schema, config: ModelConfig) -> GraphModel:
    """Scans along random walks beside message passing; each layer draws its own walks.

    Shapes as GraphModel.
    Raises:
        ValueError: An unknown name or an option that does not fit.
    Source: Chen, Schulz & Borgwardt 2025, Learning long range dependencies on graphs via random walks.
    """
    options = {"length": config.walk_length, "rate": config.walk_rate}
    edge_dim = config.hidden if schema.edge is not None else None
    blocks = []
    for seed in range(config.layers):
        walks = WalkConv(config.hidden, mixer_spec(config), edge_dim=edge_dim, seed=seed, **options)
        blocks.append(_beside(schema, config, walks, seed, edge_dim is not None))
    return GraphModel(schema, config, blocks)


def _scan_block(schema: Schema, config: ModelConfig, seed: int, edges: bool = False) -> GatedBlock | GpsBlock:
    scan = SSMConv(
        config.hidden,
        mixer_spec(config),
        order=config.order,
        bidirectional=config.bidirectional,
        ensemble=config.ensemble,
        buckets=config.buckets,
        edge_dim=config.hidden if edges else None,
        seed=seed,
    )
    return _beside(schema, config, scan, seed, edges)


def _hops(config: ModelConfig) -> HopConv:
    options = {"d_state": config.d_state, "r_min": config.r_min, "dropout": config.dropout}
    return HopConv(config.hidden, config.hops, **options)


def _beside(
    schema: Schema, config: ModelConfig, glob: nn.Module, number: int, edges: bool = False
) -> GatedBlock | GpsBlock:
    """A global layer beside message passing, as layer `number` of a model."""
    layout = GatedBlock if config.layout == "gated" else GpsBlock
    last = number == config.layers - 1
    return layout(config.hidden, local_of(schema, config), glob, config.dropout, edges, last)
