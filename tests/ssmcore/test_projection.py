"""Online projection against quadrature, its invariances, and how well it rebuilds a signal."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from torch.autograd import gradcheck

from ssmcore.discretization import GeneralizedBilinear, discretize_dense
from ssmcore.hippo import legs
from ssmcore.projection import basis, project_history, project_window, reconstruct

F64 = torch.float64


def _closed_form(f, n):
    """LegS coefficients of a piecewise constant function, by exact quadrature on each piece."""
    nodes, weights = np.polynomial.legendre.leggauss(n // 2 + 2)
    s = (np.arange(len(f))[:, None] + (nodes + 1) / 2) / len(f)
    pieces = np.stack([np.sqrt(2 * k + 1) * scipy.special.eval_legendre(k, 2 * s - 1) for k in range(n)])
    return (pieces * weights / 2 / len(f)).sum(-1) @ f


def _centres(l):
    return (torch.arange(l, dtype=F64) + 0.5) / l


def _error(c, f, measure):
    rebuilt = reconstruct(c, _centres(len(f)), measure)
    return ((rebuilt - f).norm() / f.norm()).item()


@pytest.mark.parametrize("n", [1, 2, 8, 16, 32])
def test_exact_rule_is_the_legendre_projection_at_every_step(n):
    f = torch.randn(40, dtype=F64)
    c = project_history(f, n)
    for k in (0, 1, 2, 10, 39):
        # Rounding grows with the order; at n = 32 the median of 200 seeds is 2.6e-14, the worst 1.2e-13.
        np.testing.assert_allclose(c[k], _closed_form(f[: k + 1].numpy(), n), rtol=0, atol=n * 1e-14)


@pytest.mark.parametrize("times", [2, 3])
def test_history_does_not_depend_on_the_timescale(times):
    f = torch.randn(30, dtype=F64)
    slow = project_history(f.repeat_interleave(times), 16)[times - 1 :: times]
    torch.testing.assert_close(slow, project_history(f, 16), rtol=0, atol=1e-13)


def test_reconstruction_levels_on_a_sine():
    # Two periods at n = 16. What is left of the exact rule is the samples' width: it falls as 1 / l^2.
    def f(l):
        return torch.sin(4 * math.pi * _centres(l))

    assert _error(project_history(f(200), 16)[-1], f(200), "legs") < 9e-4
    assert _error(project_history(f(1000), 16)[-1], f(1000), "legs") < 4e-5
    # Log-time keeps Tustin's rule second order; backward Euler is first order.
    assert _error(project_history(f(200), 16, "bilinear")[-1], f(200), "legs") < 9e-4
    assert 5e-2 < _error(project_history(f(200), 16, GeneralizedBilinear(1.0))[-1], f(200), "legs") < 9e-2
    # The usual code steps by 1 / k in plain time and loses an order even with Tustin's rule.
    A, B = legs(16)
    c = torch.zeros(16, dtype=F64)
    for k, sample in enumerate(torch.sin(4 * math.pi * (torch.arange(200, dtype=F64) + 1) / 200), start=1):
        step_A, step_B = discretize_dense(A, B[:, None], 1 / k, "bilinear")
        c = step_A @ c + step_B[:, 0] * sample
    usual = reconstruct(c, (torch.arange(200, dtype=F64) + 1) / 200)
    truth = torch.sin(4 * math.pi * (torch.arange(200, dtype=F64) + 1) / 200)
    assert 1.5e-2 < (usual - truth).norm() / truth.norm() < 2.5e-2


@pytest.mark.parametrize("measure", ["legt", "fout"])
def test_window_forgets_what_has_left_it_and_rebuilds_the_rest(measure):
    l, window = 400, 400.0
    t = torch.arange(5 * l, dtype=F64)
    f = torch.sin(4 * math.pi * t / l + 0.3)
    c = project_window(f, 16, window, measure)
    assert _error(c[-1], f[-l:], measure) < 1e-3
    # Another past that has left the window a window ago matters little.
    other = torch.cat([torch.randn(3 * l, dtype=F64), f[3 * l :]])
    assert (project_window(other, 16, window, measure)[-1] - c[-1]).norm() < 5e-2 * c[-1].norm()
    # A rule of second order is as good on a smooth signal, read half a sample later.
    assert _error(project_window(f, 16, window, measure, "bilinear")[-1], f[-l:], measure) < 1e-2


@pytest.mark.parametrize("measure", ["legs", "legt", "fout"])
def test_basis_is_orthonormal(measure):
    nodes, weights = np.polynomial.legendre.leggauss(80)
    g = basis(measure, 12, torch.from_numpy((nodes + 1) / 2))
    gram = (g * torch.from_numpy(weights / 2)[:, None]).T @ g
    expected = torch.eye(12, dtype=F64)
    if measure == "fout":
        expected[1, 1] = 0
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-12)
    assert basis(measure, 2, torch.zeros(3)).shape == (3, 2)


def test_basis_faces_the_right_way():
    # A ramp that rises towards now has a positive slope coefficient, and reconstruct ends high.
    c = project_history(torch.arange(50, dtype=F64), 2)[-1]
    assert c[1] > 0
    ends = reconstruct(c, torch.tensor([0.0, 1.0], dtype=F64))
    torch.testing.assert_close(ends, torch.tensor([-0.5, 49.5], dtype=F64), rtol=0, atol=0.05)
    # A pulse in the newest fifth of the window shows there, for both windows.
    pulse = (torch.arange(500) >= 480).double()
    for measure in ("legt", "fout"):
        rebuilt = reconstruct(project_window(pulse, 16, 100.0, measure)[-1], torch.tensor([0.3, 0.9]).double(), measure)
        assert rebuilt[0].abs() < 0.2 < 0.8 < rebuilt[1]


def test_batches_are_independent_and_dtype_is_kept():
    f = torch.randn(2, 3, 20)
    for project in (lambda x: project_history(x, 4), lambda x: project_window(x, 4, 8.0)):
        c = project(f)
        assert c.shape == (2, 3, 20, 4)
        assert c.dtype == torch.float32
        torch.testing.assert_close(c[1, 2], project(f[1, 2]))
    assert reconstruct(c, torch.rand(7)).shape == (2, 3, 20, 7)


def test_differentiable():
    f = torch.randn(2, 5, dtype=F64, requires_grad=True)
    gradcheck(lambda f: project_history(f, 3), (f,))
    gradcheck(lambda f: project_window(f, 4, 3.0, "fout"), (f,))


def test_errors_name_the_argument():
    for project in (lambda f: project_history(f, 4), lambda f: project_window(f, 4, 8.0)):
        with pytest.raises(ValueError, match=r"f has shape \(2, 0\), expected \(\*b, l\) with l >= 1"):
            project(torch.zeros(2, 0))
        with pytest.raises(ValueError, match="f has dtype int64"):
            project(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="unknown sliding measure 'legs'; did you mean 'legt'"):
        project_window(torch.zeros(5), 4, 8.0, "legs")
    with pytest.raises(ValueError, match="window=0"):
        project_window(torch.zeros(5), 4, 0)
    with pytest.raises(ValueError, match="unknown basis 'lagt'"):
        basis("lagt", 4, torch.zeros(3))
    with pytest.raises(ValueError, match=r"s has shape \(1, 3\), expected \(q,\)"):
        reconstruct(torch.zeros(4), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"c has shape \(\)"):
        reconstruct(torch.tensor(1.0), torch.zeros(3))
