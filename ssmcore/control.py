"""Control of linear systems: optimal and placed feedback, observers, and what a record of motion says of a system.

    u = -K x       continuous x' = (A - B K) x,  discrete x[t] = (A - B K) x[t-1]: u[t] answers x[t-1]
    z' = A z + B u + L (y - C z)                an observer; its error falls as e' = (A - L C) e

The equations are solved by scipy; what is here gives them the shapes and the checks of lti.py. Use float64.
Shapes: l length, n state, m inputs, p outputs.
Source: Kalman 1960 (LQR); Kautsky, Nichols & Van Dooren 1985 (pole placement); Luenberger 1964 (observers).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.signal
import torch
from ssm_kernels.checks import Shapes, check_choice
from torch import Tensor

from .array_types import Float
from .lti import StateSpace, Time, controllability_rank, sample, simulate


class Regulator(NamedTuple):
    """Optimal feedback: K, shape (m, n), and P, shape (n, n): from x the cost still to come is x' P x."""

    K: Float[Tensor, "m n"]
    P: Float[Tensor, "n n"]


class Spring(NamedTuple):
    """A spring-mass-damper: mass in kg, damping in N s / m, stiffness in N / m."""

    m: float
    c: float
    k: float


def lqr(
    A: Float[Tensor, "n n"], B: Float[Tensor, "n m"], Q: Float[Tensor, "n n"], R: Float[Tensor, "m m"], time: Time
) -> Regulator:
    """The feedback that minimises the integral, or the sum, of x' Q x + u' R u.

    Args:
        A: State matrix, shape (n, n).
        B: Input matrix, shape (n, m).
        Q: Cost of the state, symmetric, positive semidefinite, shape (n, n).
        R: Cost of the input, symmetric, positive definite, shape (m, m).
        time: "continuous" or "discrete".
    Raises:
        ValueError: A shape disagrees, or no feedback makes the cost finite.
    Source: Kalman 1960; the Riccati equation by scipy.
    """
    shapes = Shapes("lqr")
    for name, value, spec in (("A", A, "n n"), ("B", B, "n m"), ("Q", Q, "n n"), ("R", R, "m m")):
        shapes.check(name, value, spec)
    check_choice("lqr", "time", time, ("continuous", "discrete"))
    a, b, q, r = (t.detach().cpu().numpy() for t in (A, B, Q, R))
    solve = scipy.linalg.solve_continuous_are if time == "continuous" else scipy.linalg.solve_discrete_are
    try:
        p = solve(a, b, q, r)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"lqr: the Riccati equation has no stabilising solution: {error}") from None
    if time == "continuous":
        k = np.linalg.solve(r, b.T @ p)
    else:
        k = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
    return Regulator(torch.from_numpy(k).to(A), torch.from_numpy(p).to(A))


def place_poles(A: Float[Tensor, "n n"], B: Float[Tensor, "n m"], poles: Sequence[complex]) -> Float[Tensor, "m n"]:
    """The feedback K that gives A - B K chosen eigenvalues.

    Args:
        A: State matrix, shape (n, n).
        B: Input matrix, shape (n, m).
        poles: n numbers, complex ones in conjugate pairs, none more often than B has independent columns.
    Raises:
        ValueError: A shape disagrees, the poles are not n, or the inputs do not reach every state.
    Source: Kautsky, Nichols & Van Dooren 1985, by scipy; Ackermann's formula gives the same for one input.
    """
    shapes = Shapes("place_poles")
    shapes.check("A", A, "n n")
    shapes.check("B", B, "n m")
    if len(poles) != len(A):
        raise ValueError(f"place_poles: {len(poles)} poles, expected n={len(A)} from A")
    if (rank := controllability_rank(A, B)) < len(A):
        raise ValueError(f"place_poles: the inputs reach {rank} of {len(A)} states; the other poles cannot move")
    placed = scipy.signal.place_poles(A.detach().cpu().numpy(), B.detach().cpu().numpy(), np.asarray(poles))
    gain = placed.gain_matrix  # pyright: ignore[reportAttributeAccessIssue]
    return torch.from_numpy(gain.real.copy()).to(A)


def observer(A: Float[Tensor, "n n"], C: Float[Tensor, "p n"], poles: Sequence[complex]) -> Float[Tensor, "n p"]:
    """The gain L that gives A - L C chosen eigenvalues: how fast an observer's error falls.

    Args:
        A: State matrix, shape (n, n).
        C: Output matrix, shape (p, n).
        poles: n numbers, as `place_poles` takes them.
    Raises:
        ValueError: As `place_poles`; here where the outputs do not tell every state.
    Source: Luenberger 1964, Observing the state of a linear system.
    """
    return place_poles(A.T, C.T, poles).T


def identify_spring(
    u: Float[Tensor, "l"], y: Float[Tensor, "l"], dt: float, start: Spring | None = None, iterations: int = 200
) -> Spring:
    """Mass, damping and stiffness from a force and the positions that followed it, by gradient descent.

    The error is that of the whole simulated motion from rest; its gradient runs through the matrix exponential of the
    sampling and the recurrence. The three numbers stay positive, as their logarithms are what moves.

    Args:
        u: Force at each step, in N, shape (l,).
        y: Position at the end of each step, in m, shape (l,).
        dt: Step, in s.
        start: Where to start; 1 kg, 1 N s / m and 1 N / m when None.
        iterations: Most steps of L-BFGS.
    Raises:
        ValueError: A shape disagrees, dt <= 0, or the start has a number that is not positive.
    """
    shapes = Shapes("identify_spring")
    shapes.check("u", u, "l")
    shapes.check("y", y, "l")
    start = start or Spring(1.0, 1.0, 1.0)
    if dt <= 0 or min(start) <= 0:
        raise ValueError(f"identify_spring: dt={dt}, start={tuple(start)}, expected positive numbers")
    logs = torch.tensor(start, dtype=torch.float64).log().requires_grad_()
    force, seen = u.detach().double()[None, :, None], y.detach().double()
    optimizer = torch.optim.LBFGS([logs], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        moved, _ = simulate(sample(_spring(logs.exp()), dt), force)
        error = (moved[0, :, 0] - seen).square().mean() / seen.square().mean()
        error.backward()
        return error

    optimizer.step(closure)
    return Spring(*logs.detach().exp().tolist())


def _spring(numbers: Float[Tensor, "3"]) -> StateSpace:
    """`lti.spring_mass_damper`, with gradients."""
    m, c, k = numbers.unbind()
    zero, one = torch.zeros_like(m), torch.ones_like(m)
    A = torch.stack([torch.stack([zero, one]), torch.stack([-k / m, -c / m])])
    return StateSpace(A, torch.stack([zero, 1 / m])[:, None], torch.stack([one, zero])[None], zero[None, None])
