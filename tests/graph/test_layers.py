"""What every layer promises: graphs do not see each other, labels do not matter where that is claimed, no chance."""

from dataclasses import replace

import pytest
import torch

from graph.checks import GraphError
from graph.layers import (
    LAYERS,
    HopConv,
    SSMAggregation,
    SSMConv,
    SubgraphTokens,
    WalkConv,
    aggregation_resolver,
    layer_resolver,
)
from graph.orders import ORDERS, rule_of
from graph.topology import Topology
from ssmcore import list_mixers

SMALL = {"name": "mamba", "d_state": 4, "expand": 1.0}
LAYER_CASES = {
    **{f"ssm-{order}": lambda order=order: SSMConv(6, SMALL, order=order) for order in ORDERS},
    "ssm-one-way": lambda: SSMConv(6, SMALL, order="degree", bidirectional=False),
    "ssm-ensemble": lambda: SSMConv(6, SMALL, order="degree", ensemble=3),
    "ssm-buckets": lambda: SSMConv(6, SMALL, order="degree", buckets=3),
    "ssm-edges": lambda: SSMConv(6, SMALL, edge_dim=3),
    "hops": lambda: HopConv(6, hops=4, d_state=5),
    "walks": lambda: WalkConv(6, SMALL, length=6, window=3),
    "walks-edges": lambda: WalkConv(6, SMALL, length=6, window=3, edge_dim=3),
    "tokens": lambda: SubgraphTokens(6, SMALL, reach=2, walks=3),
}
EQUIVARIANT = [f"ssm-{name}" for name, rule in ORDERS.items() if rule.ties == "average"] + ["ssm-edges", "hops"]
every_layer = pytest.mark.parametrize("case", LAYER_CASES)


def build(case):
    layer = LAYER_CASES[case]().double().eval()
    if getattr(layer, "step", None) is not None:  # steps other than 1
        torch.nn.init.normal_(layer.step.weight)
    return layer


def call(layer, data, x=None, **options):
    """The layer on a batch, with points for those that want them: a function of the features, so they move along."""
    x = data.x if x is None else x
    topology = Topology.of(
        data.edge_index, data.batch, len(x), batch_size=options.pop("batch_size", None), pos=data.x[:, :2]
    )
    if getattr(layer, "edge_dim", None) or getattr(layer, "edge", None) is not None:
        options["edge_attr"] = data.edge_attr
    return layer(x, data.edge_index, data.batch, topology=topology, **options)


