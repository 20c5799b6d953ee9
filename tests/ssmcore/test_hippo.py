"""HiPPO matrices against the integrals that define them, and their diagonal-plus-low-rank and diagonal forms."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch

from ssmcore.hippo import (
    MEASURES,
    S4D_INITS,
    fout,
    fout_dplr,
    hippo,
    lagt,
    legs,
    legs_dplr,
    legt,
    s4d_inv,
    s4d_legs,
    s4d_lin,
    s4d_poles,
    s4d_real,
)

F64, C128 = torch.float64, torch.complex128


def _legendre(k, x):
    return math.sqrt(2 * k + 1) * scipy.special.eval_legendre(k, 2 * x - 1)


def _coefficients(f, basis, n, start, end):
    """Integral of f(s) basis_k((s - start) / (end - start)) over the window, divided by its length."""
    width = end - start
    nodes, weights = np.polynomial.legendre.leggauss(60)
    s = (nodes + 1) / 2
    return np.array([(weights / 2 * f(start + width * s) * basis(k, s)).sum() for k in range(n)])


def test_legs_matrix_by_hand():
    A, B = legs(3)
    expected = [[1, 0, 0], [math.sqrt(3), 2, 0], [math.sqrt(5), math.sqrt(15), 3]]
    torch.testing.assert_close(A, -torch.tensor(expected, dtype=F64), rtol=0, atol=1e-15)
    torch.testing.assert_close(B, torch.tensor([1, 3, 5], dtype=F64).sqrt())


def test_legs_is_the_derivative_of_the_projection_of_all_the_past():
    n, t = 6, 1.7
    A, B = legs(n)
    c = torch.from_numpy(_coefficients(np.sin, _legendre, n, 0.0, t))
    h = 1e-4
    later, earlier = (_coefficients(np.sin, _legendre, n, 0.0, t + d) for d in (h, -h))
    torch.testing.assert_close(
        (A @ c + B * math.sin(t)) / t, torch.from_numpy(later - earlier) / (2 * h), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("window", [1.0, 0.6])
def test_legt_is_the_derivative_of_the_projection_of_a_window(window):
    # Exact only where the function is a polynomial of degree < n: there the window's far end is known.
    n, t, h = 5, 1.3, 1e-4

    def f(s):
        return 1 - 2 * s + s**2 - 0.3 * s**4

    A, B = legt(n, window)
    c, later, earlier = (torch.from_numpy(_coefficients(f, _legendre, n, t + d - window, t + d)) for d in (0, h, -h))
    torch.testing.assert_close(A @ c + B * f(t), (later - earlier) / (2 * h), rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [1.0, 0.6])
def test_fout_is_the_derivative_of_the_projection_of_a_window(window):
    # Exact where the function is periodic in the window, with frequencies < n / 2.
    n, t, h = 8, 1.3, 1e-4

    def f(s):
        return 0.5 + np.cos(2 * np.pi * s / window) - 0.4 * np.sin(6 * np.pi * s / window)

    def basis(k, s):
        angle = 2 * np.pi * (k // 2) * (1 - s)
        return 1.0 * (k == 0) if k < 2 else math.sqrt(2) * (np.sin(angle) if k % 2 else np.cos(angle))

    A, B = fout(n, window)
    c, later, earlier = (torch.from_numpy(_coefficients(f, basis, n, t + d - window, t + d)) for d in (0, h, -h))
    torch.testing.assert_close(A @ c + B * f(t), (later - earlier) / (2 * h), rtol=1e-5, atol=1e-5)


def test_lagt_is_the_derivative_of_the_projection_on_laguerre_functions():
    n, t, h = 5, 2.0, 1e-4
    A, B = lagt(n)

    def coefficients(t):
        def c(k):
            def integrand(age):
                return math.cos(t - age) * scipy.special.eval_laguerre(k, age) * math.exp(-age / 2)

            return scipy.integrate.quad(integrand, 0, 120, limit=400, epsabs=1e-12)[0]

        return torch.tensor([c(k) for k in range(n)], dtype=F64)

    slope = (coefficients(t + h) - coefficients(t - h)) / (2 * h)
    torch.testing.assert_close(A @ coefficients(t) + B * math.cos(t), slope, rtol=0, atol=1e-6)
    # A constant input settles where the integral of a Laguerre function is, 2 (-1)^k.
    torch.testing.assert_close(-torch.linalg.solve(A, B), 2 * (-1.0) ** torch.arange(n).double())


@pytest.mark.parametrize("n", [2, 16, 64])
def test_published_forms(n):
    # S4's released LegT and FouT have a window of length 2; LMU's matrix is LegT with other norms (up to signs).
    A, B = legt(n, 2.0)
    k = torch.arange(n, dtype=F64)
    q = (2 * k + 1).sqrt()
    sign = torch.where(k[:, None] >= k, 1.0, (-1.0) ** (k[:, None] - k))
    torch.testing.assert_close(A, -0.5 * q[:, None] * q * sign)
    torch.testing.assert_close(B, 0.5 * q)
    lmu = (2 * k + 1)[:, None] * torch.where(k[:, None] < k, -1.0, (-1.0) ** (k[:, None] - k + 1))
    turn = (-1.0) ** k
    torch.testing.assert_close(legt(n).A, (turn / q)[:, None] * lmu * (turn * q))
    A, B = fout(n, 2.0)
    skew = A + B[:, None] * B
    torch.testing.assert_close(skew, -skew.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(skew.diagonal(-1)[0::2], math.pi * k[: n // 2])
    assert B[:4].tolist() == [1, 0, math.sqrt(2), 0][:n]


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_is_named_and_stable(name):
    A, B = hippo(name, 16)
    assert A.shape == (16, 16)
    assert B.shape == (16,)
    assert A.dtype == B.dtype == F64
    real = torch.linalg.eigvals(A).real
    dead = name == "fout"  # the sine of frequency 0
    assert (real < -1e-6).sum() == 16 - dead
    assert torch.equal(A, MEASURES[name](16).A)


@pytest.mark.parametrize("n", [2, 4, 16, 64])
def test_legs_plus_rank_one_is_normal(n):
    A, B = legs(n)
    normal = A + 0.5 * B[:, None] * B
    assert (normal + normal.T + torch.eye(n, dtype=F64)).abs().max() <= 5e-14  # -1/2 + skew
    size = torch.linalg.matrix_norm(normal, 2)
    assert torch.linalg.matrix_norm(normal @ normal.T - normal.T @ normal, 2) <= 1e-14 * size**2


@pytest.mark.parametrize("n", [2, 4, 16, 64])
@pytest.mark.parametrize(("make", "dense"), [(legs_dplr, legs), (fout_dplr, fout)])
def test_dplr_rebuilds_the_dense_matrix(make, dense, n):
    A, B = dense(n)
    Lambda, P, b, V = make(n, half=False)
    eye = torch.eye(n, dtype=C128)
    torch.testing.assert_close(V.mH @ V, eye, rtol=0, atol=2e-13)
    rebuilt = V @ (torch.diag(Lambda) - P[:, None] * P.conj()) @ V.mH
    torch.testing.assert_close(rebuilt, A.to(C128), rtol=0, atol=1e-14 * A.abs().max().item() * n)
    torch.testing.assert_close(V @ b, B.to(C128), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [legs_dplr, fout_dplr])
def test_half_keeps_one_pole_of_each_pair(make):
    whole, half = make(12, half=False), make(12)
    assert half.Lambda.shape == half.P.shape == half.B.shape == (6,)
    assert half.V.shape == (12, 6)
    assert (half.Lambda.imag >= 0).all()
    assert (half.Lambda.imag.diff() > 0).all()
    for kept, everything in zip(half, whole, strict=True):
        assert torch.equal(everything, torch.cat([kept, kept.conj()], -1))
    # A x through the halves: h = V* x, x = 2 Re(V h), P* h = 2 Re(P* h).
    dense = {legs_dplr: legs, fout_dplr: fout}[make](12).A
    x = torch.randn(12, dtype=F64)
    h = half.V.mH @ x.to(C128)
    moved = half.Lambda * h - half.P * 2 * (half.P.conj() @ h).real
    torch.testing.assert_close(2 * (half.V @ moved).real, dense @ x, rtol=0, atol=1e-12)


def test_legs_dplr_has_canonical_phases():
    form = legs_dplr(32)
    for part in (form.P, form.B):
        assert (part.imag == 0).all()
        assert (part.real > 0).all()
    torch.testing.assert_close(form.Lambda.real, torch.full((16,), -0.5, dtype=F64), rtol=0, atol=0)


def test_fout_dplr_window_scales_time():
    short, long = fout_dplr(8, half=False, window=0.5), fout(8, 0.5)
    rebuilt = short.V @ (torch.diag(short.Lambda) - short.P[:, None] * short.P.conj()) @ short.V.mH
    torch.testing.assert_close(rebuilt, long.A.to(C128), rtol=0, atol=1e-13)
    torch.testing.assert_close(short.V @ short.B, long.B.to(C128), rtol=0, atol=1e-13)


def test_s4d_inits():
    k = torch.arange(4, dtype=F64)
    half = torch.full((4,), -0.5, dtype=F64)
    torch.testing.assert_close(s4d_lin(8), torch.complex(half, math.pi * k), rtol=1e-15, atol=0)
    inv = torch.tensor([56 / math.pi, 8 / math.pi * (8 / 3 - 1), 8 / math.pi * 0.6, 8 / math.pi / 7], dtype=F64)
    torch.testing.assert_close(s4d_inv(8), torch.complex(half, inv), rtol=1e-15, atol=1e-15)
    assert s4d_real(3).tolist() == [-1, -2, -3]
    torch.testing.assert_close(s4d_real(8), torch.linalg.eigvals(legs(8).A).real.sort(descending=True).values)
    A, B = legs(8)
    spectrum = torch.linalg.eigvals(A + 0.5 * B[:, None] * B)
    upper = spectrum[spectrum.imag > 0]
    torch.testing.assert_close(s4d_legs(8), upper[upper.imag.argsort()], rtol=0, atol=1e-12)
    # The inverse law was made to follow LegS: its lowest and highest frequencies are close.
    torch.testing.assert_close(s4d_inv(64).imag.max(), s4d_legs(64).imag.max(), rtol=0.15, atol=0)


@pytest.mark.parametrize("name", S4D_INITS)
def test_s4d_inits_by_name_decay(name):
    poles = s4d_poles(name, 16)
    assert poles.shape == ((16,) if name == "real" else (8,))
    assert (poles.real < 0).all()
    assert torch.equal(poles, S4D_INITS[name](16))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="unknown HiPPO measure 'leg'; did you mean 'leg"):
        hippo("leg", 4)
    with pytest.raises(ValueError, match="unknown S4D init 'linear'; did you mean 'lin'"):
        s4d_poles("linear", 4)
    for make in (legs, legt, lagt, s4d_real):
        with pytest.raises(ValueError, match="n=0, expected a state size of at least 1"):
            make(0)
    for make in (fout, legs_dplr, fout_dplr, s4d_lin, s4d_inv, s4d_legs):
        with pytest.raises(ValueError, match=f"{make.__name__.split('_dplr')[0]}.*n=5, expected an even"):
            make(5)
    for make in (legt, fout, lambda n, w: fout_dplr(n, window=w)):
        with pytest.raises(ValueError, match=r"window=-1\.0, expected a positive length"):
            make(4, -1.0)
