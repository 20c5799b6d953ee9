"""The oracle: the textbook filter, a step at a time, for any dtype; differentiable."""

import math

import torch
from torch import Tensor


def kalman_filter(
    transition: Tensor,
    process_noise: Tensor,
    observation: Tensor,
    observation_noise: Tensor,
    initial_mean: Tensor,
    initial_cov: Tensor,
    state_offset: Tensor | None,
    observation_offset: Tensor | None,
    y: Tensor,
    moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(y[t] | earlier) (b, l), predicted means (b, l + 1 or 1, n) and covariances (b, l + 1 or 1, n, n).

    A missing measurement is one that says nothing: its row of H is zero and its variance 1.
    """
    batch, n = y.shape[0], initial_mean.shape[-1]
    mean, cov = initial_mean.expand(batch, n), 0.5 * (initial_cov + initial_cov.mT).expand(batch, n, n)
    likelihoods, means, covs = [], [mean], [cov]
    for t, value in enumerate(y.unbind(1)):
        F, Q, H, R = (at(p, t, 4) for p in (transition, process_noise, observation, observation_noise))
        b, d = (None if p is None else at(p, t, 3) for p in (state_offset, observation_offset))
        seen = ~value.isnan()
        mark = seen.to(y.dtype)
        H = H * mark[..., None]
        expected = times(H, mean) if d is None else times(H, mean) + d * mark
        error = torch.where(seen, value, 0.0) - expected
        S = H @ cov @ H.mT + R * mark[..., None] * mark[..., None, :] + torch.diag_embed(1 - mark)
        K = torch.linalg.solve(S, H @ cov).mT
        weighed = torch.linalg.solve(S, error)
        log_det = torch.linalg.slogdet(S).logabsdet
        likelihoods.append(-0.5 * ((error * weighed).sum(-1) + log_det + math.log(2 * math.pi) * mark.sum(-1)))
        mean, cov = times(F, mean + times(K, error)), F @ (cov - K @ H @ cov) @ F.mT + Q
        mean, cov = mean if b is None else mean + b, 0.5 * (cov + cov.mT)
        means.append(mean)
        covs.append(cov)
    kept = slice(None) if moments else slice(-1, None)
    return torch.stack(likelihoods, 1), torch.stack(means[kept], 1), torch.stack(covs[kept], 1)


def at(parameter: Tensor, t: int, timed_rank: int) -> Tensor:
    """A parameter at one step; it has a time axis, its second, if its rank is `timed_rank`."""
    return parameter.select(1, t) if parameter.ndim == timed_rank else parameter


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Batched matrix (*b, i, j) times vector (*b, j)."""
    return (matrix @ vector[..., None])[..., 0]
