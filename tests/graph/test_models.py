"""The models: what they promise as a whole, what they are made of, and what they refuse."""

from dataclasses import replace

import pytest
import torch

from graph.checks import GraphError
from graph.config import ModelConfig, Schema
from graph.layers import SSMAggregation
from graph.models import MODELS, create_model
from graph.topology import Topology

SMALL = {"hidden": 8, "layers": 2, "d_state": 4, "hops": 4, "walk_length": 5, "token_reach": 2, "token_walks": 2}
SMALL |= {"encoding_size": 4, "heads": 2}
GRAPH = Schema(node=6, edge=3, out=4)
EQUIVARIANT = ("graph_mamba", "gred", "hop_lru", "gcn", "gin", "gated_gcn", "gps", "mlp")


def build(name, schema=GRAPH, **options):
    torch.manual_seed(0)
    return create_model(schema, ModelConfig(name=name, **{**SMALL, **options})).double()


def call(model, data, **options):
    return model(data.x, data.edge_index, data.batch, data.edge_attr, **options)


@pytest.mark.parametrize("encoding", ["none", "rwse", "laplacian"])
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_equals_single_calls(name, encoding, graphs):
    model = build(name, encoding=encoding).eval()
    whole = call(model, graphs)
    assert whole.shape == (6, 4)
    for i in range(6):
        torch.testing.assert_close(whole[i : i + 1], call(model, graphs.single(i)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_graphs_do_not_touch_each_other(name, graphs):
    """Other features in graph 2, in evaluation: outputs and gradients of all others are equal to the bit."""
    model, changed = build(name).eval(), graphs.x.clone()
    changed[graphs.nodes(2)] *= -3
    results = []
    for features in (graphs.x, changed):
        x = features.clone().requires_grad_()
        y = call(model, replace(graphs, x=x))
        (y * torch.arange(1.0, 5).double()).sum().backward()
        results.append((y.detach(), x.grad))
    (y, grad), (other_y, other_grad) = results
    others = torch.arange(6) != 2
    assert torch.equal(y[others], other_y[others])
    assert not torch.equal(y[2], other_y[2])
    assert torch.equal(grad[graphs.batch != 2], other_grad[graphs.batch != 2])


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_relabelling_nodes_leaves_pooled_outputs_alone(name, graphs):
    model = build(name, encoding="rwse").eval()
    y = call(model, graphs)
    for seed in range(4):
        new = torch.randperm(len(graphs.x), generator=torch.Generator().manual_seed(seed))
        mixed = graphs.relabelled(new)  # also mixes the graphs' nodes: the batch is unsorted
        torch.testing.assert_close(call(model, mixed), y, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "options"), [("graph_mamba", {"order": "degree"}), ("gmn", {}), ("walker", {})])
def test_models_with_chance_spread_over_relabellings_and_two_calls_agree(name, options, graphs):
    model = build(name, **options).eval()
    y = call(model, graphs)
    assert torch.equal(y, call(model, graphs))
    spread = torch.stack([
        call(model, graphs.relabelled(graphs.within(torch.Generator().manual_seed(seed)))) - y for seed in range(6)
    ])  # fmt: skip
    assert 1e-6 < spread.square().mean().sqrt() / y.square().mean().sqrt() < 1


@pytest.mark.parametrize("name", [n for n in MODELS if n != "mlp"])
def test_structure_matters_except_to_the_structure_free(name, graphs):
    alone = replace(graphs, edge_index=graphs.edge_index[:, :0], edge_attr=graphs.edge_attr[:0])
    model, free = build(name).eval(), build("mlp").eval()
    assert not torch.allclose(call(model, graphs), call(model, alone))
    assert torch.equal(call(free, graphs), call(free, alone))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name, graphs):
    """Also what distributed training asks for: no parameter without a gradient."""
    model = build(name, encoding="laplacian", jumping=True, edge_decay=True).train()
    call(model, graphs).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", MODELS)
