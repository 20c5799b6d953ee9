"""Gated graph convolution that carries edge features along: the local half of Graph-Mamba."""

import torch
from torch import Tensor, nn
from torch_geometric.nn.norm import BatchNorm

from ssmcore.array_types import Float, Int

_EPS = 1e-6


class GatedGCNConv(nn.Module):
    r"""Residual gated graph convolution with edge features.

    .. math::
        e'_{uv} = A x_v + B x_u + C e_{uv}, \quad
        x'_v = U x_v + \frac{\sum_u \sigma(e'_{uv}) \odot V x_u}{\sum_u \sigma(e'_{uv}) + \epsilon}

    followed by batch norm, ReLU, dropout and a residual, for nodes and for edges. From Bresson & Laurent 2018,
    *Residual gated graph convnets*, in the form of Dwivedi et al. 2023, *Benchmarking graph neural networks*.

    Args:
        channels (int): Size of node and edge features, :obj:`d`.
        dropout (float): On both branches. (default: :obj:`0.0`)
        edges_out (bool): Give new edge features back; without, those that came, as the last layer may.
            (default: :obj:`True`)

    Shapes:
        - **input:** nodes :math:`(n, d)`, edges :math:`(2, e)`, edge features :math:`(e, d)`
        - **output:** nodes :math:`(n, d)`, edge features :math:`(e, d)`
    """

    def __init__(self, channels: int, dropout: float = 0.0, edges_out: bool = True):
        super().__init__()
        self.channels = channels
        self.own = nn.Linear(channels, 4 * channels)  # A, B, U, V at once
        self.edge = nn.Linear(channels, channels)
        self.node_norm = BatchNorm(channels, allow_single_element=True)
        self.edge_norm = BatchNorm(channels, allow_single_element=True) if edges_out else None
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        for module in self.children():
            if not isinstance(module, nn.Dropout):
                module.reset_parameters()

    def forward(
        self, x: Float[Tensor, "n d"], edge_index: Int[Tensor, "2 e"], edge_attr: Float[Tensor, "e d"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "e d"]]:
        r"""Runs the forward pass: nodes, shape (n, d), and edge features, shape (e, d)."""
        source, target = edge_index
        a, b, u, v = self.own(x).chunk(4, dim=-1)
        e = a.index_select(0, target) + b.index_select(0, source) + self.edge(edge_attr)
        gate = e.sigmoid()
        weighted = torch.zeros_like(x).index_add(0, target, gate * v.index_select(0, source))
        total = torch.zeros_like(x).index_add(0, target, gate)
        y = x + self.dropout(self.node_norm(u + weighted / (total + _EPS)).relu())
        return y, edge_attr if self.edge_norm is None else edge_attr + self.dropout(self.edge_norm(e).relu())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels})"
