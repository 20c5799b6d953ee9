"""Feedback, observers and identification against closed forms."""

import math

import pytest
import torch

from ssmcore.control import Spring, identify_spring, lqr, observer, place_poles
from ssmcore.lti import sample, simulate, spring_mass_damper


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def ackermann(A, B, poles):
    """The textbook formula for one input."""
    n = len(A)
    reach = torch.cat([torch.linalg.matrix_power(A, i) @ B for i in range(n)], 1)
    polynomial = torch.eye(n, dtype=torch.complex128)
    for pole in poles:
        polynomial = polynomial @ (A.to(torch.complex128) - pole * torch.eye(n))
    last = torch.linalg.inv(reach)[-1:]
    return last @ polynomial.real


def test_a_double_integrator_has_the_textbook_regulator():
    K, P = lqr(matrix([0, 1], [0, 0]), matrix([0], [1]), torch.eye(2, dtype=torch.float64), matrix([1]), "continuous")
    root = math.sqrt(3)
    torch.testing.assert_close(K, matrix([1, root]))
    torch.testing.assert_close(P, matrix([root, 1], [1, root]))


@pytest.mark.parametrize("r", [0.1, 3.0])
def test_a_scalar_system_has_the_regulator_of_the_quadratic_formula(r):
    a, b, q = 0.7, 0.5, 2.0
    K, P = lqr(matrix([a]), matrix([b]), matrix([q]), matrix([r]), "continuous")
    p = (a * r + math.sqrt((a * r) ** 2 + q * r * b * b)) / b**2
    torch.testing.assert_close(P, matrix([p]))
    torch.testing.assert_close(K, matrix([b * p / r]))
    K, P = lqr(matrix([a]), matrix([b]), matrix([q]), matrix([r]), "discrete")
    p = P.item()
    assert p == pytest.approx(q + a * a * p - (a * b * p) ** 2 / (r + b * b * p))
    assert K.item() == pytest.approx(a * b * p / (r + b * b * p))


def test_the_cost_of_the_optimal_motion_is_what_the_regulator_says_and_others_cost_more():
    system = sample(spring_mass_damper(1.0, 0.2, 3.0), 0.1)
    Q, R, x0 = torch.eye(2, dtype=torch.float64), matrix([0.5]), matrix([1.0, -0.5])[0]
    K, P = lqr(system.A, system.B, Q, R, "discrete")

    def cost(gain):
        x, total = x0, 0.0
        for _ in range(2000):
            u = -gain @ x
            total += (x @ Q @ x + u @ R @ u).item()
            x = system.A @ x + system.B @ u
        return total

    assert cost(K) == pytest.approx((x0 @ P @ x0).item(), rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        assert cost(K + 0.1 * torch.randn(1, 2, dtype=torch.float64, generator=generator)) > cost(K)


@pytest.mark.parametrize("poles", [(-1.0, -2.0), (-1 + 2j, -1 - 2j)])
def test_placed_poles_are_ackermanns(poles):
    A, B, _, _ = spring_mass_damper(2.0, 0.3, 5.0)
    K = place_poles(A, B, poles)
    torch.testing.assert_close(K, ackermann(A, B, poles))
    got = torch.linalg.eigvals(A - B @ K)
    want = torch.tensor(poles, dtype=torch.complex128)
    assert all((got - pole).abs().min() < 1e-9 for pole in want)


def test_an_observer_finds_the_velocity():
    spring = spring_mass_damper(1.0, 0.1, 4.0)
    system = sample(spring, 0.05)
    L = observer(system.A, system.C, (0.5, 0.6))
    x, z = matrix([1.0, 2.0])[0], torch.zeros(2, dtype=torch.float64)
    for _ in range(60):
        z = system.A @ z + L @ (system.C @ x - system.C @ z)
        x = system.A @ x
    torch.testing.assert_close(z, x, rtol=0, atol=1e-8)


@pytest.mark.parametrize("true", [Spring(2.0, 0.5, 8.0), Spring(0.5, 4.0, 1.0)], ids=["oscillating", "creeping"])
def test_a_spring_is_identified_from_its_motion(true):
    u = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, _ = simulate(sample(spring_mass_damper(*true), 0.05), u[None, :, None])
    found = identify_spring(u, y[0, :, 0], 0.05)
    assert tuple(found) == pytest.approx(tuple(true), rel=1e-4)


def test_what_cannot_be_controlled_is_said():
    A, B = matrix([-1, 0], [0, 2]), matrix([1], [0])
    with pytest.raises(ValueError, match="reach 1 of 2 states"):
        place_poles(A, B, (-1, -2))
    with pytest.raises(ValueError, match="stabilising"):
        lqr(A, B, torch.eye(2, dtype=torch.float64), matrix([1]), "continuous")
    with pytest.raises(ValueError, match="3 poles, expected n=2"):
        place_poles(A, B, (-1, -2, -3))
    with pytest.raises(ValueError, match="dt=0"):
        identify_spring(torch.ones(3), torch.ones(3), 0)
