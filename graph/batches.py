"""Batches of graphs for training: packed by concatenation, in an order that may put like sizes together."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from ssmcore.engine import make_loader

from .bags import bounds_of

Fields = Mapping[str, Tensor]
"""What is stored with a graph, by name: x (n, ...), edge_index (2, e), y, ...; and its number of nodes, shape ()."""


class Graphs(Dataset):
    """Some graphs of a list, each with its number, so that one that several processes scored counts once.

    Their tensors are looked up once, here: a `Data` object is asked for an attribute in a hundred small steps.

    Args:
        graphs: All.
        chosen: Numbers of those that are meant.
    """

    def __init__(self, graphs: Sequence[Data], chosen: Sequence[int]):
        self.fields: list[Fields] = [_fields(graphs[i]) for i in chosen]

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, index: int) -> tuple[int, Fields]:
        return index, self.fields[index]


def _fields(graph: Data) -> Fields:
    tensors = {key: value for key, value in graph.to_dict().items() if isinstance(value, Tensor)}
    return {**tensors, "num_nodes": torch.tensor(int(graph.num_nodes or 0))}


def collate(items: list[tuple[int, Fields]]) -> tuple[Tensor, Batch]:
    """Numbers (g,) and a batch of graphs, packed: what `Batch.from_data_list` makes, without its bookkeeping.

    Names with "index" in them hold node numbers along their last axis, as PyG has it; all others grow along their
    first. Raises KeyError where a graph lacks what the first one has.
    """
    graphs = [fields for _, fields in items]
    sizes = torch.stack([fields["num_nodes"] for fields in graphs])
    ptr = bounds_of(sizes)
    found = {}
    for key, first in graphs[0].items():
        if key == "num_nodes":
            continue
        parts = [fields[key] for fields in graphs]
        if "index" in key:
            lengths = torch.tensor([part.shape[-1] for part in parts])
            found[key] = torch.cat(parts, -1) + ptr[:-1].repeat_interleave(lengths)
        else:
            found[key] = torch.cat(parts) if first.ndim else torch.stack(parts)
    graph_of_node = torch.arange(len(sizes)).repeat_interleave(sizes)
    batch = Batch(**found, batch=graph_of_node, ptr=ptr, num_nodes=int(ptr[-1]))
    batch._num_graphs = len(graphs)  # where PyG's own collate leaves it
    return torch.tensor([number for number, _ in items]), batch


def by_size(indices: list[int], generator: torch.Generator, sizes: Sequence[int], batch_size: int) -> list[int]:
    """Put graphs of like size into a batch, without giving up chance: sort stretches of 20 batches, shuffle batches.

    Args:
        indices: An epoch's graphs, shuffled.
        generator: Seeded.
        sizes: Nodes of each graph.
        batch_size: Graphs a batch.
    Returns:
        The same indices; the last batch stays the last, as it may be smaller.
    """
    stretch = 20 * batch_size
    in_order = [
        i for start in range(0, len(indices), stretch)
        for i in sorted(indices[start : start + stretch], key=lambda i: sizes[i])
    ]  # fmt: skip
    batches = [in_order[start : start + batch_size] for start in range(0, len(in_order), batch_size)]
    order = torch.randperm(max(0, len(batches) - 1), generator=generator).tolist()
    return [i for b in (*order, len(batches) - 1) for i in batches[b]]


def loader(graphs: Sequence[Data], chosen: Sequence[int], batch_size: int, *, bucket: bool = False, **options):
    """Batches of some graphs; options as in `ssmcore.engine.make_loader`. Raises ValueError as that."""
    data = Graphs(graphs, chosen)
    arrange = None
    if bucket:
        arrange = partial(by_size, sizes=[int(graphs[i].num_nodes) for i in chosen], batch_size=batch_size)
    return make_loader(data, batch_size, collate_fn=collate, arrange=arrange, **options)
