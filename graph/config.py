"""What `python -m graph.train` can be told. Plain dataclasses: importing this file imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

ModelName = Literal[
    "graph_mamba", "gmn", "gred", "hop_lru", "walker", "gcn", "gin", "gated_gcn", "gps", "mlp"
]  # the last five are baselines
Level = Literal["graph", "node", "link"]
Loss = Literal["cross_entropy", "weighted_cross_entropy", "bce", "mae", "mse"]
Metric = Literal[
    "accuracy", "weighted_accuracy", "macro_f1", "ap", "roc_auc", "mae", "log10_mse", "mrr_filtered", "mrr_raw"
]


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the graphs of a data set look like, and what is asked about them."""

    node: int | tuple[int, ...]
    """Number of real features of a node; or, for whole-number features, the number of values of each column."""
    edge: int | tuple[int, ...] | None = None
    """The same for edges; None where they have none."""
    out: int
    """Classes, tasks or targets."""
    level: Level = "graph"
    """What is predicted about: a graph, a node or a pair of nodes."""
    loss: Loss = "cross_entropy"
    """Training loss."""
    metric: Metric = "accuracy"
    """The score of the data set's protocol."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a large score is good."""
        return self.metric not in ("mae", "log10_mse")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: ModelName = "graph_mamba"
    """State-space models: graph_mamba, gmn, gred, hop_lru, walker. Baselines: gcn, gin, gated_gcn, gps (attention) and
    mlp."""
    hidden: int = 64
    """Width."""
    layers: int = 3
    """Layers."""
    dropout: float = 0.0
    """Dropout in every layer and in the head."""
    mixer: str = "mamba"
    """Sequence mixer of graph_mamba, gmn and walker; see ssmcore.list_mixers()."""
    d_state: int = 16
    """State size of the mixer, and of gred and hop_lru (where they are complex)."""
    expand: float = 1.0
    """Inner width of the mixer, in multiples of `hidden`, where it has one."""
    order: str = "canonical"
    """Token order of the scan over nodes: canonical, degree, bfs, dfs, ppr, walk, hilbert or shells."""
    ensemble: int = 1
    """Seeded draws that an evaluation averages over, for orders with chance in them (degree, walk)."""
    buckets: int = 1
    """Random parts of a graph that are scanned alone, for orders with chance in them; Graph-Mamba has 3 on its largest
    graphs (graph_mamba)."""
    bidirectional: bool = True
    """Scan in both directions; False is the published Graph-Mamba."""
    edge_decay: bool = False
    """Edge features set the step of each node, and so its decay (graph_mamba)."""
    layout: Literal["gps", "gated"] = "gps"
    """State-space models but gred: the global layer beside message passing, then an MLP, as in GPS; or gated, which is
    message passing plus the global layer times a factor a channel that starts at 0, so that a network starts as its
    messages alone."""
    local: Literal["gin", "gine", "gcn", "gated_gcn", "none"] = "gin"
    """Message passing beside the scan, or beside the attention of gps."""
    encoding: Literal["none", "rwse", "laplacian"] = "none"
    """Positional encoding, added to the node features."""
    encoding_size: int = 16
    """Steps of rwse, or eigenvectors."""
    readout: tuple[str, ...] = ("mean", "sum")
    """How the nodes of a graph become one vector: names of PyG aggregations; several are put side by side."""
    jumping: bool = False
    """Read out from all layers, not from the last alone, as GIN does."""
    hops: int = 8
    """Shells around a node (gred, hop_lru)."""
    r_min: float = 0.9
    """Smallest initial modulus of the poles (gred, hop_lru)."""
    walk_length: int = 20
    """Nodes on a walk (walker)."""
    walk_rate: float = 0.5
    """Share of nodes that start a walk in training (walker)."""
    token_reach: int = 3
    """Longest walk that makes a subgraph token, in steps (gmn)."""
    token_walks: int = 4
    """Walks a token (gmn)."""
    heads: int = 4
    """Attention heads (gps)."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The generated tasks."""

    graphs: int = 1000
    """Training graphs; validation and test get a quarter each."""
    distance: int = 5
    """What makes the task hard: depth of the tree, distance of the copy, length of the ring's arc."""
    size: int = 30
    """Nodes of a random graph, about."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a graph network on a known data set or a generated task and score it by the set's own protocol."""

    data: str = ""
    """Name of the data set or task; `--data list` prints them."""
    root: str = "data/graph"
    """Folder where prepared data sets are kept; PyG downloads into it what it has not got."""
    source: str | None = None
    """Folder with local copies (tu/NAME.zip, peptides_func/graphs.npz.xz), which are used in place of a download."""
    protocol: Literal["split", "A", "B"] = "split"
    """split: the data set's own parts. A: 10 folds, one epoch chosen for all by the mean test curve, as GIN reported
    (optimistic). B: 10 folds, every choice inside the training part, the test fold touched once. TU sets: A or B."""
    folds: int = 10
    """How many of the ten folds are run, from the first (protocols A and B)."""
    grid_lr: tuple[float, ...] = ()
    """Learning rates tried inside each training part (protocol B); none tries `lr` alone."""
    grid_dropout: tuple[float, ...] = ()
    """The same for the dropout (protocol B)."""
    final_runs: int = 1
    """Runs of the chosen setting with different seeds, averaged in each fold (protocol B); the paper has 3."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """Options of the generated tasks."""
    epochs: int = 100
    """Passes over the training graphs."""
    steps_per_epoch: int | None = None
    """Batches an epoch; None is every training graph once."""
    batch_size: int = 32
    """Graphs a batch."""
    bucket: bool = False
    """Put graphs of like size into a batch: padded attention wastes less, packed scans do not care."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; it falls to zero along a half cosine."""
    warmup: float = 0.05
    """Share of the run in which the learning rate rises."""
    weight_decay: float = 1e-2
    """Weight decay of the parameters that want it."""
    patience: int | None = None
    """Epochs without a better validation score before a run ends; None for never."""
    save_every: int | None = None
    """Also keep a checkpoint every so many batches; None: once an epoch."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    devices: int | Literal["auto"] = 1
    """Devices to train on."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic of the training steps."""
    num_workers: int = 0
    """Processes that load data."""
    seed: int = 0
    """Seed of the weights, the order of the graphs, the dropout, the folds and the generated graphs."""
    output: str = "runs"
    """Folder that gets the run folder."""
    resume: str | None = None
    """A run folder: read its config.yaml and go on where it stopped; other options given beside it win."""
