"""Kalman filter and smoother in logarithmic depth: both are scans of one monoid.

An element stands for a stretch of time, from the state x before it to the state z at its end, with the measurements y
that were made in it:

    p(z | x, y) = N(A x + b, C)            p(y | x)  ~  exp(eta' x - x' J x / 2)

Combined from the front, the first half of an element is the filter. Combined from the back, the second half says what
the measurements after a step tell of its state; its product with the filter is the smoother.
Source: Sarkka and Garcia-Fernandez 2021, Temporal parallelization of Bayesian smoothers, arXiv 1905.13002 (the smoother
there is a second monoid; this one reuses the first, and inverts no predicted covariance).
"""

from typing import NamedTuple

import torch
from ssm_kernels import associative_scan
from torch import Tensor

from .array_types import Float
from .kalman import (
    Filtered,
    GaussianState,
    LinearGaussian,
    Smoothed,
    advance,
    initial_state,
    innovation,
    times,
)


class Stretch(NamedTuple):
    """An element of the monoid; see the head of this file."""

    A: Float[Tensor, "*b n n"]
    b: Float[Tensor, "*b n"]
    C: Float[Tensor, "*b n n"]
    eta: Float[Tensor, "*b n"]
    J: Float[Tensor, "*b n n"]


def combine(first: Stretch, second: Stretch) -> Stretch:
    """Two stretches of time, one after the other; associative.

    Args:
        first, second: Elements with any equal leading axes.
    """
    # x -> m -> z: what the second stretch measured, (eta, J), corrects the state m in the middle.
    eye = torch.eye(first.C.shape[-1], dtype=first.C.dtype, device=first.C.device)
    correction = torch.linalg.inv(eye + first.C @ second.J)
    A = second.A @ correction
    C = A @ first.C @ second.A.mT + second.C
    back = first.A.mT @ correction.mT
    J = back @ second.J @ first.A + first.J
    return Stretch(
        A @ first.A,
        times(A, first.b + times(first.C, second.eta)) + second.b,
        0.5 * (C + C.mT),
        times(back, second.eta - times(second.J, first.b)) + first.eta,
        0.5 * (J + J.mT),
    )


def parallel_filter(model: LinearGaussian, y: Float[Tensor, "b l c"]) -> Filtered:
    """What `kalman_filter` returns; H Q H' + R must be positive definite.

    Args:
        model: Checked by `check_model`.
        y: Observations, shape (b, l, c); NaN where one is missing.
    """
    from_start = associative_scan(combine, _stretches(model, y), dim=1)
    filtered = GaussianState(from_start.b, from_start.C)
    ahead = advance(model.during(0, y.shape[1]), filtered)
    first = initial_state(model, len(y))
    mean = torch.cat((first.mean[:, None], ahead.mean[:, :-1]), 1)
    cov = torch.cat((first.cov[:, None], ahead.cov[:, :-1]), 1)
    likelihood = innovation(model.during(0, y.shape[1]), mean, cov, y).log_likelihood
    last = GaussianState(ahead.mean[:, -1], ahead.cov[:, -1])
    return Filtered(*filtered, mean, cov, likelihood, last)


def parallel_smoother(model: LinearGaussian, y: Float[Tensor, "b l c"], filtered: Filtered) -> Smoothed:
    """What `kalman_smoother` returns.

    Args:
        model: Checked by `check_model`.
        y: Observations, shape (b, l, c); NaN where one is missing.
        filtered: Of the same series.
    """
    # With reverse=True the scan hands over (nearer to the end, nearer to the start).
    to_end = associative_scan(lambda end, start: combine(start, end), _stretches(model, y), dim=1, reverse=True)
    nothing = torch.zeros_like(filtered.cov[:, :1])
    J = torch.cat((to_end.J[:, 1:], nothing), 1)
    eta = torch.cat((to_end.eta[:, 1:], nothing[..., 0]), 1)
    eye = torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)
    correction = torch.linalg.inv(eye + filtered.cov @ J)
    cov = correction @ filtered.cov
    return Smoothed(times(correction, filtered.mean + times(filtered.cov, eta)), 0.5 * (cov + cov.mT))


def _stretches(model: LinearGaussian, y: Tensor) -> Stretch:
    """One element a step: the transition that leads to it, then its measurement; the first has only a measurement."""
    start = initial_state(model, len(y))
    seen = innovation(model.at(0), *start, y[:, 0])
    mean = start.mean + times(seen.gain.mT, seen.residual)
    nil = torch.zeros_like(start.cov)
    first = Stretch(nil, mean, start.cov - seen.gain.mT @ seen.gain, nil[..., 0], nil)

    came, here, rest = model.during(0, y.shape[1] - 1), model.during(1, y.shape[1]), y[:, 1:]
    n = mean.shape[-1]
    F, Q = (p.expand(*rest.shape[:2], n, n) for p in (came.transition, came.process_noise))
    offset = torch.zeros_like(F[..., 0]) if came.state_offset is None else came.state_offset.expand(*rest.shape[:2], n)
    seen = innovation(here, offset, Q, rest)
    through = seen.observation @ F
    later = Stretch(
        F - seen.gain.mT @ through,
        offset + times(seen.gain.mT, seen.residual),
        Q - seen.gain.mT @ seen.gain,
        times(through.mT, seen.residual),
        through.mT @ through,
    )
    return Stretch(*(torch.cat((one[:, None], many), 1) for one, many in zip(first, later, strict=True)))
