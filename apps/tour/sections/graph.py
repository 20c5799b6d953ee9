"""Graphs: the order in which a scan visits a karate club, and a task that message passing cannot do."""

import time
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch_geometric.data import Data

from graph.batches import loader
from graph.config import ModelConfig, SyntheticConfig
from graph.data import GraphSet, load_graphs
from graph.layers import SSMConv
from graph.models import create_model
from graph.orders import visits
from graph.precompute import precompute
from graph.task import GraphTask, score_graphs
from graph.topology import Topology
from ssmcore.engine import make_optimizer

from ..charts import INK, LINE, drawing
from ..report import Command, Figure, Section, Table, Text
from . import Visit

SEED, DISTANCE, SIZE = 0, 3, 14
RIVALS = {
    "GRED: recurrence over hop shells": "gred",
    "GCN, two rounds of messages": "gcn",
    "nodes by themselves": "mlp",
}


@dataclass(frozen=True)
class Result:
    """One network on the task."""

    accuracy: float
    parameters: int
    seconds: float


def run(visit: Visit) -> Section:
    """Draw the order, measure what relabelling changes, train on the task."""
    club = karate_club()
    changes = {order: relabelling(club, order) for order in ("canonical", "degree")}
    graphs = 40 if visit.tiny else 300
    data = load_graphs("khop_copy", synthetic=SyntheticConfig(graphs=graphs, distance=DISTANCE, size=SIZE), seed=SEED)
    results = {title: train(data, name, 1 if visit.tiny else 14) for title, name in RIVALS.items()}
    best, second = results["GRED: recurrence over hop shells"], results["GCN, two rounds of messages"]
    return Section(
        title="Graphs: what lies three steps away",
        summary=f"{best.accuracy:.1%} of unseen nodes right; two rounds of messages {second.accuracy:.1%}, "
        "chance about 50 %.",
        blocks=[
            Text(
                "A scan needs an order, and a graph has none. The canonical order goes by degree, then by how soon "
                "random walks return, then by colour refinement, so it does not depend on how the nodes are numbered. "
                "Nodes that it cannot tell apart share a place, and the scan reads and answers with their mean."
            ),
            Figure(
                _order_drawing(club),
                "Zachary's karate club (34 members, 78 friendships): the step at which the scan comes to each member, "
                "dark to bright. Members with one number are tied. The two leaders come last, having heard all others.",
                "A network with a number in every node, small numbers at the rim and large ones at the hubs.",
            ),
            Text(
                f"Numbering the members anew changes this scan's output by {changes['canonical']:.0e} of its size, "
                f"which is rounding. Ordered by degree alone, with ties broken at random as in published models, it "
                f"changes by {changes['degree']:.0%}."
            ),
            _table(results),
            Text(
                f"The task: {SIZE} nodes of a random tree with a shortcut each hold a bit; every node has to tell the "
                f"sum, modulo 2, of those exactly {DISTANCE} steps away. {graphs} graphs to train on, "
                f"{graphs // 4} others for the score. One run with seed {SEED}; no network was tuned, and two rounds "
                "of messages cannot reach that far, whatever the training."
            ),
        ],
        next=[
            Command(
                "python -m graph.reach --distances [2,4,8]",
                "The same against GIN, GCN and attention with as many layers as they need; a few minutes.",
            ),
            Command(
                "python -m graph.train --data MUTAG --recipe scan_tu",
                "A molecule set that PyG downloads, ten folds; `--data list` names the others.",
            ),
        ],
    )


def karate_club() -> Topology:
    """The graph that networkx ships."""
    edges = torch.tensor(list(nx.karate_club_graph().edges)).T
    return Topology.of(torch.cat([edges, edges.flip(0)], 1), None, 34)


def relabelling(club: Topology, order: str) -> float:
    """How much the output of an untrained scan changes when the nodes are numbered anew, relative to its size."""
    torch.manual_seed(SEED)
    layer = SSMConv(16, {"name": "mamba", "d_state": 4}, order=order).double().eval()
    x = torch.randn(34, 16, dtype=torch.float64)
    new = torch.randperm(34)
    with torch.no_grad():
        y = layer(x, club.edge_index)
        z = layer(x[torch.argsort(new)], new[club.edge_index])[new]
    return float((z - y).norm() / y.norm())


def train(data: GraphSet, name: str, epochs: int) -> Result:
    """A small network, two layers, on the task."""
    config = ModelConfig(name=name, hidden=24, layers=2, hops=DISTANCE + 1, d_state=16)
    torch.manual_seed(SEED)
    started, task = time.monotonic(), GraphTask(create_model(data.schema, config), None, 1e-2, 0.0, 1, 0)
    graphs: list[Data] = precompute(data.graphs, config, bar=False)
    optimizer = make_optimizer(task.model, 1e-2, 0.0)
    task.train()
    assert data.parts is not None
    for epoch in range(epochs):
        for batch in loader(graphs, data.parts["train"], 30, seed=epoch):
            optimizer.zero_grad()
            task.training_step(batch, 0).backward()
            optimizer.step()
    accuracy = score_graphs(task, graphs, data.parts["test"], 50)
    return Result(accuracy, sum(p.numel() for p in task.model.parameters()), time.monotonic() - started)


def _order_drawing(club: Topology) -> str:
    rank, order = club.rank("canonical"), visits(club, "canonical")
    step = torch.empty_like(order)
    step[order] = torch.arange(34)
    first = torch.full((34,), 34).scatter_reduce(0, rank, step, "amin")[rank] + 1  # tied nodes: the first step of them
    g = nx.karate_club_graph()
    places = nx.kamada_kawai_layout(g)
    at = np.array([places[v] for v in range(34)])
    with drawing(8, 4.2, "visits") as (figure, svg):
        axis = figure.subplots()
        for u, v in g.edges:
            axis.plot(*at[[u, v]].T, color=LINE, linewidth=1, zorder=1)
        axis.scatter(*at.T, c=first.numpy(), cmap="viridis", vmin=-6, vmax=40, s=260, zorder=2, linewidths=0)
        for v, number in enumerate(first.tolist()):
            bright = number > 20
            axis.text(*at[v], str(number), ha="center", va="center", fontsize=8, zorder=3, color="k" if bright else "w")
        axis.set_axis_off()
        axis.margins(0.04)
        axis.text(*at.min(0), "numbers: step of the scan", color=INK, fontsize=9, va="top")
        return svg()


def _table(results: dict[str, Result]) -> Table:
    rows = [[title, f"{r.accuracy:.1%}", f"{r.parameters:,}", f"{r.seconds:.0f} s"] for title, r in results.items()]
    top = max(r.accuracy for r in results.values())
    strong = [i for i, r in enumerate(results.values()) if r.accuracy == top]
    return Table(["", "accuracy", "parameters", "training"], rows, "Nodes of unseen graphs named rightly.", strong)
