"""Known data sets by name: PyG's loaders, and local copies. A data set is a function here and a line in LOADERS.

A loader takes its name, the folder of prepared sets, and the folder of local copies or None.
"""

import io
import lzma
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.utils import one_hot

from .checks import GraphError
from .config import Schema
from .data import GraphSet, split_set
from .encoders import ATOM_SIZES, BOND_SIZES

Loader = Callable[[str, Path, Path | None], GraphSet]
PARTS = {"train": "train", "validation": "val", "test": "test"}


def tu(name: str, root: Path, source: Path | None) -> GraphSet:
    """A TU set; node labels one-hot, degrees (up to 135) where there are none; edge labels are not used, as in GIN.

    ENZYMES has its 18 attributes of each node in front of the labels, as in Errica et al.; standardised over the set,
    for they come in units of their own.

    Source: Morris et al. 2020, TUDataset; Errica et al. 2020, A fair comparison of graph neural networks.
    """
    from torch_geometric.datasets import TUDataset

    if source is not None:
        _unpack(name, source, root)
    _needs_network(source, root / name / "raw" / f"{name}_A.txt", f"tu/{name}.zip")
    attributes = name == "ENZYMES"
    found = TUDataset(str(root), name, use_node_attr=attributes)
    graphs = list(found)
    if attributes:
        measured = found.num_node_attributes
        every = torch.cat([g.x[:, :measured] for g in graphs])
        mean, scale = every.mean(0), every.std(0).clamp_min(1e-6)
        for g in graphs:
            g.x = torch.cat([(g.x[:, :measured] - mean) / scale, g.x[:, measured:]], 1)
    if graphs[0].x is None:
        for g in graphs:
            g.x = one_hot(g.edge_index[1].bincount(minlength=g.num_nodes).clamp(max=135), 136)
    graphs = [Data(x=g.x, edge_index=g.edge_index, y=g.y) for g in graphs]
    classes = len({int(g.y) for g in graphs})
    return GraphSet(name=name, schema=Schema(node=graphs[0].x.shape[1], out=classes), graphs=graphs, parts=None)


def peptides(name: str, root: Path, source: Path | None) -> GraphSet:
    """Peptides-func (10 tasks, AP) and Peptides-struct (11 targets, MAE); a local copy of the first needs no RDKit.

    Source: Dwivedi et al. 2022, Long range graph benchmark.
    """
    func = name == "Peptides-func"
    kind: dict = {"loss": "bce", "metric": "ap"} if func else {"loss": "mae", "metric": "mae"}
    schema = Schema(node=ATOM_SIZES, edge=BOND_SIZES, out=10 if func else 11, **kind)
    local = None if source is None else source / "peptides_func"
    if func and local is not None and (local / "graphs.npz.xz").is_file():
        graphs, splits = _packed_peptides(local / "graphs.npz.xz"), np.load(local / "splits.npz")
        parts = {part: splits[key].astype(int).tolist() for part, key in PARTS.items()}
        return GraphSet(name=name, schema=schema, graphs=graphs, parts=parts)
    return _lrgb(name, root, schema)


def superpixels(name: str, root: Path, source: Path | None) -> GraphSet:
    """PascalVOC-SP (21 classes) and COCO-SP (81), a class a node, macro F1. Source: as peptides."""
    out = 21 if name == "PascalVOC-SP" else 81
    schema = Schema(node=14, edge=2, out=out, level="node", loss="weighted_cross_entropy", metric="macro_f1")
    found = _lrgb(name, root, schema)
    for g in found.graphs:
        g.pos = g.x[:, -2:]  # where the superpixel lies
    return found


def contact(name: str, root: Path, source: Path | None) -> GraphSet:
    """PCQM-Contact: which far atoms touch; ranks of pairs. Source: as peptides."""
    metric = "mrr_raw" if name.endswith("raw") else "mrr_filtered"
    schema = Schema(node=ATOM_SIZES, edge=BOND_SIZES, out=1, level="link", loss="bce", metric=metric)
    return _lrgb(name, root, schema, "PCQM-Contact")


