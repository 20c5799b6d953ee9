"""HiPPO: state matrices whose state is the projection of the input's past on an orthonormal basis.

    LegS   c' = (A c + B f) / t    Legendre polynomials on all of [0, t]
    LegT   c' =  A c + B f         Legendre polynomials on the window [t - w, t]
    FouT   c' =  A c + B f         Fourier series on the window [t - w, t]
    LagT   c' =  A c + B f         Laguerre functions of the age t - s, on the whole past

Names: A, B state and input matrix; Lambda, P, V the diagonal-plus-low-rank form A = V (diag(Lambda) - P P*) V* of S4,
V unitary; poles = Lambda of the diagonal models. All are made in float64 or complex128 on the CPU, once, when a model
is built: cast the result. Shapes: n state size, m = n / 2 conjugate pairs.
Source: Gu et al. 2020, HiPPO; Gu et al. 2022, How to train your HiPPO; Gu et al. 2022, S4 (theorem 1); S4D (sec. 4).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .array_types import Complex, Float, Inexact
from .registry import resolve


class Hippo(NamedTuple):
    """A dense HiPPO system, float64."""

    A: Float[Tensor, "n n"]
    B: Float[Tensor, "n"]


class Dplr(NamedTuple):
    """A = V (diag(Lambda) - P P*) V* and V* B, complex128; m columns of V: all n, or one of each conjugate pair.

    With one of each pair, a real state is 2 Re(V h), and P* h becomes 2 Re(P* h).
    """

    Lambda: Complex[Tensor, "m"]
    P: Complex[Tensor, "m"]
    B: Complex[Tensor, "m"]
    V: Complex[Tensor, "n m"]


def legs(n: int) -> Hippo:
    """Scaled Legendre measure: the whole past, evenly weighted. Timescale-free: c' = (A c + B f) / t.

    Args:
        n: State size, number of polynomials.
    Returns:
        A, shape (n, n), lower triangular with eigenvalues -1..-n; B, shape (n,).
    Raises:
        ValueError: n < 1.
    Source: Gu et al. 2020, HiPPO, theorem 2.
    """
    root = _legendre_norms("legs", n)
    A = -root[:, None] * root
    return Hippo(A.tril(-1) - torch.diag(torch.arange(1.0, n + 1, dtype=torch.float64)), root)


def legt(n: int, window: float = 1.0) -> Hippo:
    """Translated Legendre measure: a sliding window, evenly weighted. The LMU's system, orthonormalised.

    Args:
        n: State size, number of polynomials.
        window: Length of the window, in the unit of time that dt is given in; 2 gives the matrices of S4's code.
    Returns:
        A, shape (n, n), in 1/time; B, shape (n,), in 1/time.
    Raises:
        ValueError: n < 1 or window <= 0.
    Source: Gu et al. 2020, HiPPO, theorem 1; Voelker et al. 2019, LMU.
    """
    root = _legendre_norms("legt", n)
    _check_window("legt", window)
    k = torch.arange(n)
    parity = 1.0 - 2.0 * ((k[:, None] - k) % 2).double()
    sign = torch.where(k[:, None] >= k, 1.0, parity)
    return Hippo(-sign * root[:, None] * root / window, root / window)


def lagt(n: int) -> Hippo:
    """Translated Laguerre measure: the whole past, fading as e^(-age / 2) per unit of time.

    Args:
        n: State size, number of Laguerre functions.
    Returns:
        A, shape (n, n): -1/2 on the diagonal, -1 below; B, shape (n,), ones.
    Raises:
        ValueError: n < 1.
    Source: Gu et al. 2020, HiPPO, appendix D.2 (alpha = beta = 0).
    """
    _check_size("lagt", n)
    eye = torch.eye(n, dtype=torch.float64)
    return Hippo(eye / 2 - torch.ones_like(eye).tril(), torch.ones(n, dtype=torch.float64))


def fout(n: int, window: float = 1.0) -> Hippo:
    """Translated Fourier measure: cosines and sines of age on a sliding window.

    State 2k holds sqrt(2) cos(2 pi k age / window), state 2k + 1 the sine; state 1 (the sine of frequency 0) stays 0.

    Args:
        n: State size, even.
        window: Length of the window, in the unit of time that dt is given in; 2 gives the matrices of S4's code.
    Returns:
        A, shape (n, n), in 1/time; B, shape (n,), in 1/time.
    Raises:
        ValueError: n is odd or < 2, or window <= 0.
    Source: Gu et al. 2022, How to train your HiPPO, sec. 4 (FouT).
    """
    _check_even("fout", n)
    _check_window("fout", window)
    b = torch.zeros(n, dtype=torch.float64)
    b[0::2] = math.sqrt(2)
    b[0] = 1
    turns = torch.zeros(n - 1, dtype=torch.float64)
    turns[0::2] = math.pi * torch.arange(n // 2, dtype=torch.float64)
    skew = torch.diag(turns, -1) - torch.diag(turns, 1)
    return Hippo(2 / window * (skew - b[:, None] * b), 2 / window * b)


MEASURES: dict[str, Callable[[int], Hippo]] = {"legs": legs, "legt": legt, "lagt": lagt, "fout": fout}


def hippo(measure: str, n: int) -> Hippo:
    """The system of a measure by its name.

    Args:
        measure: A key of MEASURES.
        n: State size.
    Returns:
        A, shape (n, n); B, shape (n,); windows have length 1.
    Raises:
        ValueError: No such measure (with near misses), or a size it does not take.
    """
    return resolve(measure, MEASURES, "HiPPO measure")(n)


def legs_dplr(n: int, half: bool = True) -> Dplr:
    """LegS as a normal matrix minus a rank-1 term: A = V (diag(Lambda) - P P*) V*.

    A + p pᵀ with p = sqrt(k + 1/2) is -1/2 plus a skew matrix, hence normal, with poles -1/2 ± i w, w > 0. Eigenvectors
    are turned so that P and B are real and positive: the result does not depend on the phases LAPACK happens to choose.

    Args:
        n: State size, even.
        half: Keep the pole with w > 0 of each conjugate pair, by increasing w; else append all the conjugates.
    Returns:
        Lambda, P, B, shape (m,), and V, shape (n, m); m = n / 2 if half else n.
    Raises:
        ValueError: n is odd or < 2.
    Source: Gu et al. 2022, S4, theorem 1 and appendix C.1.
    """
    _check_even("legs_dplr", n)
    A, B = legs(n)
    p = B / math.sqrt(2)
    normal = A + p[:, None] * p
    frequencies, V = torch.linalg.eigh(-0.5j * (normal - normal.T))
    w, V = frequencies[n // 2 :], V[:, n // 2 :]
    overlap = V.mH @ B.to(V.dtype)
    V = V * (overlap / overlap.abs())
    size = overlap.abs().to(V.dtype)
    poles = torch.complex(torch.full_like(w, -0.5), w)
    return _all_poles(Dplr(poles, size / math.sqrt(2), size, V), half)


def fout_dplr(n: int, half: bool = True, window: float = 1.0) -> Dplr:
    """FouT as a normal matrix minus a rank-1 term: poles 2 pi i k / window on the imaginary axis, in closed form.

    Args:
        n: State size, even.
        half: Keep the pole with k >= 0 of each conjugate pair (k = 0 has a pair too); else append the conjugates.
        window: Length of the window, in the unit of time that dt is given in.
    Returns:
        Lambda, P, B, shape (m,), and V, shape (n, m); m = n / 2 if half else n.
    Raises:
        ValueError: n is odd or < 2, or window <= 0.
    Source: Gu et al. 2022, S4, appendix C.1; How to train your HiPPO, sec. 4.
    """
    _, B = fout(n, window)
    pair = torch.tensor([[1], [-1j]], dtype=torch.complex128) * math.sqrt(0.5)
    V = torch.kron(torch.eye(n // 2, dtype=torch.complex128), pair)
    w = 2 * math.pi / window * torch.arange(n // 2, dtype=torch.float64)
    poles = torch.complex(torch.zeros_like(w), w)
    b = V.mH @ B.to(V.dtype)
    return _all_poles(Dplr(poles, b * math.sqrt(window / 2), b, V), half)


def s4d_lin(n: int) -> Complex[Tensor, "m"]:
    """S4D-Lin: -1/2 + i pi k, FouT's frequencies with a decay.

    Args:
        n: State size, even: two real states a pole.
    Returns:
        Poles with k = 0..n/2 - 1, shape (n / 2,); their conjugates are implied.
    Raises:
        ValueError: n is odd or < 2.
    Source: Gu et al. 2022, S4D, sec. 4.
    """
    _check_even("s4d_lin", n)
    return torch.complex(torch.full((n // 2,), -0.5, dtype=torch.float64), math.pi * torch.arange(n // 2).double())


def s4d_inv(n: int) -> Complex[Tensor, "m"]:
    """S4D-Inv: -1/2 + i (n / pi) (n / (2k + 1) - 1), an inverse law close to LegS's own spectrum.

    Args:
        n: State size, even: two real states a pole.
    Returns:
        Poles with k = 0..n/2 - 1, by decreasing frequency, shape (n / 2,); their conjugates are implied.
    Raises:
        ValueError: n is odd or < 2.
    Source: Gu et al. 2022, S4D, sec. 4.
    """
    _check_even("s4d_inv", n)
    frequency = n / math.pi * (n / torch.arange(1, n, 2, dtype=torch.float64) - 1)
    return torch.complex(torch.full_like(frequency, -0.5), frequency)


def s4d_legs(n: int) -> Complex[Tensor, "m"]:
    """S4D-LegS: the poles of S4's LegS, without its low-rank term.

    Args:
        n: State size, even: two real states a pole.
    Returns:
        Poles by increasing frequency, shape (n / 2,); their conjugates are implied.
    Raises:
        ValueError: n is odd or < 2.
    Source: Gu et al. 2022, S4D, sec. 4.
    """
    _check_even("s4d_legs", n)
    return legs_dplr(n).Lambda


def s4d_real(n: int) -> Float[Tensor, "n"]:
    """S4D-Real: -(k + 1), LegS's own eigenvalues; Mamba's initial A.

    Args:
        n: State size: one real state a pole.
    Returns:
        Poles -1..-n, shape (n,).
    Raises:
        ValueError: n < 1.
    Source: Gu et al. 2022, S4D, sec. 4; Gu & Dao 2023, Mamba, sec. 3.6.
    """
    _check_size("s4d_real", n)
    return -torch.arange(1.0, n + 1, dtype=torch.float64)


S4D_INITS: dict[str, Callable[[int], Tensor]] = {"lin": s4d_lin, "inv": s4d_inv, "legs": s4d_legs, "real": s4d_real}


def s4d_poles(init: str, n: int) -> Inexact[Tensor, "poles"]:
    """The initial poles of a diagonal model by name.

    Args:
        init: A key of S4D_INITS.
        n: State size, counted in real numbers.
    Returns:
        n / 2 complex poles of conjugate pairs, shape (n / 2,); for "real", n real ones, shape (n,).
    Raises:
        ValueError: No such init (with near misses), or a size it does not take.
    """
    return resolve(init, S4D_INITS, "S4D init")(n)


def _all_poles(form: Dplr, half: bool) -> Dplr:
    return form if half else Dplr(*(torch.cat([t, t.conj()], -1) for t in form))


def _legendre_norms(op: str, n: int) -> Tensor:
    _check_size(op, n)
    return torch.arange(1, 2 * n, 2, dtype=torch.float64).sqrt()


def _check_size(op: str, n: int) -> None:
    if n < 1:
        raise ValueError(f"{op}: n={n}, expected a state size of at least 1")


def _check_even(op: str, n: int) -> None:
    if n < 2 or n % 2:
        raise ValueError(f"{op}: n={n}, expected an even state size, as its poles come in conjugate pairs")


def _check_window(op: str, window: float) -> None:
    if window <= 0:
        raise ValueError(f"{op}: window={window}, expected a positive length of time")
