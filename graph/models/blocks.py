"""What stands in a layer of every model: message passing of one signature, and the GPS layout around it.

A block is called as `block(x, edge, topology)` with nodes x (n, d), edge features (e, d) or None, and gives both back.
"""

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, GINConv, GINEConv
from torch_geometric.nn.norm import BatchNorm

from ssmcore.array_types import Float
from ssmcore.registry import resolve

from ..config import ModelConfig, Schema
from ..layers import GatedGCNConv
from ..topology import Topology


def make_norm(channels: int) -> BatchNorm:
    """Batch norm over nodes, (n, channels), that takes a single node as it comes. Raises nothing."""
    return BatchNorm(channels, allow_single_element=True)


def reset_all(module: nn.Module) -> None:
    """Reset the parameters of every direct child that can, and of the children of those that cannot.

    Raises nothing; takes no arrays.
    """
    for child in module.children():
        reset = getattr(child, "reset_parameters", None)
        if reset is not None:
            reset()
        else:
            reset_all(child)


def _mlp(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, channels), make_norm(channels), nn.ReLU(), nn.Linear(channels, channels))


def local_of(schema: Schema, config: ModelConfig) -> str:
    """The message passing that a model gets: GIN that reads edges, where they have features. No shapes."""
    return "gine" if config.local == "gin" and schema.edge is not None else config.local


CONVS = {
    "gin": lambda d: GINConv(_mlp(d), train_eps=True),
    "gine": lambda d: GINEConv(_mlp(d), train_eps=True, edge_dim=d),
    "gcn": lambda d: GCNConv(d, d),
}


class MessageBlock(nn.Module):
    r"""One round of message passing: convolution, batch norm, ReLU, dropout, (n, d) to (n, d).

    Args:
        channels (int): Size of nodes and edges.
        local (str): gin, gine, gcn or gated_gcn.
        dropout (float): On the result.
        residual (bool): Add the input. (default: :obj:`False`)
        last (bool): No layer follows that would read new edge features. (default: :obj:`False`)

    Raises:
        ValueError: Unknown convolution.
    """

    def __init__(self, channels: int, local: str, dropout: float, residual: bool = False, last: bool = False):
        super().__init__()
        self.gated = local == "gated_gcn"
        self.takes_edges = local in ("gine", "gated_gcn")
        self.residual = residual
        if self.gated:
            self.conv: nn.Module = GatedGCNConv(channels, dropout, edges_out=not last)
        else:
            self.conv = resolve(local, CONVS, "message passing")(channels)
        self.norm = nn.Identity() if self.gated else make_norm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "n d"], edge: Tensor | None, topology: Topology) -> tuple[Tensor, Tensor | None]:
        """Nodes (n, d) and edges (e, d); message passing that wants edges gets zeros where there are none."""
        if self.takes_edges and edge is None:
            edge = x.new_zeros(topology.edge_index.shape[1], x.shape[1])
        if self.gated:
            return self.conv(x, topology.edge_index, edge)
        y = self.conv(x, topology.edge_index, edge) if self.takes_edges else self.conv(x, topology.edge_index)
        y = self.dropout(self.norm(y).relu())
        return (x + y if self.residual else y), edge


class GpsBlock(nn.Module):
    r"""Message passing and a global layer side by side, then an MLP: the layout of GPS and Graph-Mamba.

    .. math::
        h = \mathrm{BN}(\mathrm{local}(x, e)) + \mathrm{BN}(x + \mathrm{drop}(\mathrm{global}(x))), \quad
        y = \mathrm{BN}(h + \mathrm{mlp}(h))

    Args:
        channels (int): Size of nodes and edges.
        local (str): gin, gine, gcn, gated_gcn or none.
        glob (torch.nn.Module): Called as `glob(x, edge_index, batch, edge_attr?, topology=...)`.
        dropout (float): Everywhere.
        edge_to_global (bool): Whether the global layer takes edge features. (default: :obj:`False`)
        last (bool): No layer follows. (default: :obj:`False`)

    From Rampášek et al. 2022, *Recipe for a general, powerful, scalable graph transformer*; Wang et al. 2024,
    *Graph-Mamba*, sec. 4.
    """

    def __init__(
        self,
        channels: int,
        local: str,
        glob: nn.Module,
        dropout: float,
        edge_to_global: bool = False,
        last: bool = False,
    ):
        super().__init__()
        self.local = None if local == "none" else MessageBlock(channels, local, dropout, residual=True, last=last)
        self.takes_edges = edge_to_global or (self.local is not None and self.local.takes_edges)
        self.glob, self.edge_to_global = glob, edge_to_global
        self.norm_local = make_norm(channels) if self.local is not None else None
        self.norm_global, self.norm_out = make_norm(channels), make_norm(channels)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * channels, channels),
            nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "n d"], edge: Tensor | None, topology: Topology) -> tuple[Tensor, Tensor | None]:
        """Nodes (n, d) and edges (e, d) or None."""
        extra = {"edge_attr": edge} if self.edge_to_global else {}
        seen = self.glob(x, topology.edge_index, topology.batch, topology=topology, **extra)
        h = self.norm_global(x + self.dropout(seen))
        if self.local is not None and self.norm_local is not None:
            y, edge = self.local(x, edge, topology)
            h = h + self.norm_local(y)
        return self.norm_out(h + self.mlp(h)), edge


