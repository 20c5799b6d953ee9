"""The state-space models: which blocks each is made of.

graph_mamba   GPS layout: message passing beside a packed scan over all nodes
gmn           subgraph tokens of every node first, then the same layout
gred          recurrent units over hop shells, nothing else
walker        GPS layout with a scan along random walks in the global place
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
    d, options = config.hidden, {"d_state": config.d_state, "r_min": config.r_min, "dropout": config.dropout}
    blocks = [ResidualBlock(HopConv(d, config.hops, **options), config.dropout) for _ in range(config.layers)]
    return GraphModel(schema, config, blocks)


def walker(schema: Schema, config: ModelConfig) -> GraphModel:
    """Scans along random walks beside message passing; each layer draws its own walks.

    Shapes as GraphModel.
    Raises:
        ValueError: An unknown name or an option that does not fit.
    Source: Chen, Schulz & Borgwardt 2025, Learning long range dependencies on graphs via random walks.
    """
    options = {"length": config.walk_length, "rate": config.walk_rate}
    edge_dim = config.hidden if schema.edge is not None else None
    blocks: list[nn.Module] = []
    for seed in range(config.layers):
        walks = WalkConv(config.hidden, mixer_spec(config), edge_dim=edge_dim, seed=seed, **options)
        last = seed == config.layers - 1
        local = local_of(schema, config)
        blocks.append(GpsBlock(config.hidden, local, walks, config.dropout, edge_dim is not None, last))
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
    last = seed == config.layers - 1
    layout = GatedBlock if config.layout == "gated" else GpsBlock
    return layout(config.hidden, local_of(schema, config), scan, config.dropout, edges, last)
