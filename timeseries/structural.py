"""Fitting structural models to many series at once by maximum likelihood, and what a fitted one answers.

    fitted = fit_structural(y, StructuralConfig(trend="linear", seasons=(24,)))
    mean, variance = fitted.forecast(48)            exact Gaussian moments of the next 48 values
    surprise = fitted.update(value)                 one more observation, in constant time
    parts = fitted.decompose()                      trend and seasons, given the whole series

Series are standardised one by one, missing values (NaN) are skipped, and the likelihood is the diffuse one up to the
vague prior of models/structural.py: the variances of the starting states are not charged to the series.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssmcore.array_types import Float
from ssmcore.kalman import (
    GaussianState,
    LinearGaussian,
    forecast,
    kalman_filter,
    kalman_smoother,
    log_likelihood,
    update,
)

from .config import StructuralConfig
from .models.structural import VAGUE, contributions, structural_model, variance_names

STARTS = ((0.3, 0.1), (0.02, 0.5), (0.5, 1e-4))
"""Variances that a search starts from: of the irregular component, and of each other one."""
LOWEST, HIGHEST = math.log(1e-11), math.log(1e3)
"""Range of a log variance. Below it a component is deterministic for any purpose."""
DIFFERENCE = 1e-3
"""Step of the numerical derivatives in log variances."""


@dataclass(frozen=True, kw_only=True)
class FittedStructural:
    """A batch of series and the model that was fitted to each."""

    config: StructuralConfig
    """Components, the same for all."""
    variances: Float[Tensor, "b k"]
    """In the order of `variance_names(config)`, in units of `scale` squared."""
    location: Float[Tensor, "b"]
    """Mean of each series."""
    scale: Float[Tensor, "b"]
    """Standard deviation of each series; 1 for a constant one."""
    state: GaussianState
    """x after the last observation, in standard units: where forecasts and updates go on."""
    log_likelihood: Float[Tensor, "b"]
    """Diffuse log-likelihood of each series in its own units, nats."""
    aic: Float[Tensor, "b"]
    """Akaike's criterion: -2 log-likelihood + 2 (variances + diffuse states); lower is better."""

    @property
    def model(self) -> LinearGaussian:
        """The linear Gaussian model, in standard units."""
        return structural_model(self.config, self.variances)

    def forecast(self, steps: int) -> tuple[Float[Tensor, "b l"], Float[Tensor, "b l"]]:
        """Exact mean and variance of the next values, in the units of the series.

        Args:
            steps: How far.
        Raises:
            ValueError: steps is below 1.
        """
        ahead = forecast(self.model, self.state, steps)
        mean = ahead.mean[..., 0] * self.scale[:, None] + self.location[:, None]
        return mean, ahead.cov[..., 0, 0] * self.scale[:, None] ** 2

    def update(self, y: Float[Tensor, "b"]) -> tuple["FittedStructural", Float[Tensor, "b"]]:
        """One more value of each series, in constant time.

        Args:
            y: NaN where there is none, shape (b,).
        Returns:
            The model after it; and the log-likelihood of y before it was seen, nats: the lower, the odder.
        Raises:
            ValueError: The shape is wrong or a value is infinite.
        """
        state, odd = update(self.model, self.state, self._standard(y[:, None]))
        return replace(self, state=state), odd - ~y.isnan() * self.scale.log()

    def filter(self, y: Float[Tensor, "b l"]) -> "FittedStructural":
        """The same model after another history, shape (b, l).

        Raises:
            ValueError: The shape is wrong or a value is infinite.
        """
        likelihood, state = log_likelihood(self.model, self._standard(y)[..., None])
        return replace(self, state=state, log_likelihood=likelihood.sum(1))

    def decompose(self, y: Float[Tensor, "b l"]) -> dict[str, Float[Tensor, "b l"]]:
        """What each component adds to a series, given all of it, in its units; the trend holds the mean.

        Args:
            y: The series, NaN where missing, shape (b, l).
        Raises:
            ValueError: The shape is wrong or a value is infinite.
        """
        smoothed = kalman_smoother(self.model, self._standard(y)[..., None])
        parts = contributions(self.config, smoothed.mean)
        scaled = {name: part * self.scale[:, None] for name, part in parts.items()}
        first = next(iter(scaled))
        return scaled | {first: scaled[first] + self.location[:, None]}

    def anomaly(self, y: Float[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """Prediction error of each value in predicted standard deviations; NaN where there is no value.

        Args:
            y: The series, NaN where missing, shape (b, l).
        Raises:
            ValueError: The shape is wrong or a value is infinite.
        """
        model, z = self.model, self._standard(y)
        seen = kalman_filter(model, z[..., None])
        H = model.observation[0]
        spread = torch.einsum("bltn,n->blt", seen.predicted_cov, H) @ H + model.observation_noise[:, 0]
        return (z - seen.predicted_mean @ H) / spread.sqrt()

    def _standard(self, y: Tensor) -> Tensor:
        if y.ndim != 2 or len(y) != len(self.scale):
            raise ValueError(f"FittedStructural: y has shape {tuple(y.shape)}, expected ({len(self.scale)}, l)")
        return (y.double() - self.location[:, None]) / self.scale[:, None]


def fit_structural(
    y: Float[Tensor, "b l"], config: StructuralConfig, iterations: int = 30, tolerance: float = 1e-7
) -> FittedStructural:
    """Maximum-likelihood variances of every series, all series at once.

    A damped Newton search in the logarithms of the variances from three starts; derivatives are differences of
    likelihoods, which one call of the batched filter returns for all series and all displacements.

    Args:
        y: Series side by side, NaN where missing, shape (b, l); shorter ones are padded with NaN.
        config: Components.
        iterations: At most so many Newton steps.
        tolerance: A series is done when a step gains less than this, nats.
    Raises:
        ValueError: y has a wrong shape, no value in some series, or an infinite one.
    """
    if y.ndim != 2 or not y.numel():
        raise ValueError(f"fit_structural: y has shape {tuple(y.shape)}, expected (b, l) with at least one value")
    if y.isinf().any():
        raise ValueError("fit_structural: y has infinite values; NaN marks a missing one")
    y = y.double()
    seen = ~y.isnan()
    if not seen.any(1).all():
        raise ValueError(f"fit_structural: series {int((~seen.any(1)).nonzero()[0])} has no value, only NaN")
    location = y.nanmean(1)
    scale = (y - location[:, None]).square().nanmean(1).sqrt()
    scale = torch.where(scale > 1e-12 * (1 + location.abs()), scale, 1.0)
    z = ((y - location[:, None]) / scale[:, None])[..., None]
    names = variance_names(config)
    best, value = None, None
    for irregular, other in STARTS:
        start = torch.tensor([irregular, *[other] * (len(names) - 1)], dtype=torch.float64).log().expand(len(y), -1)
        found, reached = _climb(config, z, start.clone(), iterations, tolerance)
        if best is None or value is None:
            best, value = found, reached
        better = reached > value
        best, value = torch.where(better[:, None], found, best), torch.where(better, reached, value)
    assert best is not None
    variances = best.exp()
    model = structural_model(config, variances)
    likelihood, state = log_likelihood(model, z)
    n = model.transition.shape[-1]
    diffuse = likelihood.sum(1) + 0.5 * n * math.log(VAGUE) - seen.sum(1) * scale.log()
    aic = -2 * diffuse + 2 * (len(names) + n)
    return FittedStructural(
        config=config, variances=variances, location=location, scale=scale, state=state, log_likelihood=diffuse, aic=aic
    )


def _climb(config: StructuralConfig, z: Tensor, x: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Maximise the likelihood of each series over its log variances x (b, k); returns them and the values (b,)."""
    value = _values(config, z, x[None])[0]
    damping, active = torch.ones_like(value), torch.ones_like(value, dtype=torch.bool)
    for _ in range(iterations):
        at = active.nonzero()[:, 0]
        if not len(at):
            break
        gradient, curvature = _derivatives(config, z[at], x[at])
        # A log variance at its lower end that wants further down is done: it moves no more.
        free = ~(((x[at] <= LOWEST) & (gradient < 0)) | ((x[at] >= HIGHEST) & (gradient > 0)))
        gradient = gradient * free
        values, vectors = torch.linalg.eigh(curvature * (free[:, :, None] & free[:, None, :]))
        size = values.abs() + damping[at, None] + 1e-9
        step = ((vectors.mT @ gradient[..., None])[..., 0] / size)[..., None]
        step = ((vectors @ step)[..., 0] * free).clamp(-4, 4)
        trial = (x[at] + step).clamp(LOWEST, HIGHEST)
        reached = _values(config, z[at], trial[None])[0]
        gain = reached - value[at]
        taken = gain > 0
        x[at[taken]], value[at[taken]] = trial[taken], reached[taken]
        damping[at] = torch.where(taken, damping[at] * 0.2, damping[at] * 5).clamp(1e-6, 1e6)
        active[at] = ~(taken & (gain < tolerance)) & (damping[at] < 1e5)
    return x, value


def _derivatives(config: StructuralConfig, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (b, k) and Hessian (b, k, k) by central differences, from one batch of likelihoods."""
    k = x.shape[1]
    unit = torch.eye(k, dtype=x.dtype) * DIFFERENCE
    pairs = [(i, j) for i in range(k) for j in range(i)]
    moves = [torch.zeros(k, dtype=x.dtype), *unit, *-unit]
    moves += [s * (unit[i] + unit[j]) for i, j in pairs for s in (1, -1)]
    f = _values(config, z, x[None] + torch.stack(moves)[:, None])
    here, up, down = f[0], f[1 : k + 1], f[k + 1 : 2 * k + 1]
    gradient = (up - down) / (2 * DIFFERENCE)
    hessian = torch.diag_embed(((up - 2 * here + down) / DIFFERENCE**2).T)
    for n, (i, j) in enumerate(pairs):
        both = f[2 * k + 1 + 2 * n] + f[2 * k + 2 + 2 * n] - 2 * here
        cross = both / (2 * DIFFERENCE**2) - (hessian[:, i, i] + hessian[:, j, j]) / 2
        hessian[:, i, j] = hessian[:, j, i] = cross
    return gradient.T, hessian


def _values(config: StructuralConfig, z: Tensor, x: Tensor) -> Tensor:
    """Log-likelihoods (m, b) of series (b, l, 1) at m sets of log variances (m, b, k)."""
    m, b, k = x.shape
    model = structural_model(config, x.reshape(m * b, k).exp())
    likelihood, _ = log_likelihood(model, z.repeat(m, 1, 1))
    return likelihood.sum(1).reshape(m, b)
