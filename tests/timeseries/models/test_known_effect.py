"""The effect of what is known: least squares of differences, missing values, and a table for every step of a cycle."""

import math

import torch

from timeseries.models.known_effect import KnownEffect


def test_it_finds_the_effect_under_a_random_walk():
    torch.manual_seed(0)
    known = torch.randn(2000, 2, dtype=torch.float64)
    true = torch.tensor([[1.0, -3.0, 0.0], [0.5, 0.0, 2.0]], dtype=torch.float64)
    values = (known @ true).T + 0.1 * torch.randn(3, 2000, dtype=torch.float64).cumsum(1)
    values[1, 50:90] = math.nan
    effect = KnownEffect(2, 3)
    assert not effect(known).any()
    effect.fit(values, known, (0, 1500))
    torch.testing.assert_close(effect.weight, true, atol=0.02, rtol=0)
    torch.testing.assert_close(effect(known), (known @ effect.weight).T)


def test_as_many_waves_as_steps_are_a_table():
    """Any pattern of eight steps is taken off whole; equal columns share an effect."""
    t = torch.arange(400, dtype=torch.float64)
    waves = [torch.cos(2 * math.pi * k * t / 8) for k in (1, 2, 3, 4)]
    waves += [torch.sin(2 * math.pi * k * t / 8) for k in (1, 2, 3)]
    known = torch.stack([*waves, waves[0]], 1)
    pattern = torch.randn(8, dtype=torch.float64)
    effect = KnownEffect(8, 1)
    effect.fit(pattern.repeat(50)[None], known, (0, 400))
    left = pattern.repeat(50) - effect(known)[0]
    torch.testing.assert_close(left, left.mean().expand(400), atol=1e-4, rtol=0)
    ahead = effect.ahead(known, torch.tensor([3, 7]), 5)
    torch.testing.assert_close(ahead[0, 1], effect(known)[0, 8:13])