@every_layer
def test_a_batch_equals_single_calls(case, graphs):
    layer = build(case)
    whole = call(layer, graphs)
    for i in range(len(graphs.sizes)):
        torch.testing.assert_close(whole[graphs.nodes(i)], call(layer, graphs.single(i)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rewired", [False, True])
@every_layer
def test_graphs_do_not_touch_each_other(case, rewired, graphs):
    """Other features and other edges in graph 2: outputs and gradients of all others are equal to the bit.

    Rewired subgraph tokens have another number of members: the matrix product over all of them has other rows, and BLAS
    cuts it into other blocks, which may round the last digit of any row otherwise.
    """
    layer = build(case)
    changed_x = graphs.x.clone()
    changed_x[graphs.nodes(2)] *= -3
    start = graphs.starts[2]
    mine = (graphs.batch[graphs.edge_index[0]] == 2).nonzero()[:, 0]
    edges = graphs.edge_index.clone()
    edges[:, mine] = start + (edges[:, mine] - start + 5) % graphs.sizes[2]
    results = []
    for x, edge_index in ((graphs.x, graphs.edge_index), (changed_x, edges if rewired else graphs.edge_index)):
        x = x.clone().requires_grad_()
        y = call(layer, replace(graphs, x=x.detach(), edge_index=edge_index), x)
        (y * torch.arange(1.0, 7).double()).sum().backward()
        results.append((y.detach(), x.grad))
    others = graphs.batch != 2
    for before, after in zip(*results, strict=True):
        if rewired and case == "tokens":
            torch.testing.assert_close(before[others], after[others], rtol=0, atol=1e-14)
        else:
            assert torch.equal(before[others], after[others])
        assert not torch.equal(before[~others], after[~others])


@every_layer
def test_nan_in_one_graph_stays_there(case, graphs):
    layer = build(case)
    clean = call(layer, graphs)
    x = graphs.x.clone()
    x[graphs.starts[2]] = torch.nan
    y = call(layer, graphs, x)
    others = graphs.batch != 2
    assert torch.equal(clean[others], y[others])
    assert y[~others].isnan().any()


@every_layer
def test_order_of_graphs_and_nodes_in_the_batch(case, graphs):
    """Mixing the graphs' nodes, each graph's own order kept, only moves the rows: an unsorted batch is restored."""
    layer = build(case)
    rng = torch.Generator().manual_seed(3)
    slots = graphs.batch[torch.randperm(len(graphs.x), generator=rng)]
    new = torch.empty_like(slots)
    for i in range(len(graphs.sizes)):
        new[graphs.nodes(i)] = (slots == i).nonzero()[:, 0]
    mixed = graphs.relabelled(new)
    assert not torch.equal(mixed.batch, mixed.batch.sort().values)
    torch.testing.assert_close(call(layer, mixed)[new], call(layer, graphs), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", EQUIVARIANT)
def test_equivariant_layers_are_exactly_so(case, graphs):
    layer = build(case)
    y = call(layer, graphs)
    for seed in range(5):
        new = graphs.within(torch.Generator().manual_seed(seed))
        torch.testing.assert_close(call(layer, graphs.relabelled(new))[new], y, rtol=0, atol=1e-10)


def relabelling_spread(layer, graphs, trials=4):
    """Mean change of a node's output under relabelling, relative to the size of the output."""
    y, changes = call(layer, graphs), []
    for seed in range(trials):
        new = graphs.within(torch.Generator().manual_seed(seed))
        changes.append((call(layer, graphs.relabelled(new))[new] - y).square().mean())
    return float((torch.stack(changes).mean() / y.square().mean()).sqrt())


@pytest.mark.parametrize("order", ["degree", "walk"])
def test_noisy_orders_spread_and_ensembles_narrow_it(order, make_graphs):
    """Draws are independent, so a mean over 16 of them should spread a quarter as much; half is asked for."""
    graphs = make_graphs(sizes=(14, 11, 17))
    torch.manual_seed(0)
    single = SSMConv(6, SMALL, order=order).double().eval()
    many = SSMConv(6, SMALL, order=order, ensemble=16).double().eval()
    many.load_state_dict(single.state_dict())
    spread = relabelling_spread(single, graphs)
    assert spread > 0.02
    assert relabelling_spread(many, graphs) < 0.5 * spread


def test_depth_first_is_equivariant_where_no_nodes_are_tied():
    edges = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [2, 6]]).T  # arms of lengths 2, 3 and 1 from node 2
    edges = torch.cat([edges, edges.flip(0)], 1)
    topology = Topology.of(edges, None, 7)
    assert topology.rank("canonical").unique().numel() == 7
    time = topology.rank("dfs")
    for seed in range(4):
        new = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(Topology.of(new[edges], None, 7).rank("dfs")[new], time)


@every_layer
def test_two_evaluations_are_equal(case, graphs):
    layer = build(case)
    first = call(layer, graphs)
    torch.rand(7)
    assert torch.equal(first, call(layer, graphs))


@pytest.mark.parametrize("case", ["ssm-degree", "ssm-buckets", "ssm-walk", "walks", "tokens"])
def test_training_draws_anew_and_by_the_seed(case, graphs):
    layer = build(case).train()
    torch.manual_seed(1)
    first, second = call(layer, graphs), call(layer, graphs)
    torch.manual_seed(1)
    assert torch.equal(first, call(layer, graphs))
    assert not torch.equal(first, second)


@every_layer
def test_graphs_without_nodes_and_no_graphs_at_all(case, graphs):
    layer = build(case)
    gapped = replace(graphs, batch=graphs.batch * 2)
    torch.testing.assert_close(call(layer, gapped, batch_size=12), call(layer, graphs), rtol=0, atol=1e-12)
    none = replace(graphs, x=graphs.x[:0], edge_index=graphs.edge_index[:, :0], batch=graphs.batch[:0])
    none = replace(none, edge_attr=graphs.edge_attr[:0])
    assert call(layer, none, batch_size=3).shape == (0, 6)


@every_layer
def test_gradients_are_true(case, make_graphs):
    graphs = make_graphs(sizes=(4, 1, 3))
    layer = build(case)
    x = graphs.x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: call(layer, graphs, t), x, atol=1e-6)


@every_layer
def test_reset_parameters(case):
    """New weights of the same kind, in the same tensors; every parameter that is drawn at random changes."""
    layer = LAYER_CASES[case]()
    tensors = dict(layer.named_parameters())
    before = {name: p.detach().clone() for name, p in tensors.items()}
    layer.reset_parameters()
    assert dict(layer.named_parameters()).keys() == before.keys()
    for name, p in layer.named_parameters():
        assert p is tensors[name]
        constant = name.endswith(("A_log", ".D", "norm.weight", "norm.bias")) or name.startswith("step")
        assert constant or not torch.equal(p, before[name]), name


