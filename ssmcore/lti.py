"""Linear time-invariant systems: simulate them, and ask whether they are stable, controllable, observable.

    continuous   x' = A x + B u,                  y = C x + D u
    discrete     x[t] = A x[t-1] + B u[t],     y[t] = C x[t] + D u[t]

The discrete form is that of the scan operators: an input acts at once, so y[t] of a sampled system is the continuous y
at the end of step t, time (t + 1) dt. Control texts write x[t+1] = A x[t] + B u[t]: their output comes a step later.

Shapes: b batch, l length, n state, m inputs, p outputs. Use float64: these are tools for analysis, not layers.
Source: Kailath 1980, Linear Systems; Hespanha 2018, Linear Systems Theory, ch. 8, 12, 15.
"""

import cmath
import warnings
from typing import Literal, NamedTuple

import numpy as np
import scipy.linalg
import torch
from ssm_kernels.checks import Shapes, check_choice
from torch import Tensor

from .array_types import Float, Inexact
from .discretization import GeneralizedBilinear, Rule, discretize_dense, phi1

Time = Literal["continuous", "discrete"]
"""Whether A moves the state by its derivative or by steps."""


class StateSpace(NamedTuple):
    """A system (A, B, C, D), real or complex."""

    A: Inexact[Tensor, "n n"]
    B: Inexact[Tensor, "n m"]
    C: Inexact[Tensor, "p n"]
    D: Inexact[Tensor, "p m"]


def sample(system: StateSpace, dt: float, rule: Rule | GeneralizedBilinear = "zoh") -> StateSpace:
    """The discrete system that steps a continuous one by dt.

    Args:
        system: Continuous, with A of shape (n, n).
        dt: Step, in the system's unit of time.
        rule: See `discretize_dense`; "zoh" is exact for input held over each step.
    Returns:
        A discrete system of the same shapes, with C and D as they were.
    Raises:
        ValueError: A shape disagrees, or the rule is unknown.
    """
    _check_system("sample", system)
    return StateSpace(*discretize_dense(system.A, system.B, dt, rule), system.C, system.D)


def simulate(
    system: StateSpace, u: Inexact[Tensor, "b l m"], initial_state: Inexact[Tensor, "b n"] | None = None
) -> tuple[Inexact[Tensor, "b l p"], Inexact[Tensor, "b n"]]:
    """Run a discrete system step by step.

    Args:
        system: Discrete.
        u: Inputs, shape (b, l, m).
        initial_state: x[-1], shape (b, n); zeros when None.
    Returns:
        y, shape (b, l, p); and the last state, shape (b, n).
    Raises:
        ValueError: A shape disagrees.
    """
    shapes = _check_system("simulate", system)
    shapes.check("u", u, "b l m")
    A, B, C, D = system
    drive = u @ B.T
    x = drive.new_zeros(u.shape[0], A.shape[0]) if initial_state is None else initial_state
    shapes.check("initial_state", x, "b n")
    states = []
    for step in drive.unbind(1):
        x = x @ A.T + step
        states.append(x)
    trajectory = torch.stack(states, 1) if states else x.new_zeros(u.shape[0], 0, A.shape[0])
    return trajectory @ C.T + u @ D.T, x


def impulse_response(system: StateSpace, length: int) -> Inexact[Tensor, "l p m"]:
    """The convolution kernel of a discrete system: K[0] = C B + D, K[t] = C A^t B.

    Args:
        system: Discrete.
        length: Number of steps, at least 1.
    Returns:
        K, shape (l, p, m): output p, t steps after a unit impulse at input m.
    Raises:
        ValueError: A shape disagrees, or length < 1.
    """
    _check_system("impulse_response", system)
    if length < 1:
        raise ValueError(f"impulse_response: length={length}, expected at least 1")
    A, B, C, D = system
    states = [B]
    for _ in range(length - 1):
        states.append(A @ states[-1])
    K = C @ torch.stack(states)
    return torch.cat([K[:1] + D, K[1:]])


def step_response(system: StateSpace, length: int) -> Inexact[Tensor, "l p m"]:
    """Outputs of a discrete system at rest whose inputs are switched from 0 to 1, one at a time.

    Args:
        system: Discrete.
        length: Number of steps, at least 1.
    Returns:
        y, shape (l, p, m): output p at step t, input m being switched on.
    Raises:
        ValueError: A shape disagrees, or length < 1.
    """
    return impulse_response(system, length).cumsum(0)


def is_stable(A: Inexact[Tensor, "n n"], time: Time) -> bool:
    """Whether every free motion dies out: Re lambda < 0 (continuous) or |lambda| < 1 (discrete) for all eigenvalues.

    Args:
        A: State matrix, shape (n, n).
        time: "continuous" or "discrete".
    Returns:
        True when asymptotically stable; systems on the border to within rounding (an undamped spring) are not.
    Raises:
        ValueError: A is not square, or time is unknown.
    """
    _check_square("is_stable", A, time)
    eigenvalues = torch.linalg.eigvals(A)
    size = eigenvalues.real if time == "continuous" else eigenvalues.abs() - 1
    rounding = 10 * len(A) * torch.finfo(A.dtype).eps * torch.linalg.matrix_norm(A, 2)
    return bool((size < -rounding).all())


