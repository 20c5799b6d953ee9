"""The global layer: a sequence mixer over the nodes of each graph, packed, in an order of one's choice.

    perm = nodes by graph, then by order        y[perm] = mixer(x[perm]), the state starting anew at every graph

The graphs of a batch stand one after the other in one sequence; nothing is padded, and nothing crosses a border, in
either direction. Orders that average ties read x and give y as means over tied nodes: then relabelling the nodes
relabels the output and changes nothing else, whatever the features (`graph.orders`).
"""

import torch
from torch import Tensor, nn

from ssmcore import build_mixer
from ssmcore.array_types import Float, Int
from ssmcore.mixer import Context, Mixer
from ssmcore.mixers import MixerSpec

from ..checks import GraphError, check_features
from ..orders import buckets_of, passage_of, rule_of
from ..passage import Passage
from ..topology import Topology, rows_of, topology_for


class SSMConv(nn.Module):
    r"""A registered mixer over the nodes of each graph, packed and in both directions.

    Args:
        channels (int): Size of each node's features, :obj:`d`.
        mixer (str or dict or Callable): A causal mixer, as :meth:`ssmcore.build_mixer` takes it.
            (default: :obj:`"mamba"`)
        order (str): Key of :obj:`graph.orders.ORDERS`. (default: :obj:`"canonical"`)
        bidirectional (bool): Also scan from the last node to the first, with weights of its own, and add.
            (default: :obj:`True`)
        ensemble (int): In evaluation, the mean over so many seeded draws of a random order. (default: :obj:`1`)
        buckets (int): Split the nodes of a graph at random into so many parts, each scanned alone, as Graph-Mamba does
            with its largest graphs; only for orders with chance in them. (default: :obj:`1`)
        edge_dim (int, optional): Size of edge features that set the step of each node, and so its decay.
            (default: :obj:`None`)
        seed (int): Of the draws in evaluation. (default: :obj:`0`)

    Shapes:
        - **input:** nodes :math:`(n, d)`, edges :math:`(2, e)`, batch :math:`(n)` in any order,
          edge features :math:`(e, edge\_dim)`
        - **output:** nodes :math:`(n, d)`

    Raises:
        ValueError: The mixer or the order is unknown, the mixer is not causal, or it cannot do what is asked of it.
    """

    def __init__(
        self,
        channels: int,
        mixer: MixerSpec = "mamba",
        *,
        order: str = "canonical",
        bidirectional: bool = True,
        ensemble: int = 1,
        buckets: int = 1,
        edge_dim: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.channels, self.spec, self.order = channels, mixer, order
        self.bidirectional, self.ensemble, self.edge_dim, self.seed = bidirectional, ensemble, edge_dim, seed
        self.buckets, rule = buckets, rule_of(order)
        for name, count in (("ensemble", ensemble), ("buckets", buckets)):
            if count < 1 or (count > 1 and not rule.random):
                raise ValueError(
                    f"SSMConv: {name}={count} with order={order!r}, expected 1: it draws nothing at random"
                )
        self.mixer = self._build()
        self.step = None
        if edge_dim is not None:
            if not self.mixer.takes_dt:
                raise ValueError(f"SSMConv: edge_dim={edge_dim}, but steps mean nothing to mixer={mixer!r}")
            self.step = nn.Linear(edge_dim, 1)
        self.reset_parameters()

    def _build(self) -> Mixer:
        inner = build_mixer(self.spec, self.channels)
        if not inner.causal or not inner.takes_rows or inner.needs:
            raise ValueError(f"SSMConv: mixer={self.spec!r}, expected a causal mixer that takes packed sequences")
        if not self.bidirectional:
            return inner
        return build_mixer({"name": "bidirectional", "mixer": self.spec}, self.channels)

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        self.mixer.load_state_dict(self._build().state_dict())
        if self.step is not None:  # every step is 1 at the start
            nn.init.zeros_(self.step.weight)
            nn.init.zeros_(self.step.bias)

    def forward(
        self,
        x: Float[Tensor, "n d"],
        edge_index: Int[Tensor, "2 e"],
        batch: Int[Tensor, "n"] | None = None,
        edge_attr: Float[Tensor, "e c"] | None = None,
        *,
        batch_size: int | None = None,
        topology: Topology | None = None,
    ) -> Float[Tensor, "n d"]:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): Node features, shape (n, channels).
            edge_index (torch.Tensor): Edges, shape (2, e).
            batch (torch.Tensor, optional): Graph of each node, shape (n,), in any order. (default: :obj:`None`)
            edge_attr (torch.Tensor, optional): Edge features, shape (e, edge_dim). (default: :obj:`None`)
            batch_size (int, optional): Number of graphs, where some have no nodes. (default: :obj:`None`)
            topology (Topology, optional): The same graphs, checked and with orders at hand; then `edge_index`, `batch`
                and `batch_size` are not looked at. (default: :obj:`None`)
        Returns:
            Shape (n, channels).
        Raises:
            GraphError: The graph cannot be, or edge features are missing.
        """
        topology = topology_for(self, x, edge_index, batch, batch_size, topology)
        if not len(x):
            return x
        steps = self._steps(edge_attr, topology, x.dtype)
        draws = [self._scan(x, steps, topology, member) for member in range(1 if self.training else self.ensemble)]
        return draws[0] if len(draws) == 1 else torch.stack(draws).mean(0)

    def _scan(self, x: Tensor, steps: Tensor | None, topology: Topology, member: int) -> Tensor:
        draw = {"seed": self.seed, "member": member, "fresh": self.training}
        passage, rows = passage_of(topology, self.order, **draw), topology.rows
        if self.buckets > 1:
            part = topology.batch * self.buckets + buckets_of(topology, self.buckets, **draw)
            order = passage.order[torch.argsort(part[passage.order], stable=True)]
            passage, rows = Passage.of(order), rows_of(torch.bincount(part))
        ctx = Context(rows, None if steps is None else passage.read(steps).T)
        y, _ = self.mixer.mix(passage.read(x)[None], None, ctx)
        return passage.back(y[0])

    def _steps(self, edge_attr: Tensor | None, topology: Topology, dtype: torch.dtype) -> Tensor | None:
        """Time that passes at each node, shape (n, 1): between 1/4 and 4, from the mean of its incoming edges."""
        if self.step is None:
            return None
        if edge_attr is None:
            raise GraphError(f"SSMConv: edge_attr is missing, expected (e, {self.edge_dim})")
        check_features("SSMConv", "edge_attr", edge_attr, topology.edge_index.shape[1], self.step.in_features, "edge")
        total = edge_attr.new_zeros(topology.num_nodes, edge_attr.shape[1])
        total = total.index_add(0, topology.edge_index[1], edge_attr)
        mean = total / topology.degree.clamp_min(1)[:, None]
        return (4 ** self.step(mean).tanh()).to(dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels}, mixer={self.spec!r}, order={self.order!r})"