def test_buckets_are_scanned_alone(graphs):
    """Each part of each graph by itself, nodes in the order that they have in the whole."""
    from graph.orders import buckets_of, visits

    layer = build("ssm-buckets")
    topology = Topology.of(graphs.edge_index, graphs.batch, len(graphs.x))
    order, bucket, y = visits(topology, "degree"), buckets_of(topology, 3), call(layer, graphs)
    assert bucket.unique().tolist() == [0, 1, 2]
    for graph in range(len(graphs.sizes)):
        for part in range(3):
            mine = order[(topology.batch[order] == graph) & (bucket[order] == part)]
            if len(mine):
                torch.testing.assert_close(layer.mixer(graphs.x[mine][None])[0][0], y[mine], rtol=0, atol=1e-10)


def test_one_call_without_a_topology(graphs):
    layer = SSMConv(6, SMALL).double()
    assert torch.equal(layer(graphs.x, graphs.edge_index, graphs.batch), call(layer, graphs))
    wide = layer(graphs.x, graphs.edge_index.int(), graphs.batch.int())
    assert torch.equal(wide, call(layer, graphs))
    assert layer(graphs.x, graphs.edge_index).shape == graphs.x.shape


def causal_mixers():
    from ssmcore import create_mixer

    return [m for m in list_mixers() if (k := create_mixer(m, 8)).causal and k.takes_rows and not k.needs]


@pytest.mark.parametrize("mixer", causal_mixers())
def test_every_causal_mixer_packed_equals_padded_equals_loop(mixer, make_graphs):
    """The padded twin turns each graph round by itself for the way back, so that padding stays behind the nodes."""
    graphs = make_graphs(channels=8)
    layer = SSMConv(8, mixer, order="degree").double().eval()
    topology = Topology.of(graphs.edge_index, graphs.batch, len(graphs.x))
    packed = layer(graphs.x, graphs.edge_index, graphs.batch)

    from graph.orders import visits

    order = visits(topology, "degree")
    there, back = layer.mixer.mixers
    longest = max(graphs.sizes)
    padded, loop = torch.empty_like(packed), torch.empty_like(packed)
    dense = graphs.x.new_zeros(len(graphs.sizes), longest, 8)
    turned = dense.clone()
    for i, size in enumerate(graphs.sizes):
        tokens = graphs.x[order[graphs.nodes(i)]]
        dense[i, :size], turned[i, :size] = tokens, tokens.flip(0)
        loop[order[graphs.nodes(i)]] = there(tokens[None])[0][0] + back(tokens.flip(0)[None])[0][0].flip(0)
    ahead, behind = there(dense)[0], back(turned)[0]
    for i, size in enumerate(graphs.sizes):
        padded[order[graphs.nodes(i)]] = ahead[i, :size] + behind[i, :size].flip(0)
    torch.testing.assert_close(packed, loop, rtol=0, atol=1e-10)
    torch.testing.assert_close(padded, loop, rtol=0, atol=1e-10)


def test_gred_is_the_recurrence_from_far_to_near(graphs):
    """The closed form against ssmcore's LRU, run over the shells of each node one by one."""
    from graph.layers.hop_conv import shells_of

    layer = HopConv(6, hops=4, d_state=5).double().eval()
    topology = Topology.of(graphs.edge_index, graphs.batch, len(graphs.x))
    y = layer(graphs.x, graphs.edge_index, graphs.batch)
    shells = shells_of(topology, 4)
    sums = shells.members.sum(graphs.x)
    z = sums + layer.mlp(layer.norm(sums))
    for v in range(len(graphs.x)):
        mine = slice(*shells.tokens.bounds[v : v + 2].tolist())
        distance = shells.distance[mine].tolist()
        assert distance == list(range(distance[0], -1, -1))
        torch.testing.assert_close(layer.core(z[mine][None])[0][0, -1], y[v], rtol=0, atol=1e-10)


def test_edges_set_the_decay(graphs):
    layer = build("ssm-edges")
    stronger = replace(graphs, edge_attr=graphs.edge_attr * 2)
    assert not torch.allclose(call(layer, graphs), call(layer, stronger))
    torch.nn.init.zeros_(layer.step.weight)
    plain = SSMConv(6, SMALL).double().eval()
    plain.mixer.load_state_dict(layer.mixer.state_dict())
    torch.testing.assert_close(call(layer, graphs), call(plain, graphs), rtol=0, atol=1e-12)