class GatedBlock(nn.Module):
    r"""Message passing, and a global layer that has to earn its place: its factor starts at 0.

    .. math::
        y = \mathrm{drop}(\mathrm{relu}(\mathrm{BN}(\mathrm{local}(x, e)))) + g \odot \mathrm{BN}(\mathrm{global}(x))

    Args:
        channels (int): Size of nodes and edges.
        local (str): gin, gine, gcn or gated_gcn.
        glob (torch.nn.Module): As in :class:`GpsBlock`.
        dropout (float): On the messages.
        edge_to_global (bool): Whether the global layer takes edge features. (default: :obj:`False`)
        last (bool): No layer follows. (default: :obj:`False`)

    Raises:
        ValueError: Unknown convolution, or none.
    """

    def __init__(
        self,
        channels: int,
        local: str,
        glob: nn.Module,
        dropout: float,
        edge_to_global: bool = False,
        last: bool = False,
    ):
        super().__init__()
        self.local = MessageBlock(channels, local, dropout, last=last)
        self.takes_edges = edge_to_global or self.local.takes_edges
        self.glob, self.edge_to_global = glob, edge_to_global
        self.norm = make_norm(channels)
        self.gate = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        reset_all(self)
        nn.init.zeros_(self.gate)

    def forward(self, x: Float[Tensor, "n d"], edge: Tensor | None, topology: Topology) -> tuple[Tensor, Tensor | None]:
        """Nodes (n, d) and edges (e, d) or None."""
        extra = {"edge_attr": edge} if self.edge_to_global else {}
        seen = self.norm(self.glob(x, topology.edge_index, topology.batch, topology=topology, **extra))
        y, edge = self.local(x, edge, topology)
        return y + self.gate * seen, edge


class ResidualBlock(nn.Module):
    r"""x + dropout(layer(x)): GRED's layout, (n, d) to (n, d).

    Args:
        layer (torch.nn.Module): Called as `layer(x, edge_index, batch, topology=...)`.
        dropout (float): On its result.
    """

    def __init__(self, layer: nn.Module, dropout: float):
        super().__init__()
        self.layer, self.dropout = layer, nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "n d"], edge: Tensor | None, topology: Topology) -> tuple[Tensor, Tensor | None]:
        """Nodes (n, d); edges pass by."""
        return x + self.dropout(self.layer(x, topology.edge_index, topology.batch, topology=topology)), edge


class NodeBlock(nn.Module):
    r"""A map of each node by itself, (n, d) to (n, d): the structure-free baseline's layer.

    Args:
        channels (int): Size of a node.
        dropout (float): On the result.
    """

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.map, self.norm, self.dropout = nn.Linear(channels, channels), make_norm(channels), nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "n d"], edge: Tensor | None, topology: Topology) -> tuple[Tensor, Tensor | None]:
        """Nodes (n, d); edges and structure are not looked at."""
        return self.dropout(self.norm(self.map(x)).relu()), edge


def sorted_by_graph(topology: Topology) -> tuple[Tensor, Tensor]:
    """The nodes sorted by graph, and the inverse of that order; shape (n,) both."""
    order = torch.argsort(topology.batch, stable=True)
    return order, torch.argsort(order)
