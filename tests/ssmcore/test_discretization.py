"""Discretisation against closed forms, scipy, the scan operator's own formulas, and numerical gradients."""

import cmath
import math

import mpmath
import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch
from ssm_kernels.selective_scan import reference
from torch.autograd import gradcheck, gradgradcheck

from ssmcore.discretization import RULES, GeneralizedBilinear, discretize_dense, discretize_diagonal, phi1

EVERY_RULE = [*RULES, GeneralizedBilinear(0.0), GeneralizedBilinear(0.3), GeneralizedBilinear(1.0)]
F64, C128 = torch.float64, torch.complex128


def _stable(n, dtype=F64, seed=0):
    g = torch.Generator().manual_seed(seed)
    A = -torch.rand(n, generator=g, dtype=F64) - 0.1
    return torch.complex(A, torch.randn(n, generator=g, dtype=F64)) if dtype.is_complex else A


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("rule", RULES)
def test_agrees_with_the_scan_operator(rule, dtype):
    A = torch.cat([_stable(6, dtype), _stable(6, dtype) * 1e-3, _stable(6, dtype) * 100, torch.zeros(1, dtype=dtype)])
    dt = torch.tensor([1e-3, 0.1, 2.0], dtype=F64)[:, None]
    B = torch.randn(19, dtype=dtype)
    A_bar, B_bar = discretize_diagonal(A, B, dt, rule)
    decay, weight = reference.discretize(dt, A, rule)
    torch.testing.assert_close(A_bar, decay, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(B_bar, weight * B, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("rule", EVERY_RULE)
def test_dense_equals_diagonal_on_a_diagonal_matrix(rule, dtype):
    A, B = _stable(5, dtype), torch.randn(5, dtype=dtype)
    A_bar, B_bar = discretize_diagonal(A, B, 0.7, rule)
    dense_A, dense_B = discretize_dense(torch.diag(A), B[:, None], 0.7, rule)
    torch.testing.assert_close(dense_A, torch.diag(A_bar), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(dense_B[:, 0], B_bar, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_dense_commutes_with_a_change_of_basis(rule):
    A, B = torch.diag(_stable(4)), torch.randn(4, 2, dtype=F64)
    Q = torch.linalg.qr(torch.randn(4, 4, dtype=F64)).Q
    plain, turned = discretize_dense(A, B, 0.4, rule), discretize_dense(Q @ A @ Q.T, Q @ B, 0.4, rule)
    torch.testing.assert_close(turned[0], Q @ plain[0] @ Q.T, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(turned[1], Q @ plain[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("rule", "method"),
    [("zoh", {"method": "zoh"}), ("bilinear", {"method": "bilinear"})]
    + [(GeneralizedBilinear(a), {"method": "gbt", "alpha": a}) for a in (0.0, 0.25, 1.0)],
)
def test_dense_equals_scipy(rule, method):
    A, B = torch.randn(6, 6, dtype=F64) - 3 * torch.eye(6, dtype=F64), torch.randn(6, 2, dtype=F64)
    C = D = np.zeros((1, 6))
    expected = scipy.signal.cont2discrete((A.numpy(), B.numpy(), C, D[:, :2]), 0.3, **method)
    A_bar, B_bar = discretize_dense(A, B, 0.3, rule)
    np.testing.assert_allclose(A_bar, expected[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(B_bar, expected[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dt", [1e-6, 1e-3, 1e-2, 0.03, 0.049, 0.2, 1.0, 30.0])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_dense_exponential_is_accurate_for_one_small_matrix(n, dt):
    # torch's own exponential of a single small matrix is off by up to 1e-10.
    A = -torch.ones(n, n, dtype=F64).tril()
    A_bar, _ = discretize_dense(A, torch.ones(n, 1, dtype=F64), dt, "zoh")
    np.testing.assert_allclose(A_bar, scipy.linalg.expm(dt * A.numpy()), rtol=0, atol=3e-15)
    np.testing.assert_allclose(discretize_dense(A, A, dt, "euler")[0], A_bar, rtol=0, atol=3e-15)


def test_zero_order_hold_takes_a_singular_matrix():
    # A double integrator: position and velocity under constant acceleration.
    A, B = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=F64), torch.tensor([[0.0], [1.0]], dtype=F64)
    A_bar, B_bar = discretize_dense(A, B, 0.5)
    torch.testing.assert_close(A_bar, torch.tensor([[1, 0.5], [0, 1]], dtype=F64), rtol=0, atol=1e-16)
    torch.testing.assert_close(B_bar, torch.tensor([[0.125], [0.5]], dtype=F64), rtol=0, atol=1e-16)


def test_leading_axes_broadcast():
    A, B = torch.randn(3, 1, 4, 4, dtype=F64), torch.randn(4, 2, dtype=F64)
    dt = torch.rand(5, dtype=F64)
    for rule in EVERY_RULE:
        A_bar, B_bar = discretize_dense(A, B, dt, rule)
        one = discretize_dense(A[2, 0], B, dt[3].item(), rule)
        assert B_bar.shape[-2:] == (4, 2)
        torch.testing.assert_close(A_bar.expand(3, 5, 4, 4)[2, 3], one[0])
        torch.testing.assert_close(B_bar.expand(3, 5, 4, 2)[2, 3], one[1])


def test_mixed_precision_promotes():
    A, B = torch.randn(3, 3, dtype=torch.complex64), torch.randn(3, 1)
    assert [t.dtype for t in discretize_dense(A, B, 0.1)] == [torch.complex64] * 2
    assert [t.dtype for t in discretize_dense(A, B, torch.tensor(0.1, dtype=F64))] == [C128] * 2
    # A step given as a number is not rounded to float32.
    exact = discretize_dense(torch.full((1, 1), -1.0, dtype=F64), torch.ones(1, 1, dtype=F64), 0.1)[0]
    assert abs(exact.item() - math.exp(-0.1)) < 1e-15


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_order_of_accuracy_on_a_smooth_input(rule):
    # x' = -x + cos t: halving the step divides the error of one unit of time by 2 (by 4 when second order).
    def error(steps):
        dt = 1 / steps
        A_bar, B_bar = discretize_diagonal(torch.tensor(-1.0, dtype=F64), torch.tensor(1.0, dtype=F64), dt, rule)
        x = 0.0
        for t in range(steps):
            # The bilinear rule is second order when it reads the middle of the step, as zero-order hold is.
            x = A_bar * x + B_bar * math.cos((t + 0.5) * dt)
        return abs(float(x) - (math.cos(1) + math.sin(1) - math.exp(-1)) / 2)

    ratio = error(64) / error(128)
    second_order = rule in ("zoh", "bilinear")
    assert ratio == pytest.approx(4 if second_order else 2, rel=0.05)


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.0])
def test_implicit_rules_keep_stiff_systems_stable_and_explicit_ones_do_not(alpha):
    A = torch.tensor(-1000.0, dtype=F64)
    assert discretize_diagonal(A, A, 1.0, GeneralizedBilinear(alpha))[0].abs() < 1
    assert discretize_diagonal(A, A, 1.0, GeneralizedBilinear(0.0))[0].abs() > 1


def test_bilinear_is_the_generalised_one_at_one_half():
    A, B = _stable(4, C128), torch.ones(4, dtype=C128)
    for a, b in zip(
        discretize_diagonal(A, B, 0.3, "bilinear"),
        discretize_diagonal(A, B, 0.3, GeneralizedBilinear(0.5)),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_phi1_against_high_precision():
    mpmath.mp.dps = 40
    sizes = [0.0, 1e-300, 1e-12, 1e-6, 1e-3, 0.1, 0.2499, 0.25, 0.2501, 0.5, 3.0, 30.0, 700.0]
    for turn in (1, -1, 1j, cmath.exp(2.0j)):
        for size in sizes:
            u = turn * size
            exact = complex(mpmath.expm1(u) / u) if u else 1.0
            got = phi1(torch.tensor(u, dtype=C128)).item()
            assert abs(got - exact) <= 4e-15 * abs(exact), u
    real = torch.tensor(sizes, dtype=F64)
    torch.testing.assert_close(phi1(real), phi1(real.to(C128)).real, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_zoh_gradients_are_finite_and_right_at_and_around_zero(dtype):
    tiny = torch.tensor([0.0, 1e-30, -1e-9, 1e-3, -0.25, 0.25, -1e4], dtype=dtype, requires_grad=True)
    B = torch.ones(7, dtype=dtype)
    A_bar, B_bar = discretize_diagonal(tiny, B, 1.0)
    (grad,) = torch.autograd.grad(B_bar.real.sum(), tiny)
    assert grad.isfinite().all()
    assert grad[0] == 0.5  # phi1'(0)
    torch.testing.assert_close(grad[:4], 0.5 + tiny[:4].detach() / 3, rtol=0, atol=2e-7)
    A = torch.zeros(3, 3, dtype=F64, requires_grad=True)
    A_bar, B_bar = discretize_dense(A, torch.ones(3, 1, dtype=F64), 0.5)
    (grad,) = torch.autograd.grad(B_bar.sum() + A_bar.sum(), A)
    torch.testing.assert_close(grad, torch.full((3, 3), 0.5 + 0.125, dtype=F64))


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("rule", EVERY_RULE)
def test_gradcheck_diagonal(rule, dtype):
    A = torch.cat([_stable(3, dtype), _stable(1, dtype) * 1e-3]).requires_grad_()
    B = torch.randn(4, dtype=dtype, requires_grad=True)
    dt = torch.rand(2, 1, dtype=F64).add(0.1).requires_grad_()
    gradcheck(lambda *a: discretize_diagonal(*a, rule), (A, B, dt))
    gradgradcheck(lambda *a: discretize_diagonal(*a, rule), (A, B, dt))


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("rule", EVERY_RULE)
def test_gradcheck_dense(rule, dtype):
    A = torch.randn(2, 2, dtype=dtype, requires_grad=True)
    B = torch.randn(2, 1, dtype=dtype, requires_grad=True)
    dt = torch.tensor(0.3, dtype=F64, requires_grad=True)
    gradcheck(lambda *a: discretize_dense(*a, rule), (A, B, dt))


def test_errors_name_the_argument():
    A, B = torch.zeros(3, 3), torch.zeros(3, 1)
    for discretize in (discretize_diagonal, discretize_dense):
        with pytest.raises(ValueError, match="rule='foh', expected one of 'euler', 'zoh', 'bilinear'"):
            discretize(A, B, 0.1, "foh")
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        GeneralizedBilinear(1.5)
    with pytest.raises(ValueError, match=r"A, B, dt, \[\(3,\), \(4,\)\], do not broadcast"):
        discretize_diagonal(torch.zeros(3), torch.zeros(4), 0.1)
    with pytest.raises(ValueError, match=r"A has shape \(3, 2\)"):
        discretize_dense(torch.zeros(3, 2), B, 0.1)
    with pytest.raises(ValueError, match=r"B has shape \(3,\), expected \(\*b, n=3 from A, m\)"):
        discretize_dense(A, torch.zeros(3), 0.1)
    with pytest.raises(ValueError, match="leading axes"):
        discretize_dense(A.expand(2, 3, 3), B, torch.zeros(5))
    with pytest.raises(ValueError, match="u has dtype int64"):
        phi1(torch.arange(3))