def test_subgraph_tokens_are_induced_subgraphs(graphs):
    """Members are within reach and hold the centre; messages equal those of the induced subgraph, made by PyG."""
    from torch_geometric.utils import subgraph

    layer = SubgraphTokens(6, SMALL, reach=2, walks=4).double().eval()
    topology = Topology.of(graphs.edge_index, graphs.batch, len(graphs.x))
    centre, node = layer.members(topology, 2, 0)
    token = layer.encode(graphs.x, topology, centre, node)
    for v in range(len(graphs.x)):
        members = node[centre == v]
        assert v in members
        source, target = subgraph(members, graphs.edge_index, num_nodes=len(graphs.x))[0]
        messages = torch.zeros_like(graphs.x).index_add(0, target, graphs.x[source])[members]
        expected = layer.encoder(torch.cat([graphs.x[members], messages], 1)).mean(0)
        torch.testing.assert_close(token[v], expected, rtol=0, atol=1e-10)


REFUSED = {
    "mixer": (lambda: SSMConv(6, "bidirectional"), "expected a causal mixer"),
    "grid": (lambda: SSMConv(6, "grid_mamba"), "expected a causal mixer"),
    "name": (lambda: SSMConv(6, "mambo"), "did you mean 'mamba'"),
    "order": (lambda: SSMConv(6, order="cannonical"), "did you mean 'canonical'"),
    "ensemble": (lambda: SSMConv(6, order="canonical", ensemble=3), "it draws nothing at random"),
    "steps": (lambda: SSMConv(6, "gru", edge_dim=3), "steps mean nothing to mixer='gru'"),
    "hops": (lambda: HopConv(6, hops=0), "hops=0, expected at least 1"),
    "rate": (lambda: WalkConv(6, rate=0.0), "rate=0.0"),
    "walks": (lambda: SubgraphTokens(6, walks=0), "walks=0"),
    "layer": (lambda: layer_resolver("ssmcon", 6), "unknown graph layer 'ssmcon'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_constructors_refuse(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()


BAD_INPUT = {
    "edge out of range": (lambda g: {"edge_index": g.edge_index + 30}, "edge_index holds node"),
    "negative edge": (lambda g: {"edge_index": g.edge_index - 1}, "edge_index holds node -1, expected 0..35"),
    "float edges": (lambda g: {"edge_index": g.edge_index.float()}, "edge_index has dtype float32, expected int64"),
    "edges turned": (lambda g: {"edge_index": g.edge_index.T}, r"expected \(2, e\)"),
    "gapped batch": (lambda g: {"batch": g.batch * 2}, "batch skips graph 1, which has no nodes"),
    "short batch": (lambda g: {"batch": g.batch[1:]}, "batch has shape"),
    "float batch": (lambda g: {"batch": g.batch.float()}, "batch has dtype float32"),
    "negative batch": (lambda g: {"batch": g.batch - 1}, "batch holds graph -1"),
    "whole numbers": (lambda g: {"x": g.x.long()}, "x has dtype int64, expected floating point"),
    "channels": (lambda g: {"x": g.x[:, :4]}, r"x has shape \(36, 4\), expected \(n, 6\)"),
}


@pytest.mark.parametrize("kind", [SSMConv, HopConv, WalkConv, SubgraphTokens])
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_a_sentence(case, kind, graphs):
    change, message = BAD_INPUT[case]
    arguments = {"x": graphs.x, "edge_index": graphs.edge_index, "batch": graphs.batch} | change(graphs)
    with pytest.raises(GraphError, match=message):
        kind(6).double()(**arguments)


def test_missing_edge_features_and_points(graphs):
    with pytest.raises(GraphError, match="edge_attr is missing"):
        SSMConv(6, edge_dim=3).double()(graphs.x, graphs.edge_index, graphs.batch)
    with pytest.raises(GraphError, match="points"):
        SSMConv(6, order="hilbert").double()(graphs.x, graphs.edge_index, graphs.batch)


def test_resolver_knows_keys_and_class_names():
    for key, kind in LAYERS.items():
        assert type(layer_resolver(key, 6)) is kind
        assert type(layer_resolver(kind.__name__, 6)) is kind
    layer = HopConv(6)
    assert layer_resolver(layer) is layer
    for name in ("ssm", "SSMAggregation"):
        assert type(aggregation_resolver(name, 6)) is SSMAggregation
    assert type(aggregation_resolver("mean")).__name__ == "MeanAggregation"
    with pytest.raises(ValueError, match="medan"):
        aggregation_resolver("medan")
    assert "order='canonical'" in repr(SSMConv(6))
    assert rule_of("canonical").ties == "average"


@pytest.mark.gpu
@every_layer
def test_cpu_equals_gpu(case, graphs):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layer = build(case)
    y = call(layer, graphs)
    there = {name: t.cuda() if isinstance(t, torch.Tensor) else t for name, t in vars(graphs).items()}
    z = call(layer.cuda(), type(graphs)(**there))
    torch.testing.assert_close(z.cpu(), y, rtol=0, atol=1e-9)
