"""How native.c draws a token, in plain Python: the oracle, and what the PyTorch paths draw with."""

from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 2**64 - 1


@dataclass(frozen=True)
class Draw:
    """How the next token is drawn: divide by the temperature, keep the top_k, then the top_p, then draw.

    Levels as likely as the last one kept are kept too. The draw depends on (seed, position) alone, so a clip is the
    same in any batch, in any chunks, and after any pause.

    Raises:
        ValueError: temperature < 0, top_k < 0, or top_p not in (0, 1].
    """

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest level."""
    top_k: int = 0
    """Keep this many of the likeliest levels; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest levels that together weigh this share of what the top_k left."""

    def __post_init__(self):
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise ValueError(
                f"Draw: temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}, expected temperature "
                "and top_k of at least 0 and 0 < top_p <= 1"
            )


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for each (seed, position): splitmix64's mixing, twice, of a counter. Raises nothing.

    Source: Steele et al. 2014, Fast splittable pseudorandom number generators.
    """
    v = (seed * 0xD1342543DE82EF95 + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    for _ in range(2):
        v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        v = (v ^ (v >> 27)) * 0x94D049BB133111EB & _MASK
        v ^= v >> 31
    return (v >> 11) * 2.0**-53


def draw_token(logits: Tensor, draw: Draw, seed: int, position: int) -> int:
    """The token of one clip.

    Args:
        logits: float32, shape (levels,).
        draw: How.
        seed: The clip's.
        position: Tokens that the clip has drawn before.
    Returns:
        A level.
    """
    best = int(logits.argmax())
    if draw.temperature == 0:
        return best
    chance = ((logits - logits[best]) * torch.tensor(1 / draw.temperature)).exp()
    if 0 < draw.top_k < len(chance):
        chance = torch.where(chance >= chance.sort(descending=True).values[draw.top_k - 1], chance, 0)
    weights = chance.double()
    if draw.top_p < 1:
        sorted_weights = weights.sort(descending=True).values
        needed = int((sorted_weights.cumsum(0) < draw.top_p * weights.sum()).sum())
        weights = torch.where(weights >= sorted_weights[min(needed, len(weights) - 1)], weights, 0)
    distribution = weights.cumsum(0)
    target = uniform(seed, position) * float(distribution[-1])
    return int(torch.searchsorted(distribution, torch.tensor(target, dtype=torch.float64), right=True).clamp(
        max=int(weights.nonzero().max())
    ))  # fmt: skip


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """`uniform` of many clips, on any device.

    Args:
        seeds: One a clip, int64, shape (b,).
        positions: Tokens that each clip has drawn before, int64, shape (b,).
    Returns:
        Numbers in [0, 1), float64, shape (b,).
    """

    def product(v: Tensor, factor: int) -> Tensor:
        return v * (factor - 2**64 if factor >= 2**63 else factor)  # int64 wraps as uint64 does

    def mixed(v: Tensor, shift: int) -> Tensor:
        return v ^ _shifted(v, shift)

    v = product(seeds, 0xD1342543DE82EF95) + product(positions + 1, 0x9E3779B97F4A7C15)
    for _ in range(2):
        v = product(mixed(v, 30), 0xBF58476D1CE4E5B9)
        v = mixed(product(mixed(v, 27), 0x94D049BB133111EB), 31)
    return _shifted(v, 11).double() * 2.0**-53


def _shifted(v: Tensor, by: int) -> Tensor:
    """v >> by, as of unsigned numbers."""
    return (v >> by) & ((1 << (64 - by)) - 1)


def draw_tokens(logits: Tensor, draw: Draw, seeds: Tensor, positions: Tensor) -> Tensor:
    """`draw_token` of many clips at once, on any device, without waiting for it: CUDA graphs can hold it.

    Args:
        logits: float32, shape (b, levels).
        draw: How.
        seeds: One a clip, int64, shape (b,).
        positions: Tokens that each clip has drawn before, int64, shape (b,).
    Returns:
        Levels, int64, shape (b,).
    """
    best, levels = logits.max(-1, keepdim=True), logits.shape[-1]
    if draw.temperature == 0:
        return best.indices[:, 0]
    chance = ((logits - best.values) * (1 / draw.temperature)).exp()
    if 0 < draw.top_k < levels:
        chance = torch.where(chance >= chance.sort(-1, descending=True).values[:, draw.top_k - 1, None], chance, 0)
    weights = chance.double()
    if draw.top_p < 1:
        ordered = weights.sort(-1, descending=True).values
        wanted = draw.top_p * weights.sum(-1, keepdim=True)
        needed = (ordered.cumsum(-1) < wanted).sum(-1, keepdim=True).clamp(max=levels - 1)
        weights = torch.where(weights >= ordered.gather(-1, needed), weights, 0)
    distribution = weights.cumsum(-1)
    target = uniforms(seeds, positions)[:, None] * distribution[:, -1:]
    drawn = torch.searchsorted(distribution, target, right=True)[:, 0]
    last = torch.where(weights > 0, torch.arange(levels, device=logits.device), 0).amax(-1)
    return torch.minimum(drawn, last)
