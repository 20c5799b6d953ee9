"""The neighbourhood of a node as a sequence of subgraphs, from far to near (the tokens of GMN).

For each node, each length k = reach..1 and each of several repeats, one token: the subgraph on all nodes that a few
walks of k steps visit, read by a message-passing layer and averaged. The last token is the node itself. A mixer reads
the tokens of a node in both directions; what stands at the last one is the node's new feature.

Shapes: n nodes, d channels, t tokens, m members (a member is a node in a token).
Source: Behrouz & Hashemi 2024, Graph Mamba: towards learning on graphs with state space models, sec. 3.1-3.3.
"""

import torch
from torch import Tensor, nn

from ssmcore import build_mixer
from ssmcore.array_types import Float, Int
from ssmcore.mixers import MixerSpec

from ..topology import Topology, topology_for
from ..walks import sample_walks


class SubgraphTokens(nn.Module):
    r"""Subgraph tokens of every node, encoded, and a mixer over them.

    In training the walks are drawn anew; in evaluation they are the same at each call.

    Args:
        channels (int): Size of each node's features, :obj:`d`.
        mixer (str or dict or Callable): As :meth:`ssmcore.build_mixer` takes it. (default: :obj:`"mamba"`)
        reach (int): Longest walk, in steps; 0 leaves the node itself as its only token. (default: :obj:`3`)
        walks (int): Walks whose nodes make one token. (default: :obj:`4`)
        repeats (int): Tokens of each length. (default: :obj:`1`)
        seed (int): Of the walks in evaluation. (default: :obj:`0`)

    Shapes:
        - **input:** nodes :math:`(n, d)`, edges :math:`(2, e)`, batch :math:`(n)`
        - **output:** nodes :math:`(n, d)`

    Raises:
        ValueError: The mixer is unknown, reach < 0, walks < 1 or repeats < 1.
    """

    def __init__(
        self,
        channels: int,
        mixer: MixerSpec = "mamba",
        *,
        reach: int = 3,
        walks: int = 4,
        repeats: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        if reach < 0 or walks < 1 or repeats < 1:
            raise ValueError(f"SubgraphTokens: reach={reach}, walks={walks}, repeats={repeats}, expected >= 0, 1, 1")
        self.channels, self.spec = channels, {"name": "bidirectional", "mixer": mixer}
        self.reach, self.walks, self.repeats, self.seed = reach, walks, repeats, seed
        self.mixer = build_mixer(self.spec, channels)
        self.encoder = nn.Sequential(nn.Linear(2 * channels, channels), nn.ReLU(), nn.Linear(channels, channels))

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        self.mixer.load_state_dict(build_mixer(self.spec, self.channels).state_dict())
        for layer in (self.encoder[0], self.encoder[2]):
            layer.reset_parameters()

    def forward(
        self,
        x: Float[Tensor, "n d"],
        edge_index: Int[Tensor, "2 e"],
        batch: Int[Tensor, "n"] | None = None,
        *,
        batch_size: int | None = None,
        topology: Topology | None = None,
    ) -> Float[Tensor, "n d"]:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): Node features, shape (n, channels).
            edge_index (torch.Tensor): Edges, shape (2, e).
            batch (torch.Tensor, optional): Graph of each node, shape (n,), in any order. (default: :obj:`None`)
            batch_size (int, optional): Number of graphs, where some have no nodes. (default: :obj:`None`)
            topology (Topology, optional): The same graphs, checked; see :class:`SSMConv`. (default: :obj:`None`)
        Returns:
            Shape (n, channels).
        Raises:
            GraphError: The graph cannot be.
        """
        topology = topology_for(self, x, edge_index, batch, batch_size, topology)
        if not len(x):
            return x
        tokens = [
            self.encode(x, topology, *self.members(topology, length, repeat))
            for length in range(self.reach, 0, -1)
            for repeat in range(self.repeats)
        ]
        y, _ = self.mixer(torch.stack([*tokens, x], 1))
        return y[:, -1]

    def members(self, topology: Topology, length: int, repeat: int) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"]]:
        """Which nodes are in the token of each node, both shape (m,): the token's centre, and the member; sorted."""
        n = topology.num_nodes
        starts = torch.arange(n, device=topology.batch.device).repeat_interleave(self.walks)
        walks = sample_walks(topology, starts, length + 1, self.seed, length, repeat, fresh=self.training)
        pairs = (starts[:, None] * n + walks.nodes).flatten().unique()
        return pairs // n, pairs % n

    def encode(
        self, x: Float[Tensor, "n d"], topology: Topology, centre: Int[Tensor, "m"], node: Int[Tensor, "m"]
    ) -> Float[Tensor, "n d"]:
        """One round of messages inside each token, then its mean; members (m,) sorted, result (n, d)."""
        n = topology.num_nodes
        bounds, targets, _ = topology.neighbours
        counts = bounds[node + 1] - bounds[node]
        source = torch.arange(len(node), device=node.device).repeat_interleave(counts)
        offset = torch.arange(len(source), device=node.device) - (counts.cumsum(0) - counts)[source]
        wanted = centre[source] * n + targets[bounds[node][source] + offset]
        keys = centre * n + node
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        inside = keys[place] == wanted
        features = x.index_select(0, node)
        messages = torch.zeros_like(features).index_add(0, place[inside], features.index_select(0, source[inside]))
        encoded = self.encoder(torch.cat([features, messages], 1))
        total = torch.zeros_like(x).index_add(0, centre, encoded)
        return total / torch.bincount(centre, minlength=n)[:, None]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels}, reach={self.reach}, walks={self.walks})"