def lyapunov_certificate(A: Inexact[Tensor, "n n"], time: Time) -> Inexact[Tensor, "n n"] | None:
    """An energy xᴴ P x that falls along every free motion, at the rate |x|^2: a proof of stability without eigenvalues.

    P solves Aᴴ P + P A = -1 (continuous) or Aᴴ P A - P = -1 (discrete).

    Args:
        A: State matrix, shape (n, n).
        time: "continuous" or "discrete".
    Returns:
        P, positive definite, shape, dtype and device of A (no gradient); None when A is not asymptotically stable.
    Raises:
        ValueError: A is not square, or time is unknown.
    Source: Lyapunov 1892; solved by scipy (Bartels & Stewart 1972).
    """
    _check_square("lyapunov_certificate", A, time)
    M = A.detach().cpu().numpy().conj().T
    eye = np.eye(len(M))
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # about near-singular equations: a solution is judged by what it proves
            if time == "continuous":
                P = scipy.linalg.solve_continuous_lyapunov(M, -eye)
            else:
                P = scipy.linalg.solve_discrete_lyapunov(M, eye)
            proof = _is_lyapunov_function(P, M, time)
    except np.linalg.LinAlgError:  # marginal: the equation is singular
        return None
    return torch.from_numpy((P + P.conj().T) / 2).to(A) if proof else None


def controllability_matrix(A: Inexact[Tensor, "n n"], B: Inexact[Tensor, "n m"]) -> Inexact[Tensor, "n nm"]:
    """[B, A B, ..., A^(n-1) B]: its columns span the states that inputs can reach.

    Args:
        A: State matrix, shape (n, n).
        B: Input matrix, shape (n, m).
    Returns:
        Matrix, shape (n, n m).
    Raises:
        ValueError: A shape disagrees.
    Source: Kalman 1960.
    """
    shapes = _check_state_matrix("controllability_matrix", A)
    shapes.check("B", B, "n m")
    blocks = [B]
    for _ in range(len(A) - 1):
        blocks.append(A @ blocks[-1])
    return torch.cat(blocks, 1)


def observability_matrix(A: Inexact[Tensor, "n n"], C: Inexact[Tensor, "p n"]) -> Inexact[Tensor, "np n"]:
    """[C; C A; ...; C A^(n-1)]: its null space holds the states that outputs cannot see.

    Args:
        A: State matrix, shape (n, n).
        C: Output matrix, shape (p, n).
    Returns:
        Matrix, shape (n p, n).
    Raises:
        ValueError: A shape disagrees.
    Source: Kalman 1960.
    """
    shapes = _check_state_matrix("observability_matrix", A)
    shapes.check("C", C, "p n")
    return controllability_matrix(A.T, C.T).T


def controllability_rank(A: Inexact[Tensor, "n n"], B: Inexact[Tensor, "n m"]) -> int:
    """Dimension of the space of states that inputs can reach; n when the system is controllable.

    Counted on an orthonormal basis that is grown by A, as the powers in the controllability matrix are parallel to
    rounding in float64 from n of about 12 on.

    Args:
        A: State matrix, shape (n, n).
        B: Input matrix, shape (n, m).
    Returns:
        The rank that the controllability matrix has in exact arithmetic.
    Raises:
        ValueError: A shape disagrees.
    Source: Paige 1981, Properties of numerical algorithms related to computing controllability.
    """
    shapes = _check_state_matrix("controllability_rank", A)
    shapes.check("B", B, "n m")
    # Rounding leaks into the unreached states and grows there: 1e-10 at n = 64. Systems that differ by less are equal.
    tolerance = torch.finfo(A.dtype).eps ** 0.5
    basis, block = A[:, :0], B / (torch.linalg.matrix_norm(B, 2) or 1)
    scale = torch.linalg.matrix_norm(A, 2) or 1
    while basis.shape[1] < len(A):
        for _ in range(2):  # once leaves a short block far from orthogonal
            block = block - basis @ (basis.mH @ block)
        directions, sizes, _ = torch.linalg.svd(block, full_matrices=False)
        new = directions[:, sizes > tolerance]
        if new.shape[1] == 0:
            break
        basis, block = torch.cat([basis, new], 1), A @ new / scale
    return basis.shape[1]


