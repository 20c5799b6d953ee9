"""Data sets: local copies, generated tasks with their answers worked out again, and what is refused."""

import zipfile

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_networkx

from graph.checks import GraphError
from graph.config import Schema, SyntheticConfig
from graph.data import GraphSet, check_graphs, list_sets, load_graphs
from graph.folds import choose_epoch, curve, hold_out, ten_folds
from graph.loaders import LOADERS
from graph.synthetic import TASKS, generate


def write_tu(folder, name="TINY", graphs=24):
    """A TU set of rings and stars, zipped as the official files are."""
    rows, owner, labels, node_labels, n = [], [], [], [], 0
    for i in range(graphs):
        g = nx.cycle_graph(4 + i % 3) if i % 2 else nx.star_graph(3 + i % 3)
        rows += [f"{n + u + 1}, {n + v + 1}" for a, b in g.edges for u, v in ((a, b), (b, a))]
        owner += [str(i + 1)] * len(g)
        node_labels += [str(v % 3) for v in range(len(g))]
        labels.append(str(1 + i % 2))
        n += len(g)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"A": rows, "graph_indicator": owner, "graph_labels": labels, "node_labels": node_labels}
    files["node_attributes"] = [f"{100 * v}, {v * v}" for v in range(n)]
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as out:
        for key, lines in files.items():
            out.writestr(f"{name}/{name}_{key}.txt", "\n".join(lines) + "\n")
        out.writestr(f"../../{name}_evil.sh", "no")
    return folder


def test_a_local_copy_of_a_tu_set(tmp_path):
    from graph.loaders import tu

    source = write_tu(tmp_path / "copies" / "tu").parent
    data = tu("TINY", tmp_path / "root", source)
    assert data.schema == Schema(node=3, out=2)
    assert len(data.graphs) == 24
    assert data.labels.tolist() == [0, 1] * 12
    assert data.parts is None
    assert not list(tmp_path.rglob("*.sh"))
    again = tu("TINY", tmp_path / "root", source)
    assert torch.equal(again.graphs[5].edge_index, data.graphs[5].edge_index)
    with pytest.raises(GraphError, match=r"there is no tu/OTHER.zip in it; leave --source out"):
        tu("OTHER", tmp_path / "root", source)


