"""Online projection: a sequence's past as HiPPO coefficients, and back.

LegS keeps all of [0, t]. It knows no timescale, so it is discretised in log-time, where c' = (A c + B f) / t has
constant coefficients: there zero-order hold is exact for samples held over their step. LegT and FouT keep a window.

Names: f samples; c coefficients; s position in the window, 0 oldest and 1 now. Shapes: b batch, l samples, n
coefficients, q positions.
Source: Gu et al. 2020, HiPPO, sec. 2.2-2.4; Gu et al. 2022, How to train your HiPPO.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .array_types import Float
from .discretization import GeneralizedBilinear, Rule, discretize_dense
from .hippo import Hippo, fout, legs, legt
from .registry import resolve


def project_history(
    f: Float[Tensor, "*b l"], n: int, rule: Rule | GeneralizedBilinear = "zoh"
) -> Float[Tensor, "*b l n"]:
    """LegS coefficients of all samples so far, at every step.

        c[1] = f[1] e_0,   c[k] = E c[k-1] + A^-1 (E - 1) B f[k],   E = exp(A ln(k / (k - 1)))

    Args:
        f: Samples, shape (*b, l). Their spacing does not matter.
        n: Number of Legendre polynomials.
        rule: "zoh" is exact for piecewise constant f; "bilinear" is of second order in 1 / k, the others of first.
    Returns:
        c, shape (*b, l, n), dtype of f; c[..., k, :] describes f[..., : k + 1].
    Raises:
        ValueError: f has no samples, n < 1, or the rule is unknown.
    Source: Gu et al. 2020, HiPPO, theorem 2; the exact rule from the change of variable t = e^x.
    """
    _check_samples("project_history", f)
    A, B = (t.to(f) for t in legs(n))
    c = torch.cat([f[..., :1], f.new_zeros(*f.shape[:-1], n - 1)], -1)
    history = [c]
    # Transitions of 64 steps at once: one by one is slow, and all together takes l n^2 of memory.
    for steps in torch.arange(2, f.shape[-1] + 1, dtype=torch.float64).split(64):
        log_steps = -torch.log1p(-1 / steps).to(f)  # ln(k / (k - 1))
        for k, E, weight in zip(steps, *discretize_dense(A, B[:, None], log_steps, rule), strict=True):
            c = c @ E.T + f[..., int(k) - 1, None] * weight[:, 0]
            history.append(c)
    return torch.stack(history, -2)


SLIDING: dict[str, Callable[[int, float], Hippo]] = {"legt": legt, "fout": fout}


def project_window(
    f: Float[Tensor, "*b l"],
    n: int,
    window: float,
    measure: str = "legt",
    rule: Rule | GeneralizedBilinear = "zoh",
) -> Float[Tensor, "*b l n"]:
    """Coefficients of the last `window` samples, at every step; the past before f is zero.

    Unlike LegS this is approximate for any rule: the sample that leaves the window is read off the coefficients.

    Args:
        f: Samples, shape (*b, l).
        n: Number of basis functions; even for FouT.
        window: Length of the window, in samples.
        measure: "legt" or "fout".
        rule: How the system is discretised, at a step of one sample.
    Returns:
        c, shape (*b, l, n), dtype of f; c[..., k, :] describes f[..., k + 1 - window : k + 1].
    Raises:
        ValueError: f has no samples, n or window does not fit the measure, or a name is unknown.
    Source: Gu et al. 2020, HiPPO, theorem 1 (LegT); Gu et al. 2022, How to train your HiPPO, sec. 4 (FouT).
    """
    _check_samples("project_window", f)
    A, B = (t.to(f) for t in resolve(measure, SLIDING, "sliding measure")(n, window))
    E, weight = discretize_dense(A, B[:, None], 1.0, rule)
    c = f.new_zeros(*f.shape[:-1], n)
    history = []
    for sample in f.unbind(-1):
        c = c @ E.T + sample[..., None] * weight[:, 0]
        history.append(c)
    return torch.stack(history, -2)


def basis(measure: str, n: int, s: Float[Tensor, "q"]) -> Float[Tensor, "q n"]:
    """The orthonormal basis of a measure on [0, 1].

    Args:
        measure: "legs" or "legt" (shifted Legendre polynomials), or "fout" (cosines and sines of age, 1 - s).
        n: Number of basis functions; even for FouT.
        s: Positions, 0 the oldest end and 1 now, shape (q,).
    Returns:
        g, shape (q, n), dtype of s, with integral g_i g_j over [0, 1] = [i = j] (FouT's second function is 0).
    Raises:
        ValueError: No such measure, n does not fit it, or s is not of one axis.
    Source: Gu et al. 2020, HiPPO, appendix B.1.
    """
    if s.ndim != 1:
        raise ValueError(f"basis: s has shape {tuple(s.shape)}, expected (q,)")
    return resolve(measure, BASES, "basis")(n, s)


def reconstruct(c: Float[Tensor, "*b n"], s: Float[Tensor, "q"], measure: str = "legs") -> Float[Tensor, "*b q"]:
    """The function that the coefficients describe, at positions in its window.

    Args:
        c: Coefficients, shape (*b, n).
        s: Positions, 0 the oldest end and 1 now, shape (q,): sample i of l, held over its step, is centred at
            (i + 1/2) / l.
        measure: What c was projected with: "legs", "legt" or "fout".
    Returns:
        Values, shape (*b, q).
    Raises:
        ValueError: No such measure, or a shape does not fit.
    Source: Gu et al. 2020, HiPPO, eq. 4.
    """
    if c.ndim < 1:
        raise ValueError("reconstruct: c has shape (), expected (*b, n)")
    return c @ basis(measure, c.shape[-1], s).to(c).T


def _legendre(n: int, s: Tensor) -> Tensor:
    """sqrt(2k + 1) P_k(2s - 1), by Bonnet's three-term recurrence."""
    norms = legs(n).B.to(s)
    x = 2 * s - 1
    columns = [torch.ones_like(x), x]
    for k in range(1, n - 1):
        columns.append(((2 * k + 1) * x * columns[k] - k * columns[k - 1]) / (k + 1))
    return torch.stack(columns[:n], -1) * norms


def _fourier(n: int, s: Tensor) -> Tensor:
    """cos and sin of 2 pi k (1 - s), interleaved, of unit norm."""
    norms = fout(n).B.to(s)[0::2] / 2
    angle = 2 * math.pi * torch.arange(n // 2).to(s) * (1 - s)[:, None]
    return torch.stack([angle.cos() * norms, angle.sin() * norms], -1).flatten(1)


BASES: dict[str, Callable[[int, Tensor], Tensor]] = {"legs": _legendre, "legt": _legendre, "fout": _fourier}


def _check_samples(op: str, f: Tensor) -> None:
    if f.ndim < 1 or f.shape[-1] < 1:
        raise ValueError(f"{op}: f has shape {tuple(f.shape)}, expected (*b, l) with l >= 1")
    if not f.is_floating_point():
        raise ValueError(f"{op}: f has dtype {str(f.dtype).removeprefix('torch.')}, expected a real floating dtype")
