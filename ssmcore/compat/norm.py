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
    """RMS norm with a gate; shapes (..., d), arguments, and what it raises as in `layernorm_fn`."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm=True)


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Layer norm with a gate: norm(x) silu(z), or norm(x silu(z)).

    Args:
        x: Shape (..., d).
        weight: Shape (d,).
        bias: Shape (d,).
        z: Gate, shape of x.
        eps: Added to the variance, or to the mean squares.
        group_size: Channels that are normalised together; None is all.
        norm_before_gate: Which of the two.
        is_rms_norm: RMS norm in its place.
    Returns:
        Shape and dtype of x.
    Raises:
        ValueError: The group size does not divide d.
    """
    d = x.shape[-1]
    group_size = group_size or d
    if d % group_size:
        raise ValueError(f"{'rms' if is_rms_norm else 'layer'}norm_fn: group_size={group_size} does not divide d={d}")
    gate = None if z is None else F.silu(at_least_float32(z))
    y = at_least_float32(x)
    y = y if gate is None or norm_before_gate else y * gate
    norm = F.rms_norm if is_rms_norm else F.layer_norm
    y = norm(y.unflatten(-1, (-1, group_size)), (group_size,), eps=eps).flatten(-2) * weight
    y = y if bias is None else y + bias
    return (y * gate if gate is not None and norm_before_gate else y).to(x.dtype)


class LayerNormGated(nn.Module):
    """`layernorm_fn` with its weight and bias, (..., d) to (..., d). Raises as that."""

    is_rms_norm = False
    bias: nn.Parameter | None

    def __init__(self, hidden_size, eps=1e-5, group_size=None, norm_before_gate=True, device=None, dtype=None):
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        bias = None if self.is_rms_norm else nn.Parameter(torch.zeros(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Normalise x, (..., d), and gate it with z, shape of x. Raises as `layernorm_fn`."""
        options = (self.eps, self.group_size, self.norm_before_gate, self.is_rms_norm)
        return layernorm_fn(x, self.weight, self.bias, z, *options)


class RMSNormGated(LayerNormGated):
    """`rmsnorm_fn` with its weight, (..., d) to (..., d). Raises as that."""

    is_rms_norm = True


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """RMS norm of x + x1 + residual; shapes (..., d), arguments, and what it raises as in `layer_norm_fn`."""
    return layer_norm_fn(
        x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, residual_in_fp32,
        is_rms_norm=True, return_dropout_mask=return_dropout_mask,
    )  # fmt: skip


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Layer norm of x + x1 + residual, in float32.

    Args:
        x: Shape (..., d).
        weight: Shape (d,).
        bias: Shape (d,).
        residual: Shape of x.
        x1: A second branch, shape of x.
        weight1: Of a second norm of the same sum, shape (d,).
        bias1: Likewise.
        eps: Added to the variance, or to the mean squares.
        dropout_p: Chance to drop an entry of x, or of x1.
        rowscale: Factor of x, shape (...,); not with x1.
        prenorm: Also return the sum, for the next block.
        residual_in_fp32: Whether the sum is float32 where there was no residual.
        is_rms_norm: RMS norm in its place.
        return_dropout_mask: Not offered.
    Returns:
        The norm, shape and dtype of x; then the second norm, where there is one, and the sum, with `prenorm`.
    Raises:
        ValueError: A dropout mask is asked for, or rowscale goes with x1.
    """
    if return_dropout_mask:
        raise ValueError("layer_norm_fn: return_dropout_mask is not offered, expected False")
    if x1 is not None and rowscale is not None:
        raise ValueError("layer_norm_fn: rowscale cannot go with x1, as upstream")
    total = at_least_float32(x) if rowscale is None else at_least_float32(x) * rowscale[..., None]
    total = F.dropout(total, dropout_p) if dropout_p else total
    if x1 is not None:
        total = total + (F.dropout(at_least_float32(x1), dropout_p) if dropout_p else x1)
    total = total if residual is None else total + residual
    made = [_norm(total, weight, bias, eps, is_rms_norm).to(x.dtype)]
    if weight1 is not None:
        made.append(_norm(total, weight1, bias1, eps, is_rms_norm).to(x.dtype))
    if prenorm:
        made.append(total.to(_kept(x, residual, residual_in_fp32)))
    return tuple(made) if len(made) > 1 else made[0]


def _norm(total: Tensor, weight: Tensor, bias: Tensor | None, eps: float, is_rms_norm: bool) -> Tensor:
    bias = None if bias is None else at_least_float32(bias)
    weight, shape = at_least_float32(weight), total.shape[-1:]
    if not is_rms_norm:
        return F.layer_norm(total, shape, weight, bias, eps)
    y = F.rms_norm(total, shape, weight, eps)
    return y if bias is None else y + bias


def _kept(x: Tensor, residual: Tensor | None, residual_in_fp32: bool) -> torch.dtype:
    """The dtype that a residual stream goes on in."""
    return residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype


class RMSNorm(nn.Module):
    """`rms_norm_fn` with its weight, (..., d) to (..., d). Raises nothing."""

    def __init__(self, hidden_size, eps=1e-5, dropout_p=0.0, device=None, dtype=None):
        super().__init__()
        self.eps, self.drop = eps, nn.Dropout(dropout_p) if dropout_p > 0 else None
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False):
        """As `rms_norm_fn`, shape (..., d). Raises nothing."""
        dropout = self.drop.p if self.drop is not None and self.training else 0.0
        return rms_norm_fn(
            x, self.weight, None, residual, eps=self.eps, dropout_p=dropout, prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )  # fmt: skip
