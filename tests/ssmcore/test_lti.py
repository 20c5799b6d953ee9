"""LTI tools against closed forms, scipy, and systems whose answers are known."""

import math

import numpy as np
import pytest
import scipy.signal
import torch
from torch.autograd import gradcheck

from ssmcore.hippo import fout, lagt, legs, legt
from ssmcore.lti import (
    StateSpace,
    controllability_matrix,
    controllability_rank,
    impulse_response,
    is_stable,
    lyapunov_certificate,
    observability_matrix,
    observability_rank,
    sample,
    simulate,
    spring_free_response,
    spring_mass_damper,
    spring_step_response,
    step_response,
)

F64, C128 = torch.float64, torch.complex128
UNDAMPED, UNDER, CRITICAL, OVER = (1.5, 0.0, 2.0), (1.0, 0.4, 4.0), (1.0, 4.0, 4.0), (0.5, 3.0, 1.0)
SPRINGS = [UNDAMPED, UNDER, CRITICAL, OVER]


def _system(n=4, m=2, p=3, dtype=F64, seed=0):
    g = torch.Generator().manual_seed(seed)
    A, B, C, D = (torch.randn(s, generator=g, dtype=dtype) for s in ((n, n), (n, m), (p, n), (p, m)))
    return StateSpace(A * 0.4, B, C, D)


def _matrix(*rows):
    return torch.tensor(rows, dtype=F64)


@pytest.mark.parametrize("spring", SPRINGS)
def test_spring_free_response_matches_simulation(spring):
    dt, l = 0.05, 400
    t = (torch.arange(l, dtype=F64) + 1) * dt
    start = torch.tensor([[0.7, -1.1]], dtype=F64)
    y, last = simulate(sample(spring_mass_damper(*spring), dt), torch.zeros(1, l, 1, dtype=F64), start)
    torch.testing.assert_close(y[0, :, 0], spring_free_response(*spring, t, 0.7, -1.1), rtol=0, atol=1e-12)
    assert last[0, 0] == y[0, -1, 0]


