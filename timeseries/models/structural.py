"""Classical structural models: a series as the sum of level, trend, seasons and noise, written as a Kalman filter.

    y[t] = level[t] + season[t] + ... + e[t],            e ~ N(0, irregular)
    level[t+1] = level[t] + slope[t] + N(0, level),      slope[t+1] = damping slope[t] + N(0, slope)

A component brings states, the block of F that moves them, the row of H that adds them to y, and the states that its
variance stirs. Components are put side by side; variances are one a series, so many series make one batch.
Source: Harvey 1989, Forecasting, Structural Time Series Models and the Kalman Filter, ch. 2; the forms are those of
statsmodels' UnobservedComponents, whose likelihood is a test.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssmcore.array_types import Float
from ssmcore.kalman import LinearGaussian

from ..config import StructuralConfig

VAGUE = 1e6
"""Variance of a state of which nothing is known, in units of the series' own variance."""


class Component(NamedTuple):
    """A part of a structural model with n states."""

    name: str
    transition: Float[Tensor, "n n"]
    observation: Float[Tensor, "n"]
    stirred: dict[str, Float[Tensor, "n"]]
    """For each variance, by its name: the diagonal of the process noise at variance 1."""


def components_of(config: StructuralConfig) -> list[Component]:
    """The parts that a configuration asks for, trend first.

    Args:
        config: See its fields.
    """
    seasons = [_dummy(p) if config.harmonics is None else _harmonic(p, config.harmonics) for p in config.seasons]
    return [_trend(config), *seasons]


def variance_names(config: StructuralConfig) -> tuple[str, ...]:
    """Names of a configuration's variances, in the order of `structural_model`'s last axis."""
    return ("irregular", *(name for part in components_of(config) for name in part.stirred))


def structural_model(config: StructuralConfig, variances: Float[Tensor, "*b k"]) -> LinearGaussian:
    """The linear Gaussian model of a batch of series, in units where each series has mean 0 and variance 1.

    Args:
        config: Its components.
        variances: One for each of `variance_names`, positive, shape (b, k), or (b, l, k) where they vary over time.
    Raises:
        ValueError: The number of variances is wrong.
    """
    parts, names = components_of(config), variance_names(config)
    if variances.ndim not in (2, 3) or variances.shape[-1] != len(names):
        expected = f"(b, {len(names)}) or (b, l, {len(names)}): {', '.join(names)}"
        raise ValueError(f"structural_model: variances has shape {tuple(variances.shape)}, expected {expected}")
    F = torch.block_diag(*(part.transition for part in parts)).to(variances)
    H = torch.cat([part.observation for part in parts])[None].to(variances)
    n = len(F)
    pattern, start = torch.zeros(len(names), n).to(variances), 0
    for part in parts:
        stop = start + len(part.transition)
        for name, diagonal in part.stirred.items():
            pattern[names.index(name), start:stop] = diagonal.to(variances)
        start = stop
    Q = torch.diag_embed(variances @ pattern)
    nothing = torch.zeros(n).to(variances)
    return LinearGaussian(F, Q, H, variances[..., :1, None], nothing, VAGUE * torch.eye(n).to(variances))


def _trend(config: StructuralConfig) -> Component:
    if config.trend == "level":
        return Component("level", torch.ones(1, 1), torch.ones(1), {"level": torch.ones(1)})
    F = torch.tensor([[1.0, 1.0], [0.0, config.damping]])
    stirred = {"level": torch.tensor([1.0, 0.0]), "slope": torch.tensor([0.0, 1.0])}
    if config.trend == "smooth":
        del stirred["level"]
    return Component("trend", F, torch.tensor([1.0, 0.0]), stirred)


def _dummy(period: int) -> Component:
    """Any pattern of a period, whose sum over it is zero but for noise: states are the last period - 1 values."""
    n = period - 1
    F = torch.zeros(n, n)
    F[0] = -1
    F[1:, :-1] = torch.eye(n - 1)
    first = torch.eye(n)[0]
    return Component(f"season {period}", F, first, {f"season_{period}": first})


def _harmonic(period: int, harmonics: int) -> Component:
    """A pattern of the lowest harmonics of a period, each a rotating pair (Nyquist's is one state)."""
    blocks: list[Tensor] = []
    seen: list[float] = []
    for j in range(1, min(harmonics, period // 2) + 1):
        angle = 2 * math.pi * j / period
        if 2 * j == period:
            blocks.append(torch.tensor([[-1.0]]))
            seen.append(1.0)
        else:
            c, s = math.cos(angle), math.sin(angle)
            blocks.append(torch.tensor([[c, s], [-s, c]], dtype=torch.float64))
            seen += [1.0, 0.0]
    F = torch.block_diag(*(block.double() for block in blocks))
    return Component(f"season {period}", F, torch.tensor(seen), {f"season_{period}": torch.ones(len(seen))})


def contributions(config: StructuralConfig, states: Float[Tensor, "b l n"]) -> dict[str, Float[Tensor, "b l"]]:
    """What each component adds to the series.

    Args:
        config: The model's.
        states: Filtered or smoothed means, shape (b, l, n).
    Returns:
        By component, e.g. "trend" and "season 24", shape (b, l).
    """
    parts = components_of(config)
    pieces = states.split([len(part.observation) for part in parts], dim=-1)
    return {part.name: piece @ part.observation.to(piece) for part, piece in zip(parts, pieces, strict=True)}
