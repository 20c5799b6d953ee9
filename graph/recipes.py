"""Named configurations: the published models' settings, and small ones for two CPU cores."""

from .config import ModelConfig, TrainConfig


def graph_mamba_peptides_func() -> TrainConfig:
    """Graph-Mamba as published (0.674 AP there), packed. A GPU; hours."""
    return _graph_mamba(layers=3, data="Peptides-func")


def graph_mamba_peptides_struct() -> TrainConfig:
    """Graph-Mamba as published (0.248 MAE there), packed. A GPU; hours."""
    return _graph_mamba(layers=4, data="Peptides-struct")


def graph_mamba_voc() -> TrainConfig:
    """Graph-Mamba on PascalVOC-SP (0.419 macro F1 in the paper), three buckets. A GPU."""
    return _graph_mamba(layers=4, data="PascalVOC-SP", batch_size=32, lr=1.5e-3, epochs=300, buckets=3)


def graph_mamba_malnet() -> TrainConfig:
    """Graph-Mamba on MalNet-Tiny (93.4 % in the paper), three buckets. A GPU; hours."""
    return _graph_mamba(layers=5, hidden=64, data="MalNet-Tiny", batch_size=16, lr=1.5e-3, epochs=150, buckets=3)


def gred_peptides_func() -> TrainConfig:
    """GRED as published (0.709 AP there): 8 layers, 40 shells. A GPU; hours."""
    model = ModelConfig(
        name="gred", hidden=88, layers=8, hops=40, d_state=88, r_min=0.95, dropout=0.2, readout=("sum",)
    )
    return TrainConfig(data="Peptides-func", model=model, epochs=200, batch_size=32, lr=1e-3, weight_decay=0.2)


def gred_zinc() -> TrainConfig:
    """GRED on ZINC (0.077 MAE in the paper; bonds are not used here). A GPU; hours."""
    model = ModelConfig(name="gred", hidden=72, layers=11, hops=4, d_state=72, dropout=0.2, readout=("sum",))
    return TrainConfig(data="ZINC", model=model, epochs=2000, batch_size=32, lr=1e-3, weight_decay=0.2)


def walker_peptides_func() -> TrainConfig:
    """Walks and Mamba in the manner of NeuralWalker (0.710 AP there). A GPU; hours."""
    model = ModelConfig(
        name="walker", hidden=56, layers=6, walk_length=100, walk_rate=0.5, dropout=0.2, encoding="rwse"
    )
    return TrainConfig(data="Peptides-func", model=model, epochs=200, batch_size=32, lr=2e-3)


def gin_tu() -> TrainConfig:
    """GIN's own setting for the TU sets; `--data NAME --protocol A`. 82.7 % on NCI1 in the paper; a CPU hour a set."""
    model = ModelConfig(name="gin", hidden=32, layers=5, readout=("sum",), jumping=True, dropout=0.5)
    return TrainConfig(model=model, protocol="A", epochs=350, batch_size=32, lr=1e-2)


def scan_tu() -> TrainConfig:
    """GIN beside a packed bidirectional Mamba in canonical order, for the TU sets; `--data NAME --protocol A`."""
    model = ModelConfig(name="graph_mamba", hidden=32, layers=4, d_state=8, encoding="rwse", jumping=True, dropout=0.3)
    return TrainConfig(model=model, protocol="A", epochs=200, batch_size=32, lr=2e-3)


def hops_tu() -> TrainConfig:
    """GIN beside hop shells, for the TU sets, as in `graph.tables`; `--data NAME --protocol A`. A CPU hour on NCI1."""
    model = ModelConfig(
        name="hop_lru", hidden=32, layers=3, hops=6, layout="gated", readout=("sum",), jumping=True, dropout=0.2
    )
    return TrainConfig(model=model, protocol="A", epochs=30, batch_size=64, lr=3e-3)


def khop() -> TrainConfig:
    """GRED on the sum mod 2 of the nodes at distance 5: a minute or two on a CPU; 3 rounds of messages cannot."""
    model = ModelConfig(name="gred", hidden=32, layers=2, hops=8, d_state=32)
    return TrainConfig(data="khop_copy", model=model, epochs=30, lr=3e-3)


def _graph_mamba(
    *,
    layers: int,
    data: str,
    hidden: int = 96,
    batch_size: int = 128,
    lr: float = 1e-3,
    epochs: int = 200,
    buckets: int = 1,
) -> TrainConfig:
    """The setting that the published configurations share: degree order with noise, one direction, five draws."""
    model = ModelConfig(
        name="graph_mamba",
        hidden=hidden,
        layers=layers,
        local="gated_gcn",
        order="degree",
        bidirectional=False,
        buckets=buckets,
        ensemble=5,
        encoding="laplacian",
        encoding_size=10,
        readout=("mean",),
    )
    return TrainConfig(
        data=data, model=model, epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=1e-2, warmup=0.05
    )


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        graph_mamba_peptides_func,
        graph_mamba_peptides_struct,
        graph_mamba_voc,
        graph_mamba_malnet,
        gred_peptides_func,
        gred_zinc,
        walker_peptides_func,
        gin_tu,
        scan_tu,
        hops_tu,
        khop,
    )
}
