"""How native.c draws a token, in plain Python: the oracle, and what the PyTorch path draws with."""

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