@pytest.mark.parametrize("spring", SPRINGS)
def test_spring_step_response_matches_simulation(spring):
    dt, l = 0.05, 400
    t = (torch.arange(l, dtype=F64) + 1) * dt
    y, _ = simulate(sample(spring_mass_damper(*spring), dt), torch.ones(1, l, 1, dtype=F64))
    expected = spring_step_response(*spring, t)
    torch.testing.assert_close(y[0, :, 0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(step_response(sample(spring_mass_damper(*spring), dt), l)[:, 0, 0], expected)


@pytest.mark.parametrize("spring", SPRINGS)
def test_spring_closed_forms_obey_the_equation_of_motion(spring):
    m, c, k = spring
    t = torch.linspace(0, 6, 50, dtype=F64, requires_grad=True)
    for y, force in ((spring_free_response(m, c, k, t, 0.3, 0.8), 0.0), (spring_step_response(m, c, k, t), 1.0)):
        (velocity,) = torch.autograd.grad(y.sum(), t, create_graph=True)
        (acceleration,) = torch.autograd.grad(velocity.sum(), t)
        total = (m * acceleration + c * velocity + k * y).detach()
        torch.testing.assert_close(total, torch.full((50,), force, dtype=F64), rtol=0, atol=1e-12)
    assert spring_free_response(m, c, k, torch.zeros(1, dtype=F64), 0.3) == 0.3
    assert spring_step_response(m, c, k, torch.zeros(1, dtype=F64)) == 0


def test_spring_is_smooth_through_critical_damping():
    t = torch.linspace(0, 10, 30, dtype=F64)
    at = spring_free_response(1.0, 4.0, 4.0, t, 1.0, 1.0)
    for nearby in (4 - 1e-9, 4 + 1e-9):
        torch.testing.assert_close(spring_free_response(1.0, nearby, 4.0, t, 1.0, 1.0), at, rtol=0, atol=1e-8)
    # Strongly overdamped: no overflow, and the slow mode decays at k / c.
    slow = spring_free_response(1.0, 1e6, 1.0, torch.tensor([1e6], dtype=F64))
    assert slow.item() == pytest.approx(math.exp(-1), rel=1e-9)


@pytest.mark.parametrize("spring", SPRINGS)
def test_spring_eigenvalues(spring):
    m, c, k = spring
    eigenvalues = torch.linalg.eigvals(spring_mass_damper(*spring).A)
    a, w = c / (2 * m), (k / m - (c / (2 * m)) ** 2 + 0j) ** 0.5
    for root in (-a + 1j * w, -a - 1j * w):
        assert (eigenvalues - root).abs().min() < 1e-7


def test_simulate_equals_scipy_and_the_convolution_with_the_impulse_response():
    system = _system()
    u = torch.randn(2, 30, 2, dtype=F64)
    y, last = simulate(system, u)
    A, B, C, D = (M.numpy() for M in system)
    # scipy reads the output before the input acts: its C x is ours a step earlier.
    for i in range(2):
        states = scipy.signal.dlsim((A, B, np.eye(4), np.zeros((4, 2)), 1), np.vstack([u[i], np.zeros((1, 2))]))[1][1:]
        np.testing.assert_allclose(y[i], states @ C.T + u[i].numpy() @ D.T, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(last[i], states[-1], rtol=1e-11, atol=1e-12)
    K = impulse_response(system, 30)
    assert K.shape == (30, 3, 2)
    convolved = torch.stack([sum(K[s] @ u[0, t - s] for s in range(t + 1)) for t in range(30)])
    torch.testing.assert_close(y[0], convolved)


def test_impulse_and_step_are_responses_to_an_impulse_and_a_step():
    system = _system(m=1)
    u = torch.zeros(1, 20, 1, dtype=F64)
    u[0, 0] = 1
    torch.testing.assert_close(simulate(system, u)[0][0], impulse_response(system, 20)[..., 0])
    torch.testing.assert_close(simulate(system, u.fill_(1))[0][0], step_response(system, 20)[..., 0])


@pytest.mark.parametrize("dtype", [F64, C128])
def test_state_can_be_handed_on(dtype):
    system = _system(dtype=dtype)
    u, start = torch.randn(2, 11, 2, dtype=dtype), torch.randn(2, 4, dtype=dtype)
    y, last = simulate(system, u, start)
    first, state = simulate(system, u[:, :5], start)
    second, end = simulate(system, u[:, 5:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(end, last)
    empty, same = simulate(system, u[:, :0], start)
    assert empty.shape == (2, 0, 3)
    assert torch.equal(same, start)


def test_simulate_is_differentiable():
    u, start = torch.randn(1, 4, 1, dtype=F64, requires_grad=True), torch.randn(1, 2, dtype=F64, requires_grad=True)
    parts = [M.clone().requires_grad_() for M in _system(2, 1, 1)]
    gradcheck(lambda u, x, *parts: simulate(StateSpace(*parts), u, x), (u, start, *parts))


@pytest.mark.parametrize("rule", ["zoh", "bilinear", "euler"])
def test_sampling_keeps_the_steady_state_or_not(rule):
    system = spring_mass_damper(*UNDER)
    A, B, C, _ = sample(system, 0.1, rule)
    gain = (C @ torch.linalg.solve(torch.eye(2, dtype=F64) - A, B)).item()
    exact = abs(gain - 1 / UNDER[2]) < 1e-12
    assert exact == (rule != "euler")


STABLE = {
    "damped spring": spring_mass_damper(*UNDER).A,
    "overdamped spring": spring_mass_damper(*OVER).A,
    "legs": legs(8).A,
    "legt": legt(8).A,
    "lagt": lagt(8).A,
    "complex": torch.diag(torch.tensor([-0.1 + 5j, -2 - 3j], dtype=C128)),
}
NOT_STABLE = {
    "undamped spring": spring_mass_damper(*UNDAMPED).A,
    "integrator": torch.zeros(1, 1, dtype=F64),
    "inverted pendulum": _matrix([0, 1], [9.81, 0]),
    "fout's dead state": fout(8).A,
    "one bad mode": torch.diag(torch.tensor([-1.0, -2.0, 1e-3], dtype=F64)),
}


@pytest.mark.parametrize(
    ("A", "stable"), [(A, True) for A in STABLE.values()] + [(A, False) for A in NOT_STABLE.values()]
)
def test_stability_by_eigenvalues_and_by_certificate(A, stable):
    for matrix, time in ((A, "continuous"), (torch.linalg.matrix_exp(0.1 * A), "discrete")):
        assert is_stable(matrix, time) == stable
        P = lyapunov_certificate(matrix, time)
        assert (P is not None) == stable
        if P is None:
            continue
        assert P.dtype == A.dtype
        assert torch.linalg.eigvalsh(P)[0] > 0
        fall = matrix.mH @ P + P @ matrix if time == "continuous" else matrix.mH @ P @ matrix - P
        torch.testing.assert_close(fall, -torch.eye(len(A), dtype=A.dtype), rtol=0, atol=1e-8)


def test_nilpotent_steps_are_stable_but_not_as_a_flow():
    shift = torch.diag(torch.ones(3, dtype=F64), -1)
    assert is_stable(shift, "discrete")
    assert not is_stable(shift, "continuous")
    # Energy of the shift: each place holds what all later ones will still see.
    P = lyapunov_certificate(shift, "discrete")
    assert P is not None
    torch.testing.assert_close(P, torch.diag(torch.tensor([4.0, 3, 2, 1], dtype=F64)))


def test_kalman_matrices_by_hand():
    A, B, C, _ = spring_mass_damper(1.0, 0.4, 4.0)
    torch.testing.assert_close(controllability_matrix(A, B), _matrix([0, 1], [1, -0.4]))
    torch.testing.assert_close(observability_matrix(A, C), _matrix([1, 0], [0, 1]))
    wide = controllability_matrix(torch.randn(4, 4), torch.randn(4, 2))
    assert wide.shape == (4, 8)
    assert observability_matrix(torch.randn(4, 4), torch.randn(3, 4)).shape == (12, 4)


def test_ranks_of_known_systems():
    A, B, C, _ = spring_mass_damper(*UNDER)
    assert controllability_rank(A, B) == observability_rank(A, C) == 2
    # Two equal springs on one force: only their sum moves, only their sum is seen.
    twins, force = torch.block_diag(A, A), torch.cat([B, B])
    assert controllability_rank(twins, force) == 2
    assert observability_rank(twins, torch.cat([C, C], 1)) == 2
    assert observability_rank(twins, torch.block_diag(C, C)) == 4
    # A chain of integrators is driven from its end and seen from its head, not the other way round.
    chain, first, last = torch.diag(torch.ones(4, dtype=F64), 1), torch.eye(5, dtype=F64)[:1], torch.eye(5).double()[4:]
    assert (controllability_rank(chain, last.T), controllability_rank(chain, first.T)) == (5, 1)
    assert (observability_rank(chain, first), observability_rank(chain, last)) == (5, 1)
    assert controllability_rank(torch.zeros(3, 3), torch.eye(3)) == 3
    assert controllability_rank(torch.eye(3), torch.zeros(3, 1)) == 0


@pytest.mark.parametrize("n", [4, 16, 48])
def test_hippo_systems_are_controllable_at_any_size(n):
    assert controllability_rank(legs(n).A, legs(n).B[:, None]) == n
    assert controllability_rank(fout(n).A, fout(n).B[:, None]) == n - 1
    assert observability_rank(legs(n).A.T, legs(n).B[None]) == n


@pytest.mark.parametrize(("n", "reached"), [(6, 3), (20, 11), (40, 25)])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_rank_does_not_depend_on_the_basis(n, reached, dtype):
    g = torch.Generator().manual_seed(n)
    A, B = torch.randn(n, n, generator=g, dtype=dtype), torch.randn(n, 2, generator=g, dtype=dtype)
    A[reached:, :reached] = 0
    B[reached:] = 0
    Q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=dtype)).Q
    A, B = Q @ A @ Q.mH, Q @ B
    assert controllability_rank(A, B) == reached
    assert observability_rank(A.mH, B.mH) == reached
    if n == 6:
        assert torch.linalg.matrix_rank(controllability_matrix(A, B)) == reached
        assert torch.linalg.matrix_rank(observability_matrix(A.mH, B.mH)) == reached


def test_errors_name_the_argument():
    good = _system()
    bad = good._replace(C=torch.zeros(3, 5))
    for call in (
        lambda s: sample(s, 0.1),
        lambda s: simulate(s, torch.zeros(1, 2, 2)),
        lambda s: impulse_response(s, 3),
        lambda s: step_response(s, 3),
    ):
        with pytest.raises(ValueError, match=r"C has shape \(3, 5\), expected \(p, n=4 from A\)"):
            call(bad)
    with pytest.raises(ValueError, match=r"u has shape \(1, 2, 3\), expected \(b, l, m=2 from B\)"):
        simulate(good, torch.zeros(1, 2, 3, dtype=F64))
    with pytest.raises(ValueError, match=r"initial_state has shape \(1, 4\), expected \(b=2 from u, n=4 from A\)"):
        simulate(good, torch.zeros(2, 2, 2, dtype=F64), torch.zeros(1, 4, dtype=F64))
    for response in (impulse_response, step_response):
        with pytest.raises(ValueError, match="length=0"):
            response(good, 0)
    for check in (is_stable, lyapunov_certificate):
        with pytest.raises(ValueError, match="time='z', expected one of 'continuous', 'discrete'"):
            check(good.A, "z")
        with pytest.raises(ValueError, match=r"A has shape \(4, 2\)"):
            check(good.B, "discrete")
    for reach in (controllability_matrix, controllability_rank):
        with pytest.raises(ValueError, match=r"B has shape \(3, 4\), expected \(n=4 from A, m\)"):
            reach(good.A, good.C)
    for see in (observability_matrix, observability_rank):
        with pytest.raises(ValueError, match=r"C has shape \(4, 2\), expected \(p, n=4 from A\)"):
            see(good.A, good.B)
    for spring in (
        spring_mass_damper,
        lambda *a: spring_free_response(*a, torch.zeros(1)),
        lambda *a: spring_step_response(*a, torch.zeros(1)),
    ):
        with pytest.raises(ValueError, match="m=0, c=1, k=1, expected m > 0, c >= 0, k > 0"):
            spring(0, 1, 1)


def test_rank_near_the_identity():
    # Each power of A adds a direction 1e-4 long: it must still be told from the ones before, and from rounding.
    g = torch.Generator().manual_seed(0)
    R = torch.randn(20, 20, generator=g, dtype=F64)
    R[11:, :11] = 0
    B = torch.cat([torch.randn(11, 1, generator=g, dtype=F64), torch.zeros(9, 1, dtype=F64)])
    A = torch.eye(20, dtype=F64) + 1e-5 * R
    assert controllability_rank(A, B) == 11
    assert controllability_rank(R, B) == 11
