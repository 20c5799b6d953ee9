"""A linear recurrent unit over the shells around a node, from the farthest to the node itself (GRED).

    s[v, k] = sum of x[u] over dist(u, v) = k;   z[v, k] = s + mlp(norm s);   h[v] = sum_k λ^k γ (B z[v, k])
    y[v] = glu(out_proj gelu(Re(C h[v]) + D z[v, 0]))

Only shells that exist are tokens: node v has min(hops, eccentricity + 1) of them, packed as (v, k) in one list.
The sum over k is the last state of the LRU over the shells, far to near, in closed form. No order, no encoding, no
randomness: exactly equivariant.

Code to paper: λ, γ, B, C as there (ssmcore/mixers/lru.py); t tokens, n nodes, d channels, s states.
Source: Ding, Orvieto, He & Hofmann 2024, Recurrent distance filtering for graph representation learning, eq. 5-8.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmcore import create_mixer
from ssmcore.array_types import Float, Int
from ssmcore.blocks import LayerNorm
from ssmcore.mixers.lru import Lru

from ..bags import Bags, bounds_of
from ..structure import hop_pairs
from ..topology import Topology, topology_for


class HopConv(nn.Module):
    r"""The recurrent distance filter of GRED, packed.

    Args:
        channels (int): Size of each node's features, :obj:`d`.
        hops (int): Number of shells, the node itself among them. (default: :obj:`8`)
        d_state (int): Complex states. (default: :obj:`64`)
        r_min (float): Smallest initial :math:`|\lambda|`. (default: :obj:`0.9`)
        r_max (float): Largest initial :math:`|\lambda|`. (default: :obj:`1.0`)
        dropout (float): Inside the map of a shell. (default: :obj:`0.0`)

    Shapes:
        - **input:** nodes :math:`(n, d)`, edges :math:`(2, e)`, batch :math:`(n)`
        - **output:** nodes :math:`(n, d)`

    Raises:
        ValueError: hops < 1, or the radii make no ring in the unit circle.
    """

    def __init__(
        self,
        channels: int,
        hops: int = 8,
        *,
        d_state: int = 64,
        r_min: float = 0.9,
        r_max: float = 1.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if hops < 1:
            raise ValueError(f"HopConv: hops={hops}, expected at least 1")
        self.channels, self.hops = channels, hops
        self.options = {"d_state": d_state, "r_min": r_min, "r_max": r_max}
        self.norm = LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels), nn.GELU(), nn.Dropout(dropout), nn.Linear(channels, channels)
        )
        core = create_mixer("lru", channels, **self.options)
        assert isinstance(core, Lru)
        self.core = core

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        self.norm.reset_parameters()
        for layer in (self.mlp[0], self.mlp[3]):
            layer.reset_parameters()
        self.core.load_state_dict(create_mixer("lru", self.channels, **self.options).state_dict())

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
            edge_index (torch.Tensor): Edges, shape (2, e); each counts in both directions.
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
        shells = shells_of(topology, self.hops)
        sums = shells.members.sum(x)
        return self.core.activate(self.filter(sums + self.mlp(self.norm(sums)), shells))

    def filter(self, z: Float[Tensor, "t d"], shells: "Shells") -> Float[Tensor, "n d"]:
        """Re(C h) + D z[v, 0] in float32 or float64: the LRU's linear part after its last shell.

        Args:
            z: What each shell says, shape (t, d).
            shells: Which they are.
        Returns:
            Shape (n, d), dtype of z.
        """
        with torch.autocast(z.device.type, enabled=False):
            D = self.core.D
            u = z.to(torch.promote_types(D.dtype, torch.float32))
            B, C = self.core.maps()
            _, gamma = self.core.modes(None)
            powers = (torch.arange(self.hops, device=z.device)[:, None] * self.core.exponents()).exp() * gamma
            # The powers of each token are a product with zeros and ones, whose gradient is a product too: that of a
            # gather would scatter. Complex numbers stand as pairs, so that every other product is a real one.
            turn = F.one_hot(shells.distance, self.hops).to(u.dtype) @ torch.view_as_real(powers).flatten(1)
            into = u @ torch.stack([B.real, B.imag], 1).flatten(0, 1).T
            turn, into = (torch.view_as_complex(pairs.unflatten(1, (-1, 2))) for pairs in (turn, into))
            h = shells.tokens.sum(torch.view_as_real(turn * into).flatten(1))
            own = u.index_select(0, shells.tokens.bounds[1:] - 1)  # a node's last token is the node itself
            y = h @ torch.stack([C.real, -C.imag], 2).flatten(1).T + D * own
        return y.to(z.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels}, hops={self.hops})"


@dataclass(frozen=True, eq=False)
class Shells:
    """The shells of a batch of graphs, as t tokens: node by node, and of a node from the farthest to itself."""

    distance: Int[Tensor, "t"]
    """Of each token."""
    members: Bags
    """Nodes of each token."""
    tokens: Bags
    """Tokens of each node."""


def shells_of(topology: Topology, hops: int) -> Shells:
    """The shells that exist; found at most once for each number of hops.

    Args:
        topology: The graphs.
        hops: Number of shells at most.
    """
    cache: dict = topology.__dict__.setdefault("_shells", {})
    if hops not in cache:
        cache[hops] = _find_shells(topology, hops)
    return cache[hops]


def _find_shells(topology: Topology, hops: int) -> Shells:
    (far, centre), distance = topology.hops if topology.hops is not None else hop_pairs(topology, hops)
    near = distance < hops
    if not bool(near.all()):
        far, centre, distance = far[near], centre[near], distance[near]
    fresh = torch.ones_like(centre, dtype=torch.bool)
    fresh[1:] = (centre[1:] != centre[:-1]) | (distance[1:] != distance[:-1])
    first = fresh.nonzero()[:, 0]
    node = centre[first]
    members = bounds_of(torch.diff(first, append=first.new_tensor([len(centre)])))
    tokens = bounds_of(torch.bincount(node, minlength=topology.num_nodes))
    # Distances are symmetric: the shells that hold u are those at distance k around each node v that u has at k, and
    # the token of v at k stands k before v's last.
    inside = tokens[1:][far] - 1 - distance
    of_node = bounds_of(torch.bincount(centre, minlength=topology.num_nodes))
    return Shells(distance[first], Bags(far, members, inside, of_node), Bags.consecutive(node, tokens))
