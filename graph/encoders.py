"""From raw features and structure to vectors: atoms, bonds and other categories, return probabilities, eigenvectors."""

import torch
from torch import Tensor, nn
from torch_geometric.nn.norm import BatchNorm

from ssmcore.array_types import Float, Int

from .checks import GraphError, check_categories
from .spectral import ABSENT

ATOM_SIZES = (119, 5, 12, 12, 10, 6, 6, 2, 2)
"""Values of OGB's nine atom properties: element, chirality, degree, charge, hydrogens, radicals, hybridisation, ..."""
BOND_SIZES = (5, 6, 2)
"""Values of OGB's three bond properties: type, stereo, conjugated."""


class CategoryEncoder(nn.Module):
    r"""The sum of one embedding a column.

    Args:
        sizes (tuple of int): Number of values of each column.
        channels (int): Size of the result.

    Shapes:
        - **input:** whole numbers :math:`(n, columns)`
        - **output:** :math:`(n, channels)`
    """

    def __init__(self, sizes: tuple[int, ...], channels: int):
        super().__init__()
        self.sizes = tuple(sizes)
        self.tables = nn.ModuleList(nn.Embedding(size, channels) for size in self.sizes)
        self.reset_parameters()

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        for table in self.tables:
            nn.init.xavier_uniform_(table.weight)

    def forward(self, x: Int[Tensor, "n columns"]) -> Float[Tensor, "n d"]:
        r"""Runs the forward pass: :obj:`x` of shape (n, columns).

        Raises:
            GraphError: A value that its column does not have; says where.
        """
        x = x[:, None] if x.ndim == 1 else x
        check_categories(type(self).__name__, "x", x, len(x), self.sizes)
        return sum(table(column) for table, column in zip(self.tables, x.long().unbind(1), strict=True))


class AtomEncoder(CategoryEncoder):
    r"""Atoms in OGB's nine columns, :math:`(n, 9)` to :math:`(n, channels)`.

    Args:
        channels (int): Size of the result.
    """

    def __init__(self, channels: int):
        super().__init__(ATOM_SIZES, channels)


class BondEncoder(CategoryEncoder):
    r"""Bonds in OGB's three columns, :math:`(e, 3)` to :math:`(e, channels)`.

    Args:
        channels (int): Size of the result.
    """

    def __init__(self, channels: int):
        super().__init__(BOND_SIZES, channels)


class ReturnEncoder(nn.Module):
    r"""Return probabilities of random walks (RWSE), normalised and mapped: equivariant.

    Args:
        steps (int): Number of probabilities.
        channels (int): Size of the result.

    Shapes:
        - **input:** :math:`(n, steps)`
        - **output:** :math:`(n, channels)`
    """

    def __init__(self, steps: int, channels: int):
        super().__init__()
        self.norm = BatchNorm(steps, allow_single_element=True)
        self.map = nn.Linear(steps, channels)

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        self.norm.reset_parameters()
        self.map.reset_parameters()

    def forward(self, encoding: Float[Tensor, "n steps"], batch: Int[Tensor, "n"]) -> Float[Tensor, "n d"]:
        r"""Runs the forward pass: :obj:`encoding` of shape (n, steps); :obj:`batch` has no effect."""
        return self.map(self.norm(encoding.to(self.map.weight.dtype)))


class LaplacianEncoder(nn.Module):
    r"""Laplacian eigenvectors through a set network: each (entry, eigenvalue) alone, then a sum over those that exist.

    In training each eigenvector of each graph gets a random sign.

    Args:
        count (int): Eigenvectors.
        channels (int): Size of the result.
        hidden (int): Size of the set network. (default: :obj:`32`)

    Shapes:
        - **input:** :math:`(n, 2, count)` from :meth:`graph.spectral.laplacian_encoding`, batch :math:`(n)`
        - **output:** :math:`(n, channels)`

    From Kreuzer et al. 2021, *Rethinking graph transformers with spectral attention*, sec. 3.2, as used by GPS.
    """

    def __init__(self, count: int, channels: int, hidden: int = 32):
        super().__init__()
        self.count = count
        self.each = nn.Sequential(nn.Linear(2, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden), nn.ReLU())
        self.map = nn.Linear(hidden, channels)

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        for layer in (self.each[0], self.each[2], self.map):
            layer.reset_parameters()

    def forward(self, encoding: Float[Tensor, "n two count"], batch: Int[Tensor, "n"]) -> Float[Tensor, "n d"]:
        r"""Runs the forward pass: :obj:`encoding` of shape (n, 2, count), :obj:`batch` of shape (n,).

        Raises:
            GraphError: The encoding has another shape.
        """
        if encoding.shape != (len(batch), 2, self.count):
            came = tuple(encoding.shape)
            raise GraphError(f"LaplacianEncoder: encoding has shape {came}, expected ({len(batch)}, 2, {self.count})")
        entries, values = encoding.to(self.map.weight.dtype).unbind(1)
        if self.training and len(batch):
            signs = torch.randint(0, 2, (int(batch.max()) + 1, self.count), device=batch.device) * 2 - 1
            entries = entries * signs[batch]
        exists = (values != ABSENT)[..., None]
        each = self.each(torch.stack([entries, values], -1))
        return self.map(torch.where(exists, each, 0).sum(1))


ENCODERS: dict[str, type[nn.Module]] = {"rwse": ReturnEncoder, "laplacian": LaplacianEncoder}
