"""Orders and the structure under them, against definitions, networkx and dense matrices."""

import itertools

import networkx as nx
import pytest
import torch

from graph.checks import GraphError
from graph.noise import mix, uniform
from graph.orders import ORDERS, passage_of, visits
from graph.structure import colours, distances, hop_pairs, page_rank, quantise, return_probabilities
from graph.topology import Topology


def topology_of(*parts, **known):
    """A batch of networkx graphs with nodes 0..n-1."""
    edges, batch, start = [], [], 0
    for i, g in enumerate(parts):
        edges += [(start + u, start + v) for u, v in g.edges] + [(start + v, start + u) for u, v in g.edges]
        batch += [i] * len(g)
        start += len(g)
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    return Topology.of(index, torch.tensor(batch), start, batch_size=len(parts), **known)


GRAPHS = [nx.path_graph(6), nx.star_graph(4), nx.empty_graph(1), nx.cycle_graph(5), nx.petersen_graph()]


def random_graphs(count=12, seed=0):
    return [nx.gnp_random_graph(4 + i, 0.35, seed=seed + i) for i in range(count)]


@pytest.mark.parametrize("order", ORDERS)
def test_visits_are_permutations_graph_by_graph(order):
    pos = torch.randn(sum(map(len, GRAPHS)), 2, generator=torch.Generator().manual_seed(0))
    topology = topology_of(*GRAPHS, pos=pos)
    for fresh in (False, True):
        table = visits(topology, order, fresh=fresh)
        assert torch.equal(table.sort().values, torch.arange(topology.num_nodes))
        assert torch.equal(topology.batch[table], topology.batch)
        if ORDERS[order].drawn is None:  # the scan follows the ranks
            assert (topology.classes(order)[table].diff() >= 0).all()


@pytest.mark.parametrize("order", [o for o, r in ORDERS.items() if r.drawn is None])
def test_ranks_do_not_depend_on_the_batch(order):
    parts = random_graphs()
    pos = torch.randn(sum(map(len, parts)), 2, generator=torch.Generator().manual_seed(1))
    whole, start = topology_of(*parts, pos=pos).rank(order), 0
    for g in parts:
        alone = topology_of(g, pos=pos[start : start + len(g)]).rank(order)
        assert torch.equal(whole[start : start + len(g)], alone)
        assert alone.unique().tolist() == list(range(int(alone.max()) + 1))
        start += len(g)


def test_degree_puts_hubs_last():
    assert topology_of(nx.star_graph(4)).rank("degree").tolist() == [1, 0, 0, 0, 0]


def test_canonical_ties_are_the_symmetries_of_small_graphs():
    assert topology_of(nx.path_graph(5)).rank("canonical").tolist() == [0, 2, 1, 2, 0]
    assert topology_of(nx.petersen_graph()).rank("canonical").unique().numel() == 1
    two = topology_of(nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(4)))
    rank = two.rank("canonical")  # colour refinement alone sees no difference here, return probabilities do
    assert rank[:3].unique().numel() == rank[3:].unique().numel() == 1
    assert rank[0] != rank[3]


def test_features_break_ties():
    x = torch.tensor([[1.0], [0.0], [0.0], [0.0], [0.0]])
    assert topology_of(nx.cycle_graph(5)).rank("canonical").unique().numel() == 1
    rank = topology_of(nx.cycle_graph(5), features=x).rank("canonical")
    assert rank[1] == rank[4]
    assert rank[2] == rank[3]
    assert rank.unique().numel() == 3


def test_colours_are_those_of_networkx():
    """Nodes of equal colour have equal Weisfeiler-Lehman hashes after as many rounds, and the other way round."""
    for g in random_graphs(8, seed=40):
        topology = topology_of(g)
        mine = colours(topology, torch.zeros(len(g), dtype=torch.int64))
        theirs = nx.weisfeiler_lehman_subgraph_hashes(g, iterations=len(g), digest_size=16)
        last = [theirs[v][-1] for v in range(len(g))]
        for u in range(len(g)):
            for v in range(u):
                assert (mine[u] == mine[v]) == (last[u] == last[v])


def test_breadth_first_goes_by_distance_from_the_root():
    topology = topology_of(nx.balanced_tree(2, 3))
    rank = topology.rank("bfs")
    roots = (rank == 0).nonzero()[:, 0]
    depth = distances(topology, rank == 0)
    assert depth[torch.argsort(rank)].diff().ge(0).all()
    assert topology.degree[roots].eq(3).all()
    assert torch.equal(topology.rank("shells"), depth)


def test_depth_first_follows_edges_or_backtracks():
    g = nx.random_labeled_tree(20, seed=3)
    time = topology_of(g).rank("dfs").tolist()
    at = sorted(range(20), key=lambda v: time[v])
    assert sorted(time) == list(range(20))
    for step in range(1, 20):  # in a tree's preorder every node comes after its parent, a neighbour
        assert any(time[u] < step for u in g[at[step]])
    path, seen = [at[0]], {at[0]}
    for v in at[1:]:
        while v not in g[path[-1]]:
            left = path.pop()
            assert all(u in seen for u in g[left])  # nothing is left behind
        path.append(v)
        seen.add(v)


