"""mamba_ssm's residual block: a norm, a mixer, and perhaps an MLP with its own norm, on a stream that is passed along.

    residual = x + residual;   x = mixer norm residual;   with an MLP: residual = x + residual, x = mlp norm2 residual

It returns x and the residual apart: whoever calls adds them, as the next block does. In the suite's own models this is
`ssmcore.Stack`.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import RMSNorm, layer_norm_fn

Layer = Callable[[int], nn.Module]


class Block(nn.Module):
    """A mixer in its norm and residual, (b, l, dim) to (b, l, dim).

    Raises:
        ValueError: fused_add_norm is asked for with a norm that has no fused form.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Layer,
        mlp_cls: Layer = nn.Identity,
        norm_cls: Layer = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ):
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.norm: Any = norm_cls(dim)
        self.mixer: Any = mixer_cls(dim)
        if mlp_cls is nn.Identity:
            self.mlp = None
        else:
            self.norm2, self.mlp = norm_cls(dim), mlp_cls(dim)
        if fused_add_norm and not isinstance(self.norm, (nn.LayerNorm, RMSNorm)):
            raise ValueError(f"Block: fused_add_norm needs LayerNorm or RMSNorm, got {type(self.norm).__name__}")

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params=None, **mixer_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The block's output and the residual to add to it, both (b, l, dim).

        Args:
            hidden_states: The last block's output, shape (b, l, dim).
            residual: What the last block returned beside it, of the same shape; None for the first block.
            inference_params: The running state of a generation, for the mixer.
            mixer_kwargs: More for the mixer.
        """
        hidden_states, residual = self._add_norm(self.norm, hidden_states, residual)
        hidden_states = self.mixer(hidden_states, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            hidden_states, residual = self._add_norm(self.norm2, hidden_states, residual)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual

    def _add_norm(self, norm: Any, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and that sum, which is in float32 where that is asked for."""
        if self.fused_add_norm:
            return add_norm(norm, x, residual, self.residual_in_fp32)
        total = x if residual is None else x + residual
        return norm(total.to(norm.weight.dtype)), total.float() if self.residual_in_fp32 else total

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int, dtype=None, **kwargs: object):
        """The mixer's states, (b, ...); arguments as its own."""
        return self.mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)


def add_norm(norm: nn.LayerNorm | RMSNorm, x: Tensor, residual: Tensor | None, in_fp32: bool) -> tuple[Tensor, Tensor]:
    """LayerNorm's or RMSNorm's value of x + residual with the sum in float32, and that sum; shapes (b, l, dim)."""
    made = layer_norm_fn(
        x, norm.weight, cast(Tensor | None, norm.bias), residual, eps=norm.eps, prenorm=True, residual_in_fp32=in_fp32,
        is_rms_norm=isinstance(norm, RMSNorm),
    )  # fmt: skip
    assert isinstance(made, tuple)
    return made[0], made[1]


class GatedMLP(nn.Module):
    """fc2 (y activation(gate)) with y, gate = fc1 x, (b, l, in_features) to (b, l, out_features). Raises nothing."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Callable[[Tensor], Tensor] = F.silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        hidden = int(8 * in_features / 3) if hidden_features is None else hidden_features
        hidden = -(-hidden // multiple_of) * multiple_of
        out_features = in_features if out_features is None else out_features
        self.activation = activation
        self.fc1 = nn.Linear(in_features, 2 * hidden, bias=bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (b, l, in_features) to (b, l, out_features). Raises nothing."""
        y, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(y * self.activation(gate))