def test_a_single_node_can_be_trained_on(name):
    model = build(name).train()
    y = model(torch.ones(1, 6).double(), torch.zeros(2, 0, dtype=torch.int64), None, torch.zeros(0, 3).double())
    y.sum().backward()
    assert y.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_reset_parameters(name):
    model = build(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim == 2 and "A_log" not in n}
    model.reset_parameters()
    now = dict(model.named_parameters())
    assert [n for n, p in before.items() if torch.equal(now[n], p) and "step" not in n] == []


@pytest.mark.parametrize("name", ["graph_mamba", "hop_lru"])
def test_a_gated_layer_starts_as_message_passing_alone(name, graphs):
    """Its factor starts at 0 and has a gradient; with one that is not 0 the layer is heard."""
    model = build(name, layout="gated").train()
    gates = [p for n, p in model.named_parameters() if n.endswith("gate")]
    assert len(gates) == 2
    call(model, graphs).square().sum().backward()
    assert all(g.grad.abs().min() > 0 for g in gates)
    model.eval()
    before = call(model, graphs)
    with torch.no_grad():
        for p in model.blocks[0].glob.parameters():
            p.mul_(2)
        assert torch.equal(call(model, graphs), before)
        gates[0].fill_(1)
        assert not torch.allclose(call(model, graphs), before)
    model.reset_parameters()
    assert not gates[0].any()
    new = torch.randperm(len(graphs.x), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gates[1].fill_(1)
    torch.testing.assert_close(call(model, graphs.relabelled(new)), call(model, graphs), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="'none'"):
        build(name, layout="gated", local="none")


@pytest.mark.parametrize("name", ["gmn", "walker"])
def test_the_other_models_have_the_layouts_too(name, graphs):
    names = dict(build(name, layout="gated").named_parameters())
    assert any(parameter.endswith("gate") for parameter in names)
    assert call(build(name, layout="gated").eval(), graphs).shape == (6, 4)


def test_levels(graphs):
    nodes = build("gred", Schema(node=6, edge=3, out=5, level="node")).eval()
    assert call(nodes, graphs).shape == (36, 5)
    links = build("graph_mamba", Schema(node=6, edge=3, out=1, level="link")).eval()
    pairs = torch.tensor([[0, 1], [3, 5]])
    y = call(links, graphs, pairs=pairs)
    assert y.shape == (2,)
    torch.testing.assert_close(y, call(links, graphs, pairs=pairs.flip(0)), rtol=0, atol=1e-12)
    with pytest.raises(GraphError, match="pairs is missing"):
        call(links, graphs)


def test_empty_graphs_are_scored_where_their_number_is_given(graphs):
    model = build("graph_mamba").eval()
    y = call(model, graphs, batch_size=8)
    assert y.shape == (8, 4)
    torch.testing.assert_close(y[:6], call(model, graphs), rtol=0, atol=1e-12)
    assert torch.equal(y[6], y[7])


def test_stored_structure_gives_the_same(graphs):
    from torch_geometric.data import Batch, Data

    from graph.precompute import precompute, topology_of

    singles = [graphs.single(i) for i in range(6)]
    stored = [Data(x=g.x, edge_index=g.edge_index, edge_attr=g.edge_attr) for g in singles]
    for name, options in (("graph_mamba", {"encoding": "rwse"}), ("gred", {}), ("gmn", {"order": "bfs"})):
        model = build(name, **options).eval()
        batch = Batch.from_data_list(precompute(stored, model.config))
        order = model.config.order if name != "gred" else None
        topology = topology_of(batch, order)
        assert (topology.hops is not None) == (name == "gred")
        assert set(topology.ranks) == ({order} if order else set())
        y = model(batch.x, batch.edge_index, batch.batch, batch.edge_attr, topology=topology)
        torch.testing.assert_close(y, call(model, graphs), rtol=0, atol=2e-6)  # encodings are stored in float32


@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_aggregation_reads_each_set_in_order(index, graphs):
    layer = SSMAggregation(6, {"name": "mamba", "d_state": 4}).double()
    ptr = torch.tensor([0, *torch.tensor(graphs.sizes).cumsum(0)]).to(index)
    y = layer(graphs.x, ptr=ptr)
    for i in range(6):
        expected = layer.mixer(graphs.x[graphs.nodes(i)][None])[0][0, -1]
        torch.testing.assert_close(y[i], expected, rtol=0, atol=1e-12)
    order = torch.argsort(torch.rand(6, generator=torch.Generator().manual_seed(2)))[graphs.batch].argsort(stable=True)
    assert torch.equal(layer(graphs.x[order], graphs.batch[order]), layer(graphs.x, graphs.batch))
    torch.testing.assert_close(layer(graphs.x, graphs.batch), y, rtol=0, atol=1e-12)
    gapped = layer(graphs.x, graphs.batch * 2, dim_size=13)
    torch.testing.assert_close(gapped[::2][:6], y, rtol=0, atol=1e-12)
    assert not gapped[1::2].any()
    assert not gapped[12].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: {"ptr": torch.tensor([0, 20, 10, 36])}, "does not rise from 0 to 36"),
        (lambda g: {"ptr": torch.tensor([0, 20])}, "does not rise from 0 to 36"),
        (lambda g: {"index": g.batch - 1}, "index holds graph -1"),
        (lambda g: {"index": g.batch.double()}, "index has dtype float64"),
        (lambda g: {"index": g.batch, "x": g.x[:, :4]}, r"expected \(n, 6\)"),
    ],
)
def test_aggregation_refuses(change, message, graphs):
    arguments = {"x": graphs.x} | change(graphs)
    with pytest.raises(GraphError, match=message):
        SSMAggregation(6).double().forward(**arguments)