def test_page_rank_is_that_of_networkx():
    g = nx.karate_club_graph()
    topology = topology_of(nx.Graph(g.edges))
    root = torch.zeros(len(g), dtype=torch.bool)
    root[33] = True
    expected = nx.pagerank(g, alpha=0.85, personalization={33: 1}, weight=None, tol=1e-12, max_iter=500)
    found = page_rank(topology, root, steps=200)
    torch.testing.assert_close(
        found, torch.tensor([expected[v] for v in range(len(g))], dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_return_probabilities_are_diagonals_of_powers():
    parts = random_graphs(6)
    topology = topology_of(*parts)
    found, start = return_probabilities(topology, 5), 0
    for g in parts:
        a = torch.from_numpy(nx.to_numpy_array(g))
        p, power = a / a.sum(1, keepdim=True).clamp_min(1), torch.eye(len(g)).double()
        for step in range(5):
            power = power @ p
            torch.testing.assert_close(found[start : start + len(g), step], power.diagonal(), rtol=0, atol=1e-12)
        start += len(g)


def test_return_probabilities_in_pieces(monkeypatch):
    from graph import structure

    topology = topology_of(*random_graphs(6))
    whole = return_probabilities(topology, 4)
    monkeypatch.setattr(structure, "_CHUNK", 7)
    torch.testing.assert_close(return_probabilities(topology, 4), whole, rtol=0, atol=1e-15)


def test_hop_pairs_are_all_pairs_shortest_paths():
    parts = random_graphs(6, seed=9)
    (far, centre), distance = hop_pairs(topology_of(*parts), 4)
    found = {(int(u), int(v)): int(d) for u, v, d in zip(far, centre, distance, strict=True)}
    expected, start = {}, 0
    for g in parts:
        for u, reach in nx.all_pairs_shortest_path_length(g, cutoff=3):
            expected |= {(start + v, start + u): d for v, d in reach.items()}
        start += len(g)
    assert found == expected
    assert len(distance) == len(found)
    for v in range(start):
        assert (distance[centre == v].diff() <= 0).all()  # from far to near


def test_hilbert_steps_are_short():
    """Neighbours along the curve are near in the plane: far nearer than in a random order."""
    pos = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    topology = topology_of(nx.empty_graph(300), pos=pos)
    order = visits(topology, "hilbert")
    step = pos[order].diff(dim=0).norm(dim=1).mean()
    assert step < 0.2 * pos.diff(dim=0).norm(dim=1).mean()
    shifted = topology_of(nx.empty_graph(300), pos=pos * 7 - 3)
    assert torch.equal(visits(shifted, "hilbert"), order)


def test_random_walk_order_starts_along_edges():
    topology = topology_of(nx.cycle_graph(30))
    order = visits(topology, "walk", seed=4).tolist()
    assert all((b - a) % 30 in (1, 29) for a, b in itertools.pairwise(order[:21]))


def test_seeds_members_and_fresh_draws():
    topology = topology_of(nx.star_graph(20))
    assert torch.equal(visits(topology, "degree", seed=1), visits(topology, "degree", seed=1))
    assert not torch.equal(visits(topology, "degree", seed=1), visits(topology, "degree", seed=2))
    assert not torch.equal(visits(topology, "degree", member=0), visits(topology, "degree", member=1))
    assert not torch.equal(visits(topology, "degree", fresh=True), visits(topology, "degree", fresh=True))
    with pytest.raises(ValueError, match="did you mean 'degree'"):
        visits(topology, "degre")


def test_noise_is_uniform():
    draws = uniform(torch.arange(20000), 3, 1, fresh=False)
    assert ((draws >= 0) & (draws < 1)).all()
    assert abs(draws.mean() - 0.5) < 0.01
    counts = torch.histc(draws.float(), 20, 0, 1)
    assert (counts - 1000).abs().max() < 150
    assert mix(torch.arange(10000)).unique().numel() == 10000
    other = uniform(torch.arange(20000), 4, 1, fresh=False)
    assert abs(torch.corrcoef(torch.stack([draws, other]))[0, 1]) < 0.03


def test_quantiles_have_no_border_at_fractions():
    """Probabilities of walks are fractions of small numbers: rounding noise must not move them to another number."""
    values = torch.tensor([a / b for b in range(1, 400) for a in range(b + 1)]).double().unique()
    assert torch.equal(quantise(values), quantise(values * (1 + 1e-14)))
    assert torch.equal(quantise(values), quantise(values - 1e-14))


def test_hilbert_wants_points_in_the_plane():
    with pytest.raises(GraphError, match=r"points \(n, 2\) are needed, got pos of shape \(3, 3\)"):
        topology_of(nx.path_graph(3), pos=torch.zeros(3, 3)).rank("hilbert")


@pytest.mark.parametrize("order", ORDERS)
def test_the_way_into_an_order_and_back_are_each_others_transpose(order):
    """Both maps against dense matrices made from the definition, and their gradients of first and second order."""
    rng = torch.Generator().manual_seed(3)
    n = sum(map(len, GRAPHS))
    topology = topology_of(*GRAPHS, pos=torch.randn(n, 2, generator=rng))
    passage, rule = passage_of(topology, order), ORDERS[order]
    mean = torch.eye(n, dtype=torch.float64)
    if rule.ties == "average":
        classes = topology.classes(order)
        tied = (classes[:, None] == classes).double()
        mean = tied / tied.sum(1, keepdim=True)
    matrix = mean[visits(topology, order)]
    x = torch.randn(n, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(passage.read(x), matrix @ x, rtol=0, atol=1e-14)
    torch.testing.assert_close(passage.back(x), matrix.T @ x, rtol=0, atol=1e-14)
    for way in (passage.read, passage.back):
        assert torch.autograd.gradcheck(way, x)
        assert torch.autograd.gradgradcheck(lambda t, way=way: way(t).square(), x)
