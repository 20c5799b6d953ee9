"""What every number of a state-space model stands beside, under the same trainer."""

from torch import Tensor, nn
from torch_geometric.nn import GPSConv

from ssmcore.array_types import Float

from ..config import ModelConfig, Schema
from ..topology import Topology
from .blocks import CONVS, MessageBlock, NodeBlock, local_of, sorted_by_graph
from .skeleton import GraphModel


class AttentionBlock(nn.Module):
    r"""PyG's GPSConv, softmax attention on padded batches, as a block; nodes may stand in any order.

    Args:
        channels (int): Size of nodes and edges.
        local (str): gin, gine, gcn or none.
        heads (int): Attention heads.
        dropout (float): Everywhere.

    Raises:
        ValueError: GPSConv cannot take the convolution (gated_gcn).
    """

    def __init__(self, channels: int, local: str, heads: int, dropout: float):
        super().__init__()
        if local not in (*CONVS, "none"):
            raise ValueError(f"AttentionBlock: local={local!r}, expected one of {', '.join(CONVS)} or none")
        conv = None if local == "none" else CONVS[local](channels)
        norms = {"norm": "batch_norm", "norm_kwargs": {"allow_single_element": True}}
        self.takes_edges = local == "gine"
        self.conv = GPSConv(channels, conv, heads, dropout, **norms)

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module; GPSConv by itself forgets one of attention's maps."""
        self.conv.reset_parameters()
        self.conv.attn.out_proj.reset_parameters()

    def forward(self, x: Float[Tensor, "n d"], edge: Tensor | None, topology: Topology) -> tuple[Tensor, Tensor | None]:
        """Nodes (n, d) and edges (e, d) or None."""
        order, back = sorted_by_graph(topology)
        if self.takes_edges and edge is None:
            edge = x.new_zeros(topology.edge_index.shape[1], x.shape[1])
        extra = {"edge_attr": edge} if self.takes_edges else {}
        y = self.conv(x[order], back[topology.edge_index], topology.batch[order], **extra)
        return y[back], edge


def message_passing(schema: Schema, config: ModelConfig) -> GraphModel:
    """GCN, GIN (GINE where edges have features) or GatedGCN by config.name; shapes as GraphModel. Raises nothing.

    Source: Kipf & Welling 2017; Xu et al. 2019; Hu et al. 2020 (GINE); Bresson & Laurent 2018.
    """
    local = "gine" if config.name == "gin" and schema.edge is not None else config.name
    last = config.layers - 1
    blocks = [MessageBlock(config.hidden, local, config.dropout, last=i == last) for i in range(config.layers)]
    return GraphModel(schema, config, blocks)


def gps(schema: Schema, config: ModelConfig) -> GraphModel:
    """GPS with softmax attention; shapes as GraphModel.

    Raises:
        ValueError: GPSConv cannot take the convolution.
    Source: Rampášek et al. 2022, Recipe for a general, powerful, scalable graph transformer.
    """
    local = local_of(schema, config)
    blocks = [AttentionBlock(config.hidden, local, config.heads, config.dropout) for _ in range(config.layers)]
    return GraphModel(schema, config, blocks)


def structure_free(schema: Schema, config: ModelConfig) -> GraphModel:
    """Nodes by themselves, then the read-out: what a graph's structure has to beat; shapes as GraphModel.

    Raises nothing.
    Source: Errica et al. 2020, A fair comparison of graph neural networks for graph classification, sec. 4.2.
    """
    return GraphModel(schema, config, [NodeBlock(config.hidden, config.dropout) for _ in range(config.layers)])