def observability_rank(A: Inexact[Tensor, "n n"], C: Inexact[Tensor, "p n"]) -> int:
    """Dimension of the space of states that outputs can tell apart; n when the system is observable.

    Args:
        A: State matrix, shape (n, n).
        C: Output matrix, shape (p, n).
    Returns:
        The rank that the observability matrix has in exact arithmetic.
    Raises:
        ValueError: A shape disagrees.
    """
    shapes = _check_state_matrix("observability_rank", A)
    shapes.check("C", C, "p n")
    return controllability_rank(A.mH, C.mH)


def spring_mass_damper(m: float, c: float, k: float) -> StateSpace:
    """m y'' + c y' + k y = u as a continuous system: input force, state (position, velocity), output position.

    Args:
        m: Mass, in kg.
        c: Damping, in N s / m.
        k: Stiffness, in N / m.
    Returns:
        A (2, 2), B (2, 1), C (1, 2), D (1, 1), float64. The undamped frequency is sqrt(k / m), the damping ratio
            c / (2 sqrt(k m)).
    Raises:
        ValueError: m <= 0, k <= 0 or c < 0.
    """
    _check_spring("spring_mass_damper", m, c, k)
    A = torch.tensor([[0, 1], [-k / m, -c / m]], dtype=torch.float64)
    B = torch.tensor([[0], [1 / m]], dtype=torch.float64)
    return StateSpace(A, B, torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))


def spring_free_response(
    m: float, c: float, k: float, t: Float[Tensor, "*t"], position: float = 1.0, velocity: float = 0.0
) -> Float[Tensor, "*t"]:
    """Position of a spring-mass-damper that is let go, in closed form; under-, over- and critically damped.

    Args:
        m: Mass, in kg.
        c: Damping, in N s / m.
        k: Stiffness, in N / m.
        t: Times since the release, in s, any shape.
        position: At t = 0, in m.
        velocity: At t = 0, in m / s.
    Returns:
        Position, in m, shape and dtype of t.
    Raises:
        ValueError: m <= 0, k <= 0 or c < 0.
    """
    _check_spring("spring_free_response", m, c, k)
    cosine, sine = _damped_pair(m, c, k, t)
    return position * cosine + (velocity + c / (2 * m) * position) * sine


def spring_step_response(m: float, c: float, k: float, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
    """Position of a spring-mass-damper at rest on which a force of 1 N acts from t = 0, in closed form.

    Args:
        m: Mass, in kg.
        c: Damping, in N s / m.
        k: Stiffness, in N / m.
        t: Times, in s, any shape.
    Returns:
        Position, in m, shape and dtype of t; 1 / k in the end.
    Raises:
        ValueError: m <= 0, k <= 0 or c < 0.
    """
    _check_spring("spring_step_response", m, c, k)
    cosine, sine = _damped_pair(m, c, k, t)
    return (1 - cosine - c / (2 * m) * sine) / k


def _is_lyapunov_function(P: np.ndarray, M: np.ndarray, time: Time) -> bool:
    """Whether P > 0 and the energy xᴴ P x falls along every motion of A = Mᴴ; the equation may be off."""
    if not np.isfinite(P).all() or np.linalg.eigvalsh(P)[0] <= 0:
        return False
    fall = M @ P + P @ M.conj().T if time == "continuous" else M @ P @ M.conj().T - P
    rounding = len(M) * np.finfo(P.dtype).eps * np.linalg.norm(P) * (1 + np.linalg.norm(M)) ** 2
    return bool(np.linalg.norm(fall + np.eye(len(M))) + rounding < 0.5)


def _damped_pair(m: float, c: float, k: float, t: Tensor) -> tuple[Tensor, Tensor]:
    """e^(-a t) cosh(w t) and e^(-a t) sinh(w t) / w with a = c / 2m and w^2 = a^2 - k / m: imaginary w oscillates."""
    a = c / (2 * m)
    w = cmath.sqrt(a * a - k / m)
    fast = a + w
    slow = k / m / fast  # a - w would cancel
    cosh = ((-slow * t).exp() + (-fast * t).exp()) / 2
    return cosh.real, ((-slow * t).exp() * t * phi1(-2 * w * t)).real


def _check_system(op: str, system: StateSpace) -> Shapes:
    shapes = _check_state_matrix(op, system.A)
    for name, spec in (("B", "n m"), ("C", "p n"), ("D", "p m")):
        shapes.check(name, getattr(system, name), spec)
    return shapes


def _check_state_matrix(op: str, A: Tensor) -> Shapes:
    shapes = Shapes(op)
    shapes.check("A", A, "n n")
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"{op}: A has shape {tuple(A.shape)}, expected (n, n)")
    return shapes


def _check_square(op: str, A: Tensor, time: str) -> None:
    _check_state_matrix(op, A)
    check_choice(op, "time", time, ("continuous", "discrete"))


def _check_spring(op: str, m: float, c: float, k: float) -> None:
    if m <= 0 or k <= 0 or c < 0:
        raise ValueError(f"{op}: m={m}, c={c}, k={k}, expected m > 0, c >= 0, k > 0")