def benchmark(name: str, root: Path, source: Path | None) -> GraphSet:
    """MNIST and CIFAR10 as superpixel graphs, PATTERN and CLUSTER. Source: Dwivedi et al. 2023."""
    from torch_geometric.datasets import GNNBenchmarkDataset

    lists = {part: list(GNNBenchmarkDataset(str(root), name, split=key)) for part, key in PARTS.items()}
    if name in ("MNIST", "CIFAR10"):
        for g in (g for graphs in lists.values() for g in graphs):
            g.x = torch.cat([g.x, g.pos], 1)
            g.edge_attr = g.edge_attr.reshape(-1, 1)
        return split_set(name, Schema(node=3 if name == "MNIST" else 5, edge=1, out=10), lists)
    for g in (g for graphs in lists.values() for g in graphs):
        g.edge_attr = None
    node, out = (3, 2) if name == "PATTERN" else (7, 6)
    schema = Schema(node=node, out=out, level="node", loss="weighted_cross_entropy", metric="weighted_accuracy")
    return split_set(name, schema, lists)


def zinc(name: str, root: Path, source: Path | None) -> GraphSet:
    """ZINC, 12,000 molecules: one target, MAE. Source: Dwivedi et al. 2023, Benchmarking graph neural networks."""
    from torch_geometric.datasets import ZINC

    lists = {part: list(ZINC(str(root / "ZINC"), subset=True, split=key)) for part, key in PARTS.items()}
    for g in (g for graphs in lists.values() for g in graphs):
        g.edge_attr, g.y = g.edge_attr.reshape(-1, 1), g.y.reshape(1, 1)
    return split_set(name, Schema(node=(28,), edge=(4,), out=1, loss="mae", metric="mae"), lists)


def malnet(name: str, root: Path, source: Path | None) -> GraphSet:
    """MalNet-Tiny: call graphs of 5 kinds; local degree profiles as features. Source: Freitas et al. 2021."""
    from torch_geometric.datasets import MalNetTiny
    from torch_geometric.transforms import LocalDegreeProfile

    profile = LocalDegreeProfile()
    lists = {}
    for part, key in PARTS.items():
        graphs = [profile(g) for g in MalNetTiny(str(root / "MalNetTiny"), split=key)]
        lists[part] = [Data(x=g.x.log1p(), edge_index=g.edge_index, y=g.y) for g in graphs]
    return split_set(name, Schema(node=5, out=5), lists)


def ogb(name: str, root: Path, source: Path | None) -> GraphSet:
    """ogbg-molhiv (ROC AUC), ogbg-molpcba (AP) and ogbn-arxiv (accuracy, one graph whose nodes are split).

    Source: Hu et al. 2020, Open graph benchmark.
    """
    try:
        from ogb.graphproppred import PygGraphPropPredDataset
        from ogb.nodeproppred import PygNodePropPredDataset
    except ImportError:
        raise GraphError(f"{name}: needs the package ogb; install it with `pip install ogb`") from None
    if name.startswith("ogbn"):
        return _ogb_nodes(name, PygNodePropPredDataset(name, str(root)))
    data = PygGraphPropPredDataset(name, str(root))
    splits, graphs = data.get_idx_split(), [g for g in data]
    for g in graphs:
        g.y = g.y.float()
    metric = "ap" if name == "ogbg-molpcba" else "roc_auc"
    schema = Schema(node=ATOM_SIZES, edge=BOND_SIZES, out=graphs[0].y.shape[1], loss="bce", metric=metric)
    parts = {part: splits["valid" if key == "val" else key].tolist() for part, key in PARTS.items()}
    return GraphSet(name=name, schema=schema, graphs=graphs, parts=parts)


