"""Linear Gaussian state-space models: exact filter, smoother, forecast and likelihood, batched and differentiable.

    x[0]   ~ N(initial_mean, initial_cov)
    y[t]   = H x[t] + d + v,         v ~ N(0, R)          NaN in y is a measurement that was not made
    x[t+1] = F x[t] + b + w,         w ~ N(0, Q)

The filter is an operator of its own (ssm_kernels.kalman_filter): a loop over time whose every step serves the whole
batch. `method="parallel"` computes the same in logarithmic depth by an associative scan (kalman_scan.py). The smoother
is the backward recursion of the innovations, which needs no inverse of a predicted covariance, so deterministic
components (Q singular) are no special case.

Shapes: b batch, l length, n state, c outputs. F, Q, H, R may each be constant, one an item, or one an item and step.
Use float64 with vague initial covariances; float32 is for models whose scales are near 1.
Source: Kalman 1960; Durbin and Koopman 2012, Time Series Analysis by State Space Methods, ch. 4.
"""

import math
from typing import Literal, NamedTuple

import ssm_kernels
import torch
from ssm_kernels.checks import Shapes, check_choice
from torch import Tensor

from .array_types import Float

Method = Literal["sequential", "parallel"]
"""How the time axis is computed: a loop of l steps, or a scan of depth log l with about l n^3 times a constant work."""


class LinearGaussian(NamedTuple):
    """The parameters of the model above, each a float tensor on one device.

    A matrix of shape (i, j) may also be (b, i, j) or (b, l, i, j); a vector of shape (i,) also (b, i) or (b, l, i),
    but for the two initial moments, which have no time axis.
    """

    transition: Float[Tensor, "*b n n"]
    """F; F[t] leads from step t to step t + 1."""
    process_noise: Float[Tensor, "*b n n"]
    """Q, symmetric and positive semidefinite."""
    observation: Float[Tensor, "*b c n"]
    """H."""
    observation_noise: Float[Tensor, "*b c c"]
    """R, symmetric and positive semidefinite, with H P H' + R positive definite at every step."""
    initial_mean: Float[Tensor, "*b n"]
    """Mean of x[0] before y[0] is seen."""
    initial_cov: Float[Tensor, "*b n n"]
    """Covariance of x[0] before y[0] is seen."""
    state_offset: Float[Tensor, "*b n"] | None = None
    """b; zero when None."""
    observation_offset: Float[Tensor, "*b c"] | None = None
    """d; zero when None."""

    def at(self, t: int) -> "LinearGaussian":
        """The parameters of one step: no time axis, batch axes as they are."""
        fields = zip(self._fields, self, TIMED_RANK, strict=True)
        timed = {name: p.select(1, t) for name, p, rank in fields if p is not None and p.ndim == rank}
        return self._replace(**timed)

    def during(self, start: int, stop: int) -> "LinearGaussian":
        """The parameters of steps start..stop-1, shaped to broadcast against (b, l, ...)."""

        def cut(value: Tensor | None, timed_rank: int) -> Tensor | None:
            if value is None or value.ndim < timed_rank - 1:
                return value
            return value[:, start:stop] if value.ndim == timed_rank else value[:, None]

        ranks = zip(self._fields, TIMED_RANK, strict=True)
        return self._replace(**{name: cut(getattr(self, name), rank) for name, rank in ranks if rank})


TIMED_RANK = (4, 4, 4, 4, None, None, 3, 3)
"""Rank that each field has with a time axis; the initial moments have none."""


class GaussianState(NamedTuple):
    """What is known of x: its mean, shape (b, n), and covariance, shape (b, n, n)."""

    mean: Float[Tensor, "b n"]
    cov: Float[Tensor, "b n n"]


