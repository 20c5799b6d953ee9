"""Graphs: state spaces over orderings of nodes, packed and never padded, in PyG's dress.

Here will live Graph-Mamba, GMN, GRED and walk models as PyG modules `forward(x, edge_index, batch)`, and the trainer
`python -m graph.train`. Nothing of it exists yet; packed sequences are part of every operator in `ssm_kernels`.
"""
