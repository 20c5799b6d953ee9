"""A mixer along random walks, averaged back to the nodes that they visit (in the manner of NeuralWalker)."""

import torch
from torch import Tensor, nn

from ssmcore import build_mixer
from ssmcore.array_types import Float, Int
from ssmcore.mixers import MixerSpec

from ..checks import GraphError
from ..topology import Topology, topology_for
from ..walks import Walks, sample_walks, walk_codes


class WalkConv(nn.Module):
    r"""Walks as sequences: node features, features of the edges between, and who came before; a mixer both ways; means.

    In training a node starts a walk with probability :obj:`rate`, drawn anew; in evaluation every node starts one, the
    same at each call. A node that no walk visits gets zeros.

    Args:
        channels (int): Size of each node's features, :obj:`d`.
        mixer (str or dict or Callable): As :meth:`ssmcore.build_mixer` takes it. (default: :obj:`"mamba"`)
        length (int): Nodes on a walk. (default: :obj:`20`)
        rate (float): Share of nodes that start a walk in training. (default: :obj:`0.5`)
        window (int): How many steps back a node of a walk is compared with. (default: :obj:`4`)
        edge_dim (int, optional): Size of edge features. (default: :obj:`None`)
        seed (int): Of the walks in evaluation. (default: :obj:`0`)

    Shapes:
        - **input:** nodes :math:`(n, d)`, edges :math:`(2, e)`, batch :math:`(n)`, edge features :math:`(e, edge\_dim)`
        - **output:** nodes :math:`(n, d)`

    From Chen et al. 2025, *Learning long range dependencies on graphs via random walks*.

    Raises:
        ValueError: The mixer is unknown, length < 1, window < 0, or not 0 < rate <= 1.
    """

    def __init__(
        self,
        channels: int,
        mixer: MixerSpec = "mamba",
        *,
        length: int = 20,
        rate: float = 0.5,
        window: int = 4,
        edge_dim: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if length < 1 or window < 0 or not 0 < rate <= 1:
            raise ValueError(f"WalkConv: length={length}, window={window}, rate={rate}, expected >= 1, >= 0, in (0, 1]")
        self.channels, self.spec = channels, {"name": "bidirectional", "mixer": mixer}
        self.length, self.rate, self.window, self.seed = length, rate, window, seed
        self.mixer = build_mixer(self.spec, channels)
        self.code = nn.Linear(2 * window - 1, channels, bias=False) if window else None
        self.edge = nn.Linear(edge_dim, channels, bias=False) if edge_dim is not None else None

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        self.mixer.load_state_dict(build_mixer(self.spec, self.channels).state_dict())
        for layer in (self.code, self.edge):
            if layer is not None:
                layer.reset_parameters()

    def forward(
        self,
        x: Float[Tensor, "n d"],
        edge_index: Int[Tensor, "2 e"],
        batch: Int[Tensor, "n"] | None = None,
        edge_attr: Float[Tensor, "e c"] | None = None,
        *,
        batch_size: int | None = None,
        topology: Topology | None = None,
        walks: Walks | None = None,
    ) -> Float[Tensor, "n d"]:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): Node features, shape (n, channels).
            edge_index (torch.Tensor): Edges, shape (2, e).
            batch (torch.Tensor, optional): Graph of each node, shape (n,), in any order. (default: :obj:`None`)
            edge_attr (torch.Tensor, optional): Edge features, shape (e, edge_dim). (default: :obj:`None`)
            batch_size (int, optional): Number of graphs, where some have no nodes. (default: :obj:`None`)
            topology (Topology, optional): The same graphs, checked; see :class:`SSMConv`. (default: :obj:`None`)
            walks (Walks, optional): Walks on these graphs, in place of new ones. (default: :obj:`None`)
        Returns:
            Shape (n, channels).
        Raises:
            GraphError: The graph cannot be, or edge features are missing.
        """
        topology = topology_for(self, x, edge_index, batch, batch_size, topology)
        walks = self.sample(topology) if walks is None else walks
        nodes = walks.nodes.flatten()
        if not len(nodes):
            return torch.zeros_like(x)
        tokens = x.index_select(0, nodes).view(*walks.nodes.shape, self.channels)
        if self.code is not None:
            tokens = tokens + self.code(walk_codes(topology, walks, self.window).to(x.dtype))
        if self.edge is not None:
            if edge_attr is None:
                raise GraphError(f"WalkConv: edge_attr is missing, expected (e, {self.edge.in_features})")
            along = torch.cat([self.edge(edge_attr), x.new_zeros(1, self.channels)])
            tokens = tokens + along[walks.edges]  # -1 is the row of zeros
        y, _ = self.mixer(tokens)
        total = torch.zeros_like(x).index_add(0, nodes, y.flatten(0, 1))
        return total / torch.bincount(nodes, minlength=len(x)).clamp_min(1)[:, None]

    def sample(self, topology: Topology) -> Walks:
        """Walks for one forward pass of this layer, or of several that share them."""
        starts = torch.arange(topology.num_nodes, device=topology.batch.device)
        if self.training and self.rate < 1:
            starts = starts[torch.rand(len(starts), device=starts.device) < self.rate]
        return sample_walks(topology, starts, self.length, self.seed, fresh=self.training)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels}, length={self.length}, window={self.window})"