class Filtered(NamedTuple):
    """Moments of x[t], given y[0..t] (mean, cov) and y[0..t-1] (predicted_*)."""

    mean: Float[Tensor, "b l n"]
    cov: Float[Tensor, "b l n n"]
    predicted_mean: Float[Tensor, "b l n"]
    predicted_cov: Float[Tensor, "b l n n"]
    log_likelihood: Float[Tensor, "b l"]
    """log p(y[t] | y[0..t-1]) in nats, 0 where nothing was measured; their sum is that of the series."""
    next: GaussianState
    """x[l], given all of y: where a forecast or a further observation starts."""


class Smoothed(NamedTuple):
    """Moments of x[t], given all of y."""

    mean: Float[Tensor, "b l n"]
    cov: Float[Tensor, "b l n n"]


class Forecast(NamedTuple):
    """Moments of y[l], y[l+1], ..., each by itself."""

    mean: Float[Tensor, "b l c"]
    cov: Float[Tensor, "b l c c"]


class Innovation(NamedTuple):
    """One measurement against its prediction, whitened by the Cholesky factor of its covariance S."""

    residual: Float[Tensor, "*b c"]
    """S^(-1/2) (y - H x - d), zero where y is missing."""
    observation: Float[Tensor, "*b c n"]
    """S^(-1/2) H."""
    gain: Float[Tensor, "*b c n"]
    """S^(-1/2) H P: the Kalman gain is its transpose times S^(-1/2)."""
    log_likelihood: Float[Tensor, "*b"]


def kalman_filter(model: LinearGaussian, y: Float[Tensor, "b l c"], method: Method = "sequential") -> Filtered:
    """Filtered and predicted moments, and the likelihood of each observation.

    Args:
        model: See LinearGaussian; shapes fit y.
        y: Observations, shape (b, l, c); NaN where one is missing.
        method: See Method; equal up to rounding (use float64 for "parallel").
    Raises:
        ValueError: A shape disagrees, y is empty or infinite, or the method is unknown.
    """
    check_choice("kalman_filter", "method", method, ("sequential", "parallel"))
    if method == "parallel":
        check_model("kalman_filter", model, y)
        from .kalman_scan import parallel_filter  # kalman_scan builds on this file

        return parallel_filter(model, y)
    likelihood, mean, cov = _scan(model, y, return_moments=True)
    before = GaussianState(mean[:, :-1], cov[:, :-1])
    after, _ = measure(model.during(0, y.shape[1]), before, y)
    return Filtered(*after, *before, likelihood, GaussianState(mean[:, -1], cov[:, -1]))


def log_likelihood(model: LinearGaussian, y: Float[Tensor, "b l c"]) -> tuple[Float[Tensor, "b l"], GaussianState]:
    """The likelihood of every observation, without the moments of the states in memory.

    Args:
        model: See LinearGaussian; shapes fit y.
        y: Observations, shape (b, l, c); NaN where one is missing.
    Returns:
        log p(y[t] | y[0..t-1]) in nats, shape (b, l), 0 where nothing was measured; and x[l] given all of y.
    Raises:
        ValueError: A shape disagrees, or y is empty or infinite.
    """
    likelihood, mean, cov = _scan(model, y, return_moments=False)
    return likelihood, GaussianState(mean[:, 0], cov[:, 0])


def kalman_smoother(model: LinearGaussian, y: Float[Tensor, "b l c"], method: Method = "sequential") -> Smoothed:
    """Moments of every state given the whole series.

    Args:
        model: See LinearGaussian; shapes fit y.
        y: Observations, shape (b, l, c); NaN where one is missing.
        method: See Method.
    Raises:
        ValueError: A shape disagrees, y is empty or infinite, or the method is unknown.
    Source: de Jong 1989, Smoothing and interpolation with the state-space model (the innovation form).
    """
    filtered = kalman_filter(model, y, method)
    if method == "parallel":
        from .kalman_scan import parallel_smoother

        return parallel_smoother(model, y, filtered)
    r = torch.zeros_like(filtered.next.mean)  # S-weighted sum of the innovations still to come, and its covariance
    N = torch.zeros_like(filtered.next.cov)
    found = []
    for t in reversed(range(y.shape[1])):
        step, mean, cov = model.at(t), filtered.predicted_mean[:, t], filtered.predicted_cov[:, t]
        seen = innovation(step, mean, cov, y[:, t])
        # L = F (1 - K H): how an error of the prediction at t lives on in that at t + 1.
        L = step.transition @ (_eye(cov) - seen.gain.mT @ seen.observation)
        r = times(seen.observation.mT, seen.residual) + times(L.mT, r)
        N = seen.observation.mT @ seen.observation + L.mT @ N @ L
        found.append(GaussianState(mean + times(cov, r), cov - cov @ N @ cov))
    return Smoothed(*_in_time(found[::-1]))