def test_enzymes_has_its_attributes_in_standard_units(tmp_path):
    """Two attributes and three labels; other sets have attributes too, which the literature does not use."""
    data = load_graphs("ENZYMES", root=tmp_path / "root", source=write_tu(tmp_path / "tu", "ENZYMES").parent)
    x = torch.cat([g.x for g in data.graphs])
    assert data.schema.node == x.shape[1] == 5
    torch.testing.assert_close(x[:, :2].mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(x[:, :2].std(0), torch.ones(2), rtol=0, atol=1e-5)
    assert torch.equal(x[:, 2:].sum(1), torch.ones(len(x)))


COUNTS = {"MUTAG": (188, 7, 2), "PROTEINS": (1113, 3, 2), "ENZYMES": (600, 21, 6), "IMDB-BINARY": (1000, 136, 2)}


@pytest.mark.parametrize("name", COUNTS)
def test_real_tu_sets(name, shared_data, tmp_path):
    if not (shared_data / "graph" / "tu").is_dir():
        pytest.skip("no graph/tu among the real data sets")
    data = load_graphs(name, root=tmp_path, source=shared_data / "graph")
    assert (len(data.graphs), data.schema.node, data.schema.out) == COUNTS[name]


@pytest.mark.slow
def test_real_peptides(shared_data, tmp_path):
    if not (shared_data / "graph" / "peptides_func").is_dir():
        pytest.skip("no graph/peptides_func among the real data sets")
    data = load_graphs("Peptides-func", root=tmp_path, source=shared_data / "graph")
    assert sum(g.num_nodes for g in data.graphs) == 2344859
    assert sum(g.edge_index.shape[1] for g in data.graphs) == 4773974
    assert {part: len(chosen) for part, chosen in data.parts.items()} == {
        "train": 10873,
        "validation": 2331,
        "test": 2331,
    }
    positives = torch.cat([g.y for g in data.graphs]).sum(0).int().tolist()
    assert positives == [1378, 545, 995, 969, 9745, 3077, 1662, 2866, 299, 4044]


def test_packed_peptides(tmp_path):
    """A file of two molecules in the layout of the shared one."""
    import io
    import lzma

    from graph.loaders import peptides

    folder = tmp_path / "peptides_func"
    folder.mkdir()
    packed = io.BytesIO()
    np.savez(
        packed, x=np.ones((5, 9), np.uint8), edge=np.array([[0, 1], [1, 2], [0, 1]], np.uint16),
        edge_attr=np.zeros((3, 3), np.uint8), num_nodes=np.array([3, 2], np.uint16),
        num_bonds=np.array([2, 1], np.uint16), y=np.eye(2, 10, dtype=np.uint8),
    )  # fmt: skip
    (folder / "graphs.npz.xz").write_bytes(lzma.compress(packed.getvalue()))
    np.savez(
        folder / "splits.npz", train=np.array([1], np.int16), val=np.array([0], np.int16), test=np.array([0], np.int16)
    )
    data = peptides("Peptides-func", tmp_path / "root", tmp_path)
    check_graphs(data)
    assert data.parts == {"train": [1], "validation": [0], "test": [0]}
    assert data.graphs[0].edge_index.tolist() == [[0, 1, 1, 2], [1, 2, 0, 1]]
    assert data.graphs[1].x.shape == (2, 9)


def test_pygs_loaders_exist_under_the_names_we_use():
    """Nothing is downloaded: the names, their parts and their arguments are looked up."""
    import inspect

    from torch_geometric import datasets

    for cls in (datasets.LRGBDataset, datasets.GNNBenchmarkDataset, datasets.ZINC, datasets.MalNetTiny):
        assert "split" in inspect.signature(cls).parameters
    assert set(datasets.LRGBDataset.names) >= {"pascalvoc-sp", "coco-sp", "pcqm-contact", "peptides-func"}
    assert set(datasets.GNNBenchmarkDataset.names) >= {"PATTERN", "CLUSTER", "MNIST", "CIFAR10"}
    assert len(list_sets()) == len(LOADERS) + len(TASKS)


class TinySet(list):
    """Stands for a downloaded set: every part has the same graphs."""

    graphs: tuple = ()

    def __init__(self, *args, **options):
        super().__init__(g.clone() for g in self.graphs)


PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
DOWNLOADED = {
    "ZINC": ("ZINC", {"x": torch.zeros(3, 1).long(), "edge_attr": torch.ones(4).long(), "y": torch.ones(1)}),
    "CIFAR10": ("GNNBenchmarkDataset", {"x": torch.rand(3, 3), "pos": torch.rand(3, 2), "edge_attr": torch.rand(4),
                                        "y": torch.tensor([3])}),
    "PATTERN": ("GNNBenchmarkDataset", {"x": torch.rand(3, 3), "edge_attr": torch.rand(4), "y": torch.arange(3) % 2}),
    "MalNet-Tiny": ("MalNetTiny", {"num_nodes": 3, "y": torch.tensor([4])}),
    "PascalVOC-SP": ("LRGBDataset", {"x": torch.rand(3, 14), "edge_attr": torch.rand(4, 2), "y": torch.ones(3).long()}),
    "Peptides-struct": ("LRGBDataset", {"x": torch.zeros(3, 9).long(), "edge_attr": torch.zeros(4, 3).long(),
                                        "y": torch.rand(1, 11)}),
    "PCQM-Contact": ("LRGBDataset", {"x": torch.zeros(3, 9).long(), "edge_attr": torch.zeros(4, 3).long(),
                                     "edge_label_index": torch.tensor([[0, 1], [2, 2]]),
                                     "edge_label": torch.tensor([1, 0])}),
}  # fmt: skip


@pytest.mark.parametrize("name", DOWNLOADED)
def test_what_pyg_gives_is_trained_on(name, monkeypatch, tmp_path):
    """One training step and one evaluation on graphs as PyG stores them."""
    from torch_geometric import datasets

    from graph.batches import loader
    from graph.config import ModelConfig
    from graph.models import create_model
    from graph.task import GraphTask, score

    loader_name, fields = DOWNLOADED[name]
    kind = type("Stored", (TinySet,), {"graphs": (Data(edge_index=PATH, **fields),) * 4})
    monkeypatch.setattr(datasets, loader_name, kind)
    data = load_graphs(name, root=tmp_path)
    assert [len(part) for part in data.parts.values()] == [4, 4, 4]
    order = "hilbert" if name == "PascalVOC-SP" else "canonical"
    model = create_model(data.schema, ModelConfig(hidden=8, layers=1, d_state=2, order=order))
    task = GraphTask(model, order, 1e-3, 0.0, 1, 0)
    batch = next(iter(loader(data.graphs, data.parts["train"], 4, seed=0)))
    task.training_step(batch, 0).backward()
    task.eval()
    with torch.no_grad():
        result = score(data.schema, task.predict(batch))
    assert np.isfinite(result)


def test_ogb_is_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ogb.graphproppred", None)
    with pytest.raises(GraphError, match="needs the package ogb; install it with"):
        load_graphs("ogbg-molhiv", root=tmp_path)


def nxg(g):
    return to_networkx(g, to_undirected=True)


def one(name, **options):
    config = SyntheticConfig(graphs=8, **options)
    return generate(name, config, seed=0)[1]["train"]


@pytest.mark.parametrize("name", TASKS)
def test_generated_sets_are_reproducible_and_sound(name):
    config = SyntheticConfig(graphs=8, distance=4, size=12)
    first, second = (load_graphs(name, synthetic=config, seed=3) for _ in range(2))
    other = load_graphs(name, synthetic=config, seed=4)
    assert {part: len(chosen) for part, chosen in first.parts.items()} == {"train": 8, "validation": 2, "test": 2}
    for a, b in zip(first.graphs, second.graphs, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.edge_index, b.edge_index)
        assert torch.equal(a.y, b.y)
    same = [a.y.equal(b.y) and a.x.equal(b.x) and a.edge_index.equal(b.edge_index)
            for a, b in zip(first.graphs, other.graphs, strict=True)]  # fmt: skip
    assert not all(same)
    for g in first.graphs:
        edges = {tuple(e) for e in g.edge_index.T.tolist()}
        assert all((v, u) in edges for u, v in edges)


def test_answers_of_khop_copy():
    for g in one("khop_copy", distance=3, size=15):
        lengths = dict(nx.all_pairs_shortest_path_length(nxg(g)))
        for v in range(15):
            far = [u for u, d in lengths[v].items() if d == 3]
            assert int(g.y[v]) == (int(g.x[far, 1].sum()) % 2 if far else -1)


def test_answers_of_the_tree():
    for g in one("tree_neighbors_match", distance=3):
        assert nx.is_tree(nxg(g))
        match = [v for v in range(7, 15) if g.x[v, 0] == g.x[0, 0]]
        assert len(match) == 1
        assert int(g.y[0]) == int(g.x[match[0], 1]) - 1
        assert (g.y[1:] == -1).all()
        assert sorted(g.x[7:, 1].tolist()) == list(range(1, 9))


def test_answers_of_distances_and_rings():
    for g in one("shortest_paths", size=12):
        source = int(g.x[:, 0].argmax())
        lengths = nx.single_source_shortest_path_length(nxg(g), source)
        assert g.y[:, 0].tolist() == [lengths[v] for v in range(g.num_nodes)]
    for g in one("diameter", size=12):
        assert float(g.y) == nx.diameter(nxg(g))
    for g in one("eccentricity", size=12):
        far = nx.eccentricity(nxg(g))
        assert g.y[:, 0].tolist() == [far[v] for v in range(g.num_nodes)]
    for g in one("ring_transfer", distance=5):
        assert int(g.y[0]) == int(g.x[5, :5].argmax())
        assert nx.shortest_path_length(nxg(g), 0, 5) == 5
    for g in one("graph_transfer", distance=5):
        assert g.y[[0, -1], 0].tolist() == [0, 1]
        assert g.x[[0, -1], 0].tolist() == [1, 0]
        assert torch.equal(g.x[1:-1, 0], g.y[1:-1, 0])
    for g in one("cycle_parity", distance=5):
        assert int(g.y) == g.num_nodes % 2
    for g in one("two_cycles", distance=5):
        assert nx.number_connected_components(nxg(g)) == 1 + int(g.y)
    for g in one("csl"):
        assert (g.edge_index[1].bincount() == 4).all()


def test_folds():
    labels = np.array([0, 1] * 60)
    folds = ten_folds(labels, seed=0)
    assert sorted(i for f in folds for i in f.test) == list(range(120))
    for fold in folds:
        assert not set(fold.train) & set(fold.test)
        assert labels[fold.test].sum() == 6
    rest, tenth = hold_out(folds[0].train, labels, seed=1)
    assert sorted(rest + tenth) == folds[0].train
    assert len(tenth) == 11
    assert not set(tenth) & set(folds[0].test)


def test_protocol_a_chooses_one_epoch_for_all_folds(tmp_path):
    result = choose_epoch([[0.1, 0.9, 0.2], [0.4, 0.3, 0.8]])
    assert (result.epoch, result.scores, result.last) == (1, [0.9, 0.3], [0.2, 0.8])
    with pytest.raises(ValueError, match=r"curves of \[2, 1\] epochs"):
        choose_epoch([[1.0, 2.0], [1.0]])
    (tmp_path / "metrics.csv").write_text("step,epoch,train_loss,val_score\n3,0,1.5,\n3,0,,0.5\n7,1,1.2,0.75\n")
    assert curve(tmp_path / "metrics.csv") == [0.5, 0.75]


BAD_GRAPHS = {
    "no nodes": (Data(x=torch.zeros(0, 2), edge_index=torch.zeros(2, 0).long()), "graph 1: there are no nodes"),
    "edges": (Data(x=torch.zeros(2, 2), edge_index=torch.tensor([[0], [2]])), "graph 1: edge_index holds node 2"),
    "NaN": (Data(x=torch.full((2, 2), torch.nan), edge_index=torch.zeros(2, 0).long()), "graph 1: x holds NaN"),
    "features": (Data(x=torch.zeros(2, 3), edge_index=torch.zeros(2, 0).long()), r"expected \(2, 2\)"),
    "no features": (Data(num_nodes=2, edge_index=torch.zeros(2, 0).long()), "graph 1: x is missing"),
}


@pytest.mark.parametrize("case", BAD_GRAPHS)
def test_bad_graphs_are_named(case):
    bad, message = BAD_GRAPHS[case]
    good = Data(x=torch.zeros(1, 2), edge_index=torch.zeros(2, 0).long())
    data = GraphSet(name="mine", schema=Schema(node=2, out=2), graphs=[good, bad], parts=None)
    with pytest.raises(GraphError, match="mine, " + message if message.startswith("graph") else message):
        check_graphs(data)


def test_unknown_sets_and_sizes():
    with pytest.raises(GraphError, match="unknown data set 'proteins'; did you mean PROTEINS"):
        load_graphs("proteins")
    with pytest.raises(GraphError, match="khop_copy: graphs=2"):
        load_graphs("khop_copy", synthetic=SyntheticConfig(graphs=2))


def test_batches_are_pygs():
    """The same fields as PyG's own collate, for every kind of graph that is stored."""
    from torch_geometric.data import Batch

    from graph.batches import Graphs, collate
    from graph.config import ModelConfig, SyntheticConfig
    from graph.data import load_graphs
    from graph.precompute import precompute

    data = load_graphs("khop_copy", synthetic=SyntheticConfig(graphs=6, distance=2, size=9))
    for name in ("gred", "graph_mamba"):
        graphs = precompute(data.graphs, ModelConfig(name=name, encoding="rwse", encoding_size=3), bar=False)
        for g in graphs:
            g.edge_label_index = g.edge_index[:, :2]
            g.extra = torch.tensor(float(g.num_nodes))
        chosen = Graphs(graphs, [5, 0, 3])
        numbers, batch = collate([chosen[i] for i in range(3)])
        theirs = Batch.from_data_list([graphs[i] for i in (5, 0, 3)])
        assert numbers.tolist() == [0, 1, 2]
        assert batch.num_graphs == 3
        assert set(batch.keys()) - {"num_nodes"} == set(theirs.keys()) - {"num_nodes"}
        for key in list(theirs.keys()):
            assert torch.equal(torch.as_tensor(batch[key]), torch.as_tensor(theirs[key])), key
