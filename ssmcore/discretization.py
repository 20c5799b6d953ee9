"""Discretisation: from x' = A x + B u to x[t] = A_bar x[t-1] + B_bar u[t], for diagonal and for dense A.

Names: dt = Δ, the step; u = Δ A; alpha = α of the generalised bilinear transform. Every rule is differentiable in
A, B and dt, for real and complex A. The scan operators apply the same formulas inside their kernels.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from ssm_kernels.checks import check_choice
from torch import Tensor

from .array_types import Float, Inexact

Rule = Literal["euler", "zoh", "bilinear"]
"""euler: e^u and Δ B (Mamba). zoh: exact for input held over the step. bilinear: GeneralizedBilinear(1/2), Tustin."""

RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True)
class GeneralizedBilinear:
    """A_bar = (1 - α u)^-1 (1 + (1 - α) u), B_bar = (1 - α u)^-1 Δ B: forward Euler at 0, Tustin at 1/2, backward at 1.

    Holds a number, so no shapes.

    Raises:
        ValueError: alpha lies outside [0, 1].
    Source: Gu et al. 2021, LSSL, sec. 2 (GBT).
    """

    alpha: float
    """How much of the step is implicit, in [0, 1]. From 1/2 on, a stable system stays stable at any step."""

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"GeneralizedBilinear: alpha={self.alpha}, expected a number in [0, 1]")


def discretize_diagonal(
    A: Inexact[Tensor, "..."],
    B: Inexact[Tensor, "..."],
    dt: float | Float[Tensor, "..."],
    rule: Rule | GeneralizedBilinear = "zoh",
) -> tuple[Inexact[Tensor, "..."], Inexact[Tensor, "..."]]:
    """Discretise a diagonal system, elementwise: the three arguments broadcast.

    Args:
        A: Diagonal of the state matrix, real or complex, in 1/time, any shape, e.g. (d, n).
        B: Input weights, any shape, e.g. (n,).
        dt: Step, in time; a number or a real tensor of any shape, e.g. (b, l, d, 1).
        rule: "euler", "zoh", "bilinear" or GeneralizedBilinear(alpha).
    Returns:
        A_bar, shape of dt * A; and B_bar, shape of dt * A * B.
    Raises:
        ValueError: The shapes do not broadcast, or the rule is unknown.
    Source: Gupta et al. 2022, DSS, eq. 4 (zoh); Gu et al. 2022, S4, eq. 3 (bilinear); Gu & Dao 2023, Mamba (euler).
    """
    alpha = _implicitness("discretize_diagonal", rule)
    shapes = [tuple(t.shape) for t in (A, B, dt) if isinstance(t, Tensor)]
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(f"discretize_diagonal: the shapes of A, B, dt, {shapes}, do not broadcast") from None
    u = dt * A
    if alpha is not None:
        q = 1 / (1 - alpha * u)
        return (1 + (1 - alpha) * u) * q, dt * q * B
    return u.exp(), (dt if rule == "euler" else dt * phi1(u)) * B


def discretize_dense(
    A: Inexact[Tensor, "*a n n"],
    B: Inexact[Tensor, "*b n m"],
    dt: float | Float[Tensor, "*c"],
    rule: Rule | GeneralizedBilinear = "zoh",
) -> tuple[Inexact[Tensor, "*abc n n"], Inexact[Tensor, "*abc n m"]]:
    """Discretise a system with a full state matrix. Zero-order hold also takes a singular A.

    Args:
        A: State matrix, real or complex, in 1/time, shape (*a, n, n).
        B: Input matrix, shape (*b, n, m).
        dt: Step, in time; a number or a real tensor, shape (*c). The leading axes a, b and c broadcast.
        rule: "euler", "zoh", "bilinear" or GeneralizedBilinear(alpha).
    Returns:
        A_bar, shape (*abc, n, n); and B_bar, shape (*abc, n, m).
    Raises:
        ValueError: A is not square, B does not fit it, the leading axes do not broadcast, or the rule is unknown.
    Source: Van Loan 1978, Computing integrals involving the matrix exponential (zoh by one exponential).
    """
    alpha = _implicitness("discretize_dense", rule)
    A, B, step = _dense_arguments(A, B, dt)
    n, m = B.shape[-2:]
    if alpha is not None:
        eye = torch.eye(n, dtype=A.dtype, device=A.device)
        right = torch.cat([eye + (1 - alpha) * step * A, step * B], -1)
        both = torch.linalg.solve(eye - alpha * step * A, right)
        return both[..., :n], both[..., n:]
    if rule == "euler":
        return _matrix_exp(step * A), step * B
    # exp of [[A, B], [0, 0]] dt is [[A_bar, B_bar], [0, 1]]: no inverse of A is taken.
    top = torch.cat([A, B], -1)
    block = torch.cat([top, top.new_zeros(*top.shape[:-2], m, n + m)], -2)
    both = _matrix_exp(step * block)[..., :n, :]
    return both[..., :n], both[..., n:]


def phi1(u: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
    """(e^u - 1) / u, the input weight of zero-order hold, accurate and smooth at and around u = 0.

    Args:
        u: Real or complex floats, any shape.
    Returns:
        phi1(u), shape and dtype of u; its gradient at 0 is 1/2.
    Raises:
        ValueError: u is neither real nor complex floating point.
    """
    if not (u.is_floating_point() or u.is_complex()):
        raise ValueError(f"phi1: u has dtype {str(u.dtype).removeprefix('torch.')}, expected floats")
    small = u.abs() < 0.25
    # Each branch sees harmless numbers where the other one is taken: a nan there would reach the gradient.
    near, far = torch.where(small, u, 0), torch.where(small, 1, u)
    series = torch.ones_like(u)
    for k in range(13, 1, -1):  # 0.25^12 / 13! is below the last bit of float64
        series = 1 + near / k * series
    return torch.where(small, series, torch.expm1(far) / far)


def _implicitness(op: str, rule: Rule | GeneralizedBilinear) -> float | None:
    """alpha of the rules that are generalised bilinear transforms, None for the exponential ones."""
    if isinstance(rule, GeneralizedBilinear):
        return rule.alpha
    check_choice(op, "rule", rule, RULES)
    return 0.5 if rule == "bilinear" else None


def _matrix_exp(M: Tensor) -> Tensor:
    """torch's exponential, but a single matrix goes in as two: alone it may be off by 1e-10 (pytorch issue 196592)."""
    if M.shape[:-2].numel() != 1:
        return torch.linalg.matrix_exp(M)
    flat = M.reshape(M.shape[-2:])
    return torch.linalg.matrix_exp(torch.stack([flat, flat]))[0].reshape(M.shape)


def _dense_arguments(A: Tensor, B: Tensor, dt: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A and B with common leading axes and dtype; dt as a tensor that multiplies them."""
    op = "discretize_dense"
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"{op}: A has shape {tuple(A.shape)}, expected (*a, n, n)")
    n = A.shape[-1]
    if B.ndim < 2 or B.shape[-2] != n:
        raise ValueError(f"{op}: B has shape {tuple(B.shape)}, expected (*b, n={n} from A, m)")
    dtype = torch.promote_types(A.dtype, B.dtype)
    # A number becomes a tensor of A's own precision, so that it does not round to the default float32.
    step = dt if isinstance(dt, Tensor) else torch.tensor(dt, dtype=dtype.to_real(), device=A.device)
    dtype = torch.promote_types(dtype, step.dtype)
    try:
        lead = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2], step.shape)
    except RuntimeError:
        shapes = [tuple(t.shape) for t in (A, B, step)]
        raise ValueError(f"{op}: the leading axes of A, B, dt, with shapes {shapes}, do not broadcast") from None
    A, B = A.to(dtype), B.to(dtype)
    return A.expand(*lead, n, n), B.expand(*lead, *B.shape[-2:]), step[..., None, None]