def update(
    model: LinearGaussian, state: GaussianState, y: Float[Tensor, "b c"]
) -> tuple[GaussianState, Float[Tensor, "b"]]:
    """One more observation, in constant time: the step of the filter.

    Args:
        model: Without a time axis (`model.at(t)` of one that has it).
        state: x[t] before y[t]: `Filtered.next`, or what the last update returned.
        y: Observation t, shape (b, c); NaN where one is missing.
    Returns:
        x[t+1] given y[0..t]; and the log-likelihood of y[t] in nats, shape (b,).
    Raises:
        ValueError: A shape disagrees, or y is infinite.
    """
    check_model("update", model, y[:, None] if y.ndim == 2 else y)
    now, log_likelihood = measure(model, state, y)
    return advance(model, now), log_likelihood


def forecast(model: LinearGaussian, state: GaussianState, steps: int) -> Forecast:
    """Exact predictive moments of the next observations.

    Args:
        model: With a time axis of `steps`, if any: the parameters of the future.
        state: Where to start: `Filtered.next`.
        steps: How far, in steps.
    Raises:
        ValueError: steps is below 1.
    """
    if steps < 1:
        raise ValueError(f"forecast: steps must be at least 1, got {steps}")
    means, covs = [], []
    for t in range(steps):
        step = model.at(t)
        H = step.observation
        means.append(times(H, state.mean) + (0 if step.observation_offset is None else step.observation_offset))
        covs.append(H @ state.cov @ H.mT + step.observation_noise)
        state = advance(step, state)
    return Forecast(torch.stack(means, 1), torch.stack(covs, 1))


def sample_paths(
    model: LinearGaussian, state: GaussianState, steps: int, paths: int, generator: torch.Generator | None = None
) -> Float[Tensor, "s b l c"]:
    """Joint draws of the next observations.

    Args:
        model: With a time axis of `steps`, if any.
        state: Where to start: `Filtered.next`.
        steps: How far, in steps.
        paths: Number of draws s.
        generator: Source of the draws; torch's own when None.
    Returns:
        Shape (s, b, steps, c).
    Raises:
        ValueError: steps or paths is below 1.
    """
    if min(steps, paths) < 1:
        raise ValueError(f"sample_paths: steps and paths must be at least 1, got {steps} and {paths}")

    def draw(cov: Tensor) -> Tensor:
        noise = torch.randn(paths, *size, cov.shape[-1], generator=generator, dtype=cov.dtype, device=cov.device)
        return times(_square_root(cov), noise)

    size = state.mean.shape[:1]
    x, drawn = state.mean + draw(state.cov), []
    for t in range(steps):
        step = model.at(t)
        y = times(step.observation, x) + draw(step.observation_noise)
        drawn.append(y if step.observation_offset is None else y + step.observation_offset)
        x = times(step.transition, x) + draw(step.process_noise)
        x = x if step.state_offset is None else x + step.state_offset
    return torch.stack(drawn, 2)