def test_aggregation_serves_pygs_own_modules(graphs):
    from torch_geometric.nn import SAGEConv
    from torch_geometric.utils import sort_edge_index

    conv = SAGEConv(6, 6, aggr=SSMAggregation(6, {"name": "lru", "d_state": 4})).double()
    assert conv(graphs.x, sort_edge_index(graphs.edge_index, sort_by_row=False)).shape == (36, 6)


def test_hidden_edges_of_gated_gcn_by_hand():
    """Two nodes and one edge, computed by the formula."""
    from graph.layers import GatedGCNConv

    layer = GatedGCNConv(3).double().eval()
    x, e = torch.randn(2, 3).double(), torch.randn(1, 3).double()
    y, out = layer(x, torch.tensor([[0], [1]]), e)
    A, B, U, V = (m for m in layer.own.weight.chunk(4))
    a, b, u, v = layer.own.bias.chunk(4)
    gate = x[1] @ A.T + a + x[0] @ B.T + b + layer.edge(e[0])
    scale = (1 + 1e-5) ** -0.5  # batch norm with its first statistics
    new = x[1] @ U.T + u + gate.sigmoid() * (x[0] @ V.T + v) / (gate.sigmoid() + 1e-6)
    torch.testing.assert_close(y[1], x[1] + (new * scale).relu(), rtol=0, atol=1e-9)
    torch.testing.assert_close(out[0], e[0] + (gate * scale).relu(), rtol=0, atol=1e-9)


BAD = {
    "NaN": (
        lambda g: {"x": g.x.index_fill(0, torch.tensor([4]), torch.nan)},
        "x holds NaN or infinity, first at node 4",
    ),
    "features": (lambda g: {"x": g.x[:, :5]}, r"x has shape \(36, 5\), expected \(36, 6\), one row a node"),
    "edge features": (lambda g: {"edge_attr": g.edge_attr[:5]}, "edge_attr has shape"),
    "no edge features": (lambda g: {"edge_attr": None}, "edge_attr is missing, expected features of edges, 3"),
    "NaN in edges": (lambda g: {"edge_attr": g.edge_attr * torch.nan}, "edge_attr holds NaN or infinity"),
    "no nodes": (
        lambda g: {"x": g.x[:0], "edge_index": g.edge_index[:, :0], "batch": g.batch[:0], "edge_attr": g.edge_attr[:0]},
        "there are no nodes",
    ),
    "edge out of range": (lambda g: {"edge_index": g.edge_index + 30}, "edge_index holds node 6., expected 0..35"),
    "gapped batch": (lambda g: {"batch": g.batch + (g.batch > 2)}, "batch skips graph 3, which has no nodes"),
    "float edges": (lambda g: {"edge_index": g.edge_index.float()}, "edge_index has dtype float32"),
}


