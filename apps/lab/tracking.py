"""`python -m apps.lab kalman`: a vehicle that is seen now and then is filtered and smoothed, both ways."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from ssmcore import kalman
from ssmcore.kalman import LinearGaussian

from .config import KalmanConfig


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """What was found."""

    errors: dict[str, float]
    """Root mean square error of the position, m, where it was measured and where it was not."""
    covered: float
    """Part of the positions inside the smoother's 95 % interval."""
    difference: float
    """Largest between the sequential and the parallel moments."""
    log_likelihood: float
    """Of the record, nats."""
    dense: float
    """The same by one Gaussian of all measurements."""


def run(config: KalmanConfig) -> Tracking:
    """Draw a motion, estimate it, and write output/kalman.png.

    Args:
        config: What to do.
    Raises:
        ValueError: There are fewer than 8 steps, or a number is not positive. No shapes.
    """
    if config.steps < 8 or min(config.dt, config.push, config.noise) <= 0 or not 0 <= config.missing < 1:
        raise ValueError(
            f"kalman: steps={config.steps}, dt={config.dt}, push={config.push}, noise={config.noise}, "
            f"missing={config.missing}; expected 8 steps or more, positive numbers, and missing in [0, 1)"
        )
    model = vehicle(config.dt, config.push, config.noise)
    x, y = _drawn(model, config)
    filtered, smoothed = (f(model, y) for f in (kalman.kalman_filter, kalman.kalman_smoother))
    again, after = (f(model, y, method="parallel") for f in (kalman.kalman_filter, kalman.kalman_smoother))
    pairs = (
        (filtered.mean, again.mean),
        (filtered.cov, again.cov),
        (smoothed.mean, after.mean),
        (smoothed.cov, after.cov),
    )
    true, seen = x[0, :, 0], ~y[0, :, 0].isnan()
    spread = smoothed.cov[0, :, 0, 0].sqrt()
    near = smoothed.mean[0, :, 0]
    unseen = {
        "filtered, unseen": _rms((filtered.mean[0, :, 0] - true)[~seen]),
        "smoothed, unseen": _rms((near - true)[~seen]),
    }
    tracking = Tracking(
        errors={
            "measured": _rms((y[0, :, 0] - true)[seen]),
            "filtered": _rms((filtered.mean[0, :, 0] - true)[seen]),
            "smoothed": _rms((near - true)[seen]),
            **({} if seen.all() else unseen),
        },
        covered=((near - true).abs() < 1.96 * spread).double().mean().item(),
        difference=max((a - b).abs().max().item() for a, b in pairs),
        log_likelihood=filtered.log_likelihood.sum().item(),
        dense=_dense_log_likelihood(model, y[0, :, 0]),
    )
    _draw(config, true, y[0, :, 0], filtered.mean[0, :, 0], near, spread)
    return tracking


def vehicle(dt: float, push: float, noise: float) -> LinearGaussian:
    """A motion at almost constant velocity on a line, whose position is measured.

    Args:
        dt: Step, in s.
        push: Standard deviation of the acceleration, in m / s^2 times the root of a second.
        noise: Of a measurement, in m. No shapes, raises nothing.
    """
    F = torch.tensor([[1, dt], [0, 1]], dtype=torch.float64)
    Q = push**2 * torch.tensor([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]], dtype=torch.float64)
    H = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    R = torch.tensor([[noise**2]], dtype=torch.float64)
    return LinearGaussian(F, Q, H, R, torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))


def _drawn(model: LinearGaussian, config: KalmanConfig) -> tuple[Tensor, Tensor]:
    """States (1, l, 2) and measurements (1, l, 1), NaN where there was none: single ones and one long stretch."""
    generator = torch.Generator().manual_seed(config.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    push = torch.linalg.cholesky(model.process_noise)
    x, states = normal(2), []
    for _ in range(config.steps):
        states.append(x)
        x = model.transition @ x + push @ normal(2)
    truth = torch.stack(states)
    y = truth[:, :1] + config.noise * normal(config.steps, 1)
    y[torch.rand(config.steps, generator=generator) < config.missing] = torch.nan
    y[config.steps // 2 : config.steps // 2 + round(config.missing * config.steps / 2)] = torch.nan
    return truth[None], y[None]


def _dense_log_likelihood(model: LinearGaussian, y: Tensor) -> float:
    """Of the measurements as one Gaussian vector, its covariance built step by step."""
    F, Q, H = model.transition, model.process_noise, model.observation
    cov = [model.initial_cov]
    for _ in range(len(y) - 1):
        cov.append(F @ cov[-1] @ F.T + Q)
    joint = torch.zeros(len(y), len(y), dtype=torch.float64)
    for t, start in enumerate(cov):
        for s in range(t, len(y)):
            joint[t, s] = joint[s, t] = (H @ start @ H.T).item()
            start = start @ F.T
    joint += model.observation_noise.item() * torch.eye(len(y), dtype=torch.float64)
    seen = ~y.isnan()
    known = torch.distributions.MultivariateNormal(torch.zeros(int(seen.sum())).double(), joint[seen][:, seen])
    return known.log_prob(y[seen]).item()


def _rms(error: Tensor) -> float:
    return error.square().mean().sqrt().item()


def _draw(config: KalmanConfig, true: Tensor, y: Tensor, filtered: Tensor, smoothed: Tensor, spread: Tensor) -> None:
    path = Path(config.output) / "kalman.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    time = torch.arange(len(true)) * config.dt
    figure, axis = plt.subplots(figsize=(8, 3.2))
    axis.fill_between(time, smoothed - 1.96 * spread, smoothed + 1.96 * spread, alpha=0.25, label="smoothed, 95 %")
    axis.plot(time, y, ".", color="grey", markersize=3, label="measured")
    axis.plot(time, true, color="black", linewidth=1, label="true")
    axis.plot(time, filtered, "--", linewidth=1, label="filtered")
    axis.plot(time, smoothed, linewidth=1, label="smoothed")
    axis.set(xlabel="s", ylabel="position, m")
    axis.legend(fontsize=8, ncol=5)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