def innovation(step: LinearGaussian, mean: Tensor, cov: Tensor, y: Tensor) -> Innovation:
    """Whiten one measurement, shape (*b, c), against the moments (*b, n) and (*b, n, n) of x before it.

    A missing component becomes one that says nothing: its row of H is zero and its variance 1.
    """
    seen = ~y.isnan()
    mark = seen.to(mean.dtype)
    H = step.observation * mark[..., None]
    expected = times(H, mean) + (0 if step.observation_offset is None else step.observation_offset * mark)
    residual = torch.where(seen, y, 0.0).to(mean.dtype) - expected
    HP = H @ cov
    S = HP @ H.mT + step.observation_noise * (mark[..., None] * mark[..., None, :]) + torch.diag_embed(1 - mark)
    if S.shape[-1] == 1:  # most models: spares a LAPACK call for every item
        root = S.sqrt()
        whitened = [part / root for part in (residual[..., None], H.expand_as(HP), HP)]
    else:
        root = torch.linalg.cholesky(S)
        whitened = [torch.linalg.solve_triangular(root, p, upper=False) for p in (residual[..., None], H, HP)]
    e = whitened[0][..., 0]
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_likelihood = -0.5 * e.square().sum(-1) - log_det - 0.5 * math.log(2 * math.pi) * mark.sum(-1)
    return Innovation(e, whitened[1], whitened[2], log_likelihood)


def measure(step: LinearGaussian, state: GaussianState, y: Tensor) -> tuple[GaussianState, Tensor]:
    """x[t] after y[t], shape (b, c), and the log-likelihood of y[t], shape (b,)."""
    seen = innovation(step, state.mean, state.cov, y)
    mean = state.mean + times(seen.gain.mT, seen.residual)
    return GaussianState(mean, state.cov - seen.gain.mT @ seen.gain), seen.log_likelihood


def advance(step: LinearGaussian, state: GaussianState) -> GaussianState:
    """x[t+1] from x[t]: mean (b, n), covariance (b, n, n)."""
    F = step.transition
    mean = times(F, state.mean)
    cov = F @ state.cov @ F.mT + step.process_noise
    return GaussianState(mean if step.state_offset is None else mean + step.state_offset, 0.5 * (cov + cov.mT))


def initial_state(model: LinearGaussian, batch: int) -> GaussianState:
    """x[0] before y[0], for a batch of b: mean (b, n), covariance (b, n, n)."""
    n = model.initial_mean.shape[-1]
    return GaussianState(model.initial_mean.expand(batch, n), model.initial_cov.expand(batch, n, n))


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Batched matrix (*b, i, j) times vector (*b, j)."""
    return (matrix @ vector[..., None])[..., 0]


def check_model(op: str, model: LinearGaussian, y: Tensor) -> None:
    """Shapes of a model against observations (b, l, c).

    Raises:
        ValueError: A shape disagrees, or y is empty or infinite; names the argument.
    """
    shapes = Shapes(op)
    shapes.check("y", y, "b l c")
    if not y.numel():
        raise ValueError(f"{op}: y has shape {tuple(y.shape)}, expected at least one measurement")
    letters = ("n n", "n n", "c n", "c c", "n", "n n", "n", "c")
    for name, value, letter in zip(LinearGaussian._fields, model, letters, strict=True):
        if value is not None:
            timed = () if name.startswith("initial") else (f"b l {letter}",)
            shapes.check(name, value, letter, f"b {letter}", *timed)
    if y.isinf().any():
        raise ValueError(f"{op}: y has infinite values; NaN marks a missing one")


def _scan(model: LinearGaussian, y: Tensor, return_moments: bool) -> tuple[Tensor, Tensor, Tensor]:
    return ssm_kernels.kalman_filter(
        model.transition,
        model.process_noise,
        model.observation,
        model.observation_noise,
        model.initial_mean,
        model.initial_cov,
        y,
        state_offset=model.state_offset,
        observation_offset=model.observation_offset,
        return_moments=return_moments,
    )


def _in_time(states: list[GaussianState]) -> tuple[Tensor, Tensor]:
    return torch.stack([s.mean for s in states], 1), torch.stack([s.cov for s in states], 1)


def _eye(cov: Tensor) -> Tensor:
    return torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)


def _square_root(cov: Tensor) -> Tensor:
    """Symmetric root of a covariance that may be singular (*b, n, n)."""
    values, vectors = torch.linalg.eigh(cov)
    return vectors * values.clamp(min=0).sqrt()[..., None, :]
