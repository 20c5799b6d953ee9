"""A mixer as an aggregation, beside PyG's: the elements of a set as a sequence, and what it says at its end."""

import torch
from torch import Tensor
from torch_geometric.nn.aggr import Aggregation

from ssmcore import build_mixer
from ssmcore.mixer import Context
from ssmcore.mixers import MixerSpec

from ..checks import GraphError, check_batch
from ..topology import rows_of


class SSMAggregation(Aggregation):
    r"""Reads the elements of each set in the order in which they stand, packed, and returns the last output.

    .. note::

        Sets may stand in any order in :obj:`index`; the elements of one set are read in the order in which they come.
        So this is not permutation-invariant: sort the elements by a canonical order where that matters.

    Args:
        channels (int): Size of each element, and of the result.
        mixer (str or dict or Callable): A causal mixer, as :meth:`ssmcore.build_mixer` takes it.
            (default: :obj:`"mamba"`)

    Shapes:
        - **input:** elements :math:`(n, d)`, index :math:`(n)` or bounds :math:`(g + 1)`
        - **output:** sets :math:`(g, d)`; zeros for empty ones

    Raises:
        ValueError: The mixer is unknown or not causal.
    """

    def __init__(self, channels: int, mixer: MixerSpec = "mamba"):
        super().__init__()
        self.channels, self.spec = channels, mixer
        self.mixer = build_mixer(mixer, channels)
        if not self.mixer.causal or not self.mixer.takes_rows or self.mixer.needs:
            raise ValueError(f"SSMAggregation: mixer={mixer!r}, expected a causal mixer that takes packed sequences")

    def reset_parameters(self):
        r"""Resets all learnable parameters of the module."""
        self.mixer.load_state_dict(build_mixer(self.spec, self.channels).state_dict())

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
        max_num_elements: int | None = None,
    ) -> Tensor:
        r"""Forward pass.

        Args:
            x (torch.Tensor): Elements, shape (n, channels).
            index (torch.Tensor, optional): Set of each element, shape (n,). (default: :obj:`None`)
            ptr (torch.Tensor, optional): Bounds of the sets, int32 or int64, shape (g + 1,). (default: :obj:`None`)
            dim_size (int, optional): Number of sets. (default: :obj:`None`)
            dim (int, optional): Must be the elements' axis, 0 or -2. (default: :obj:`-2`)
            max_num_elements (int, optional): Has no effect: nothing is padded. (default: :obj:`None`)
        Returns:
            Shape (g, channels).
        Raises:
            GraphError: x, dim, index or ptr is not as above.
        """
        if x.ndim != 2 or x.shape[1] != self.channels or dim not in (0, -2):
            raise GraphError(f"SSMAggregation: x of shape {tuple(x.shape)} along {dim}, expected (n, {self.channels})")
        if ptr is not None:
            sizes = ptr.long().diff()
            if len(ptr) < 1 or int(ptr[0]) != 0 or int(ptr[-1]) != len(x) or bool((sizes < 0).any()):
                raise GraphError(f"SSMAggregation: ptr does not rise from 0 to {len(x)}, the number of rows of x")
        else:
            assert index is not None  # PyG's __call__ sees to it
            sets = dim_size or int(index.max()) + 1 if len(x) else dim_size
            check_batch("SSMAggregation", index, len(x), sets, name="index")
            sizes = torch.bincount(index, minlength=dim_size or 0)
            x = x.index_select(0, torch.argsort(index, stable=True))
        full = sizes > 0
        out = x.new_zeros(len(sizes), self.channels)
        if not len(x):
            return out
        y, _ = self.mixer.mix(x[None], None, Context(rows_of(sizes)))
        return out.index_copy(0, full.nonzero()[:, 0], y[0, sizes.cumsum(0)[full] - 1])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels}, mixer={self.spec!r})"
