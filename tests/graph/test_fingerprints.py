"""Local environments against sets and multisets made by hand, and the command that scores them."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from graph import fingerprints
from graph.config import Schema
from graph.data import split_set
from graph.environments import environment_counts, environments, fit_and_score
from graph.topology import Topology


def by_hand(g, radius):
    """Nested tuples in place of hashes: the environments of each node, radius by radius."""
    names = [tuple(row.tolist()) for row in g.x]
    found = [list(names)]
    for _ in range(radius):
        around = [[] for _ in names]
        for (u, v), e in zip(g.edge_index.T.tolist(), g.edge_attr.tolist(), strict=True):
            around[v].append((tuple(e), names[u]))
        names = [(name, tuple(sorted(near))) for name, near in zip(names, around, strict=True)]
        found.append(list(names))
    return found


def molecules(graphs):
    """Small integers as features, so that environments repeat."""
    for i in range(len(graphs.sizes)):
        g = graphs.single(i)
        yield Data(x=(g.x[:, :1] > 0).long(), edge_index=g.edge_index, edge_attr=(g.edge_attr[:, :1] > 0).long())


def test_identifiers_are_those_of_environments(make_graphs):
    """Equal where the environments are equal, and different where they differ, over all graphs and radii."""
    seen, wanted = [], []
    for g in molecules(make_graphs(sizes=(7, 1, 12, 2, 9, 14, 20))):
        topology = Topology.of(g.edge_index, None, len(g.x), features=g.x, edge_features=g.edge_attr)
        seen += environments(topology, 2).T.tolist()
        wanted += by_hand(g, 2)
    names, numbers = [n for row in wanted for n in row], [n for row in seen for n in row]
    assert len(set(names)) == len(set(numbers)) == len(set(zip(names, numbers, strict=True)))
    assert Counter(Counter(names).values()) == Counter(Counter(numbers).values())


def test_counts_do_not_depend_on_labels_and_batches(graphs):
    all_of_them = list(molecules(graphs))
    counts = environment_counts(all_of_them, 2, 64)
    assert counts.shape == (6, 64)
    assert counts.sum(1).tolist() == [3 * size for size in graphs.sizes]
    for g, row in zip(all_of_them, counts, strict=True):
        new = torch.randperm(len(g.x), generator=torch.Generator().manual_seed(0))
        other = Data(x=g.x[torch.argsort(new)], edge_index=new[g.edge_index], edge_attr=g.edge_attr)
        assert np.array_equal(environment_counts([other], 2, 64)[0], row)


def pairs(count, seed):
    """Rings of 8 with four marks; class: whether two marked nodes are neighbours. A bag of nodes cannot tell."""
    rng, v = np.random.default_rng(seed), torch.arange(8)
    edges = torch.stack([v, (v + 1) % 8])
    out = []
    for i in range(count):
        marks = torch.zeros(8, 1, dtype=torch.int64)
        marks[torch.from_numpy(rng.permutation(8)[:4]) if i % 2 else v[i // 2 % 2 :: 2]] = 1
        y = int((marks[:, 0] & marks.roll(1, 0)[:, 0]).any())
        out.append(Data(x=marks, edge_index=torch.cat([edges, edges.flip(0)], 1), y=torch.tensor([y])))
    return out


@pytest.mark.parametrize("learner", ["linear", "trees"])
def test_what_a_radius_sees(learner):
    lists = {"train": pairs(120, 0), "validation": pairs(40, 1), "test": pairs(40, 2)}
    data = split_set("pairs", Schema(node=(2,), out=2), lists)
    for radius, low, high in ((0, 0, 0.7), (1, 1, 1)):
        scores = fit_and_score(data, environment_counts(data.graphs, radius, 32), learner, 50, 0)
        assert low <= scores["test"] <= high, radius


def test_several_tasks_and_unknown_answers():
    lists = {"train": pairs(120, 0), "validation": pairs(40, 1), "test": pairs(40, 2)}
    for part, graphs in lists.items():
        for i, g in enumerate(graphs):
            g.y = torch.tensor(
                [[float(g.y), float("nan") if i % 3 == 0 and part == "train" else 1.0 - float(g.y), 1.0]]
            )
    data = split_set("pairs", Schema(node=(2,), out=3, loss="bce", metric="ap"), lists)
    counts = environment_counts(data.graphs, 1, 32)
    assert fit_and_score(data, counts, "linear", 50, 0)["test"] == 1  # the third task has one class only
    for graphs in lists.values():
        for g in graphs:
            g.y = g.y[:, :1]
    numbers = split_set("pairs", Schema(node=(2,), out=1, loss="mse", metric="mae"), lists)
    assert fit_and_score(numbers, counts, "trees", 50, 0)["test"] < 0.05


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "khop_copy"], "a set with its own split that asks about whole graphs is needed"),
        (["--data", "csl", "--buckets", "0"], "expected at least 1, 1 and one radius"),
        (["--data", "cls"], "did you mean csl"),
    ],
)
def test_refusals(words, message, capsys):
    assert fingerprints.main(words) == 2
    assert message in capsys.readouterr().err


def test_command(tmp_path, capsys):
    """Skip links are told by nothing local: every node of every class has the same environments."""
    words = ["--data", "csl", "--radii", "[0, 1]", "--buckets", "16", "--learner", "linear"]
    assert fingerprints.main([*words, "--output", str(tmp_path / "f.csv")]) == 0
    rows = (tmp_path / "f.csv").read_text().splitlines()
    assert len(rows) == 3
    assert float(rows[2].split(",")[4]) < 0.2
    assert "radius 1" in capsys.readouterr().out