def _ogb_nodes(name: str, data) -> GraphSet:
    """One graph three times over, each with the answers of one part; edges in both directions."""
    from torch_geometric.utils import to_undirected

    g, splits = data[0], data.get_idx_split()
    edges, lists = to_undirected(g.edge_index), {}
    for part, key in PARTS.items():
        y = torch.full((g.num_nodes,), -1)
        mine = splits["valid" if key == "val" else key]
        y[mine] = g.y[mine, 0]
        lists[part] = [Data(x=g.x, edge_index=edges, y=y)]
    return split_set(name, Schema(node=g.x.shape[1], out=data.num_classes, level="node"), lists)


LOADERS: dict[str, Loader] = {
    **dict.fromkeys(("MUTAG", "PROTEINS", "NCI1", "NCI109", "ENZYMES", "IMDB-BINARY", "IMDB-MULTI", "DD"), tu),
    **dict.fromkeys(("Peptides-func", "Peptides-struct"), peptides),
    **dict.fromkeys(("PascalVOC-SP", "COCO-SP"), superpixels),
    **dict.fromkeys(("PCQM-Contact", "PCQM-Contact-raw"), contact),
    **dict.fromkeys(("MNIST", "CIFAR10", "PATTERN", "CLUSTER"), benchmark),
    "ZINC": zinc,
    "MalNet-Tiny": malnet,
    **dict.fromkeys(("ogbg-molhiv", "ogbg-molpcba", "ogbn-arxiv"), ogb),
}


def _lrgb(name: str, root: Path, schema: Schema, loader_name: str | None = None) -> GraphSet:
    from torch_geometric.datasets import LRGBDataset

    load = partial(LRGBDataset, str(root / "LRGB"), loader_name or name)
    return split_set(name, schema, {part: list(load(split=key)) for part, key in PARTS.items()})


def _packed_peptides(path: Path) -> list[Data]:
    """Graphs of a packed file, see its README: bonds once, atoms numbered within their molecule."""
    packed = np.load(io.BytesIO(lzma.decompress(path.read_bytes())))
    atoms, bonds = packed["num_nodes"].astype(int).cumsum()[:-1], packed["num_bonds"].astype(int).cumsum()[:-1]
    pieces = (np.split(packed["x"], atoms), np.split(packed["edge"], bonds), np.split(packed["edge_attr"], bonds))
    graphs = []
    for x, edge, attr, y in zip(*pieces, packed["y"], strict=True):
        one_way = torch.from_numpy(edge.astype(np.int64)).T
        attr = torch.from_numpy(attr)
        graphs.append(
            Data(
                x=torch.from_numpy(x),
                edge_index=torch.cat([one_way, one_way.flip(0)], 1),
                edge_attr=torch.cat([attr, attr]),
                y=torch.from_numpy(y).float()[None],
            )
        )
    return graphs


def _unpack(name: str, source: Path, root: Path) -> None:
    """Put a zip's text files where PyG looks for them; nothing outside that folder is written."""
    raw = root / name / "raw"
    archive = next((p for p in (source / "tu" / f"{name}.zip", source / f"{name}.zip") if p.is_file()), None)
    if archive is None or (raw / f"{name}_A.txt").is_file():
        return
    raw.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as files:
        for member in sorted(files.namelist(), key=lambda m: m.endswith("_A.txt")):  # the one that is looked for, last
            if member.endswith(".txt") and Path(member).name.startswith(f"{name}_"):
                target = raw / Path(member).name
                with files.open(member) as packed, target.with_suffix(".part").open("wb") as out:
                    shutil.copyfileobj(packed, out)
                target.with_suffix(".part").replace(target)


def _needs_network(source: Path | None, there: Path, copy: str) -> None:
    """With a folder of copies given, a set that is in neither place is a mistake, not a wish to download."""
    if source is not None and not there.is_file():
        raise GraphError(f"{source}: there is no {copy} in it; leave --source out to let PyG download the set")
