"""Sums over lists of rows against a dense matrix, and their gradients."""

import pytest
import torch

from graph.bags import Bags
from graph.layers.hop_conv import shells_of
from graph.topology import Topology


def dense(index: torch.Tensor, bounds: torch.Tensor, columns: int) -> torch.Tensor:
    matrix = torch.zeros(len(bounds) - 1, columns, dtype=torch.float64)
    for i, (start, stop) in enumerate(zip(bounds.tolist(), bounds[1:].tolist(), strict=False)):
        for j in index[start:stop].tolist():
            matrix[i, j] += 1
    return matrix


def shells(n: int, hops: int, seed: int):
    """Of a sparse directed graph: several components, nodes without edges."""
    g = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, n, (2, n), generator=g)
    return shells_of(Topology.of(edges, None, n), hops)


@pytest.mark.parametrize("hops", [1, 2, 5, 30])
def test_shells_hold_who_they_should(hops):
    found = shells(17, hops, seed=hops)
    for bags, columns in ((found.members, 17), (found.tokens, len(found.distance))):
        matrix = dense(bags.index, bags.bounds, columns)
        assert torch.equal(dense(bags.index_t, bags.bounds_t, len(matrix)), matrix.T)
        x = torch.randn(columns, 3, dtype=torch.float64)
        torch.testing.assert_close(bags.sum(x), matrix @ x, rtol=0, atol=1e-13)


def test_derivatives_of_any_order():
    bags = shells(6, 3, seed=0).members
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bags.sum(x) ** 2, x)
    assert torch.autograd.gradgradcheck(lambda x: bags.sum(x) ** 2, x)


def test_empty_bags_and_no_rows():
    nothing = torch.zeros(0, dtype=torch.long)
    bags = Bags(nothing, torch.zeros(4, dtype=torch.long), nothing, torch.zeros(1, dtype=torch.long))
    x = torch.zeros(0, 2, requires_grad=True)
    y = bags.sum(x)
    assert torch.equal(y, torch.zeros(3, 2))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros(0, 2))