@pytest.mark.parametrize("name", ["graph_mamba", "gcn"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_sentence(case, name, graphs):
    change, message = BAD[case]
    arguments = {"x": graphs.x, "edge_index": graphs.edge_index, "batch": graphs.batch, "edge_attr": graphs.edge_attr}
    with pytest.raises(GraphError, match=message):
        build(name)(**(arguments | change(graphs)))


def test_categories_out_of_range():
    from graph.encoders import AtomEncoder, BondEncoder

    atoms = torch.zeros(3, 9, dtype=torch.int64)
    assert AtomEncoder(5)(atoms).shape == (3, 5)
    assert BondEncoder(5)(torch.zeros(2, 3, dtype=torch.uint8)).shape == (2, 5)
    atoms[2, 3] = 12
    with pytest.raises(GraphError, match=r"x\[2, 3\] is 12, expected 0..11"):
        AtomEncoder(5)(atoms)
    with pytest.raises(GraphError, match="expected integers"):
        AtomEncoder(5)(atoms.float())


def test_laplacian_encodings_of_any_graph(graphs):
    """Eigenvectors are what they should be, graphs of n <= k nodes get n - 1 of them, and signs are drawn anew."""
    from graph.encoders import LaplacianEncoder
    from graph.spectral import ABSENT, laplacian_encoding

    topology = Topology.of(graphs.edge_index, graphs.batch, 36)
    found = laplacian_encoding(topology, 8)
    assert found.shape == (36, 2, 8)
    for i, size in enumerate(graphs.sizes):
        g, mine = graphs.single(i), found[graphs.nodes(i)].double()
        a = torch.zeros(size, size).double()
        a[g.edge_index[0], g.edge_index[1]] = 1
        d = a.sum(1)
        inverse = torch.where(d > 0, d.clamp_min(1) ** -0.5, 0)
        laplacian = torch.diag((d > 0).double()) - inverse[:, None] * a * inverse
        present = min(8, size - 1)
        assert (mine[:, 1, present:] == ABSENT).all()
        for k in range(present):
            vector, value = mine[:, 0, k], mine[0, 1, k]
            torch.testing.assert_close(laplacian @ vector, value * vector, rtol=0, atol=1e-5)
    encoder = LaplacianEncoder(8, 5)
    assert not torch.equal(encoder(found, graphs.batch), encoder(found, graphs.batch))
    encoder.eval()
    assert torch.equal(encoder(found, graphs.batch), encoder(found, graphs.batch))


def test_large_graphs_use_the_sparse_solver(monkeypatch):
    from graph import spectral

    edges = torch.stack([torch.arange(59), torch.arange(1, 60)])
    topology = Topology.of(torch.cat([edges, edges.flip(0)], 1), None, 60)
    dense = spectral.laplacian_encoding(topology, 3)
    monkeypatch.setattr(spectral, "_DENSE", 10)
    sparse = spectral.laplacian_encoding(topology, 3)
    torch.testing.assert_close(sparse[:, 1], dense[:, 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(sparse[:, 0].abs(), dense[:, 0].abs(), rtol=0, atol=1e-4)
    assert torch.equal(sparse, spectral.laplacian_encoding(topology, 3))


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown graph model 'graphmamba'; did you mean 'graph_mamba'"):
        create_model(GRAPH, ModelConfig(name="graphmamba"))
    with pytest.raises(ValueError, match="local='gated_gcn', expected one of"):
        create_model(GRAPH, ModelConfig(name="gps", local="gated_gcn"))
