"""Laplacian eigenvectors of every graph of a batch, padded where a graph has fewer nodes than are asked for.

Signs, and bases where eigenvalues coincide, are the solver's choice: these encodings are not equivariant. The encoder
draws signs at random in training (`graph.encoders.LaplacianEncoder`).
"""

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch

from ssmcore.array_types import Float

from .structure import adjacency
from .topology import Topology

ABSENT = -1.0
"""Stands for the eigenvalue of an eigenvector that a graph does not have; true ones lie in [0, 2]."""
_DENSE = 1024  # nodes up to which all eigenvectors are computed


def laplacian_encoding(topology: Topology, count: int) -> Float[torch.Tensor, "n two count"]:
    """The first eigenvectors of the normalised Laplacian after the trivial one, and their eigenvalues.

    Args:
        topology: The graphs; edges count in both directions.
        count: Eigenvectors, k >= 1; graphs of n <= k nodes have n - 1 of them.
    Returns:
        float32, shape (n, 2, k): entries of the eigenvectors, then the eigenvalues; where there is none, 0 and ABSENT.
    Source: Dwivedi et al. 2023, Benchmarking graph neural networks, sec. 3.3.
    """
    weights = adjacency(topology)
    weights = ((weights + weights.T) > 0).astype(np.float64).tocsr()
    out = np.zeros((topology.num_nodes, 2, count))
    out[:, 1] = ABSENT
    nodes = torch.argsort(topology.batch, stable=True).cpu().numpy()
    for start, size in zip(topology.starts.tolist(), topology.sizes.tolist(), strict=True):
        if size < 2:
            continue
        mine = nodes[start : start + size]
        values, vectors = _smallest(weights[mine][:, mine], min(count + 1, size))
        found = len(values) - 1
        out[mine, 0, :found] = vectors[:, 1:]
        out[mine, 1, :found] = values[1:].clip(0, 2)
    return torch.from_numpy(out).float().to(topology.batch.device)


def _smallest(weights: scipy.sparse.csr_array, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, rising, and eigenvectors in columns."""
    degree = np.asarray(weights.sum(1)).ravel()
    scale = np.where(degree > 0, degree, 1) ** -0.5
    n = len(degree)
    scaled = weights.multiply(scale[:, None]).multiply(scale[None]).tocsr()
    if n <= _DENSE:
        return scipy.linalg.eigh(np.diag((degree > 0).astype(float)) - scaled.toarray(), subset_by_index=[0, count - 1])
    start = np.cos(np.arange(n))  # a fixed one: the default is drawn at random
    laplacian = (scipy.sparse.diags_array((degree > 0).astype(float)) - scaled).tocsc()
    # Around a number just below zero: the inverse is definite, and the smallest eigenvalues stand out.
    values, vectors = scipy.sparse.linalg.eigsh(laplacian, k=count, sigma=-1e-2, v0=start)
    order = values.argsort()
    return values[order], vectors[:, order]
