"""mamba_ssm's norms, plain and gated, by torch's own; in float32 inside."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import at_least_float32


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """RMS norm with a gate: norm(x) silu(z), or norm(x silu(z)).

    Args:
        x: Shape (..., d).
        weight: Shape (d,).
        bias: Shape (d,).
        z: Gate, shape of x.
        eps: Added to the mean squares.
        group_size: Channels that are normalised together; None is all.
        norm_before_gate: Which of the two.
    Returns:
        Shape and dtype of x.
    Raises:
        ValueError: The group size does not divide d.
    """
    d = x.shape[-1]
    group_size = group_size or d
    if d % group_size:
        raise ValueError(f"rmsnorm_fn: group_size={group_size} does not divide d={d}")
    gate = None if z is None else F.silu(at_least_float32(z))
    y = at_least_float32(x)
    y = y if gate is None or norm_before_gate else y * gate
    y = F.rms_norm(y.unflatten(-1, (-1, group_size)), (group_size,), eps=eps).flatten(-2) * weight
    y = y if bias is None else y + bias
    return (y * gate if gate is not None and norm_before_gate else y).to(x.dtype)


class RMSNormGated(nn.Module):
    """`rmsnorm_fn` with its weight, (..., d) to (..., d). Raises as that."""

    def __init__(self, hidden_size, eps=1e-5, group_size=None, norm_before_gate=True, device=None, dtype=None):
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Normalise x, (..., d), and gate it with z, shape of x. Raises as `rmsnorm_fn`."""
        return rmsnorm_fn(x, self.weight, None, z, self.eps, self.group_size, self.norm_before_gate)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """RMS norm of x + residual; what comes after it by name only, for upstream has more between.

    Args:
        x: Shape (..., d).
        weight: Shape (d,).
        bias: Shape (d,).
        residual: Shape of x.
        eps: Added to the mean squares.
        prenorm: Also return the sum, for the next block.
        residual_in_fp32: Whether the sum is float32 where there was no residual.
    Returns:
        The norm, shape and dtype of x; with `prenorm` the sum too.
    Raises nothing.
    """
    total = _total(x, residual)
    y = F.rms_norm(total, x.shape[-1:], at_least_float32(weight), eps)
    y = (y if bias is None else y + bias).to(x.dtype)
    return (y, total.to(_kept(x, residual, residual_in_fp32))) if prenorm else y


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Layer norm of x + residual, or with `is_rms_norm` RMS norm; shapes and the rest as in `rms_norm_fn`."""
    if is_rms_norm:
        return rms_norm_fn(x, weight, bias, residual, eps=eps, prenorm=prenorm, residual_in_fp32=residual_in_fp32)
    total = _total(x, residual)
    wide = None if bias is None else at_least_float32(bias)
    y = F.layer_norm(total, x.shape[-1:], at_least_float32(weight), wide, eps).to(x.dtype)
    return (y, total.to(_kept(x, residual, residual_in_fp32))) if prenorm else y


def _total(x: Tensor, residual: Tensor | None) -> Tensor:
    return at_least_float32(x) if residual is None else at_least_float32(x) + residual


def _kept(x: Tensor, residual: Tensor | None, residual_in_fp32: bool) -> torch.dtype:
    """The dtype that a residual stream goes on in."""
    return residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype


class RMSNorm(nn.Module):
    """`rms_norm_fn` with its weight, (..., d) to (..., d). Raises nothing."""

    def __init__(self, hidden_size, eps=1e-5, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False):
        """As `rms_norm_fn`, shape (..., d). Raises nothing."""
        return rms_norm_fn(
            x, self.weight, None, residual, eps=self.eps, prenorm=prenorm, residual_in_fp32=residual_in_fp32
        )
