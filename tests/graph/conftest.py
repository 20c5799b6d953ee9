"""Small random graphs, with the awkward ones among them."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Graphs as the layers take them; `starts` and `sizes` tell where each is."""

    x: Tensor
    edge_index: Tensor
    batch: Tensor
    edge_attr: Tensor
    sizes: list[int]

    @property
    def starts(self) -> list[int]:
        return [sum(self.sizes[:i]) for i in range(len(self.sizes))]

    def nodes(self, i: int) -> slice:
        return slice(self.starts[i], self.starts[i] + self.sizes[i])

    def single(self, i: int) -> "Batch":
        """Graph i alone."""
        start, size = self.starts[i], self.sizes[i]
        mine = (self.edge_index[0] >= start) & (self.edge_index[0] < start + size)
        edges = self.edge_index[:, mine] - start
        zeros = torch.zeros(size, dtype=torch.int64)
        return Batch(self.x[self.nodes(i)], edges, zeros, self.edge_attr[mine], [size])

    def relabelled(self, new: Tensor) -> "Batch":
        """Node v becomes node new[v]; graphs may come to stand mixed."""
        old = torch.argsort(new)
        return replace(self, x=self.x[old], edge_index=new[self.edge_index], batch=self.batch[old])

    def within(self, generator: torch.Generator) -> Tensor:
        """A random relabelling that keeps every graph where it is."""
        parts = [s + torch.randperm(n, generator=generator) for s, n in zip(self.starts, self.sizes, strict=True)]
        return torch.cat(parts)


def random_batch(sizes=(7, 1, 12, 2, 9, 5), channels=6, edge_channels=3, seed=0, dtype=torch.float64) -> Batch:
    """Connected and unconnected graphs, isolated nodes (the last node of graphs of 5 and more), single nodes."""
    rng = torch.Generator().manual_seed(seed)
    edges, start = [], 0
    for size in sizes:
        joined = size - 1 if size >= 5 else size
        for v in range(1, joined):
            u = int(torch.randint(0, v, (), generator=rng))
            edges.append((start + u, start + v))
        for _ in range(size // 3):
            u, v = torch.randperm(max(joined, 2), generator=rng)[:2].tolist()
            edges.append((start + u, start + v))
        start += size
    unique = sorted({tuple(sorted(e)) for e in edges})
    one_way = torch.tensor(unique).T.reshape(2, -1)
    edge_index = torch.cat([one_way, one_way.flip(0)], 1)
    attr = torch.randn(len(unique), edge_channels, generator=rng, dtype=dtype)
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = torch.randn(start, channels, generator=rng, dtype=dtype)
    return Batch(x, edge_index, batch, torch.cat([attr, attr]), list(sizes))


@pytest.fixture
def graphs() -> Batch:
    """Six graphs of 6 float64 channels."""
    return random_batch()


@pytest.fixture
def make_graphs():
    """The function above."""
    return random_batch
