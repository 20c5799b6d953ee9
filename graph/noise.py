"""Random numbers that break ties and steer walks: fresh in training, a function of the node's place in evaluation.

In training they come from torch's global generator. In evaluation they are hashed from (seed, salt, place of the node
in its graph): two evaluations are equal, and a graph gets the same numbers whatever batch it is in.
"""

import torch
from torch import Tensor

from ssmcore.array_types import Float, Int

# splitmix64: an odd step and two multipliers; int64 products wrap, which is what is wanted.
_STEP, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def mix(value: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """A 64-bit hash of each entry, int64, any shape: neighbours give unrelated values.

    Raises nothing.
    Source: Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators (SplitMix64).
    """
    value = value + _STEP
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * _FIRST
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def uniform(place: Int[Tensor, "n"], *salt: int, fresh: bool) -> Float[Tensor, "n"]:
    """A number in [0, 1) for each node, float64.

    Args:
        place: Each node's place in its graph, shape (n,).
        salt: Whole numbers that tell one draw from another: seed, member of an ensemble, step of a walk.
        fresh: Draw from torch's generator and leave `place` and `salt` alone.
    Returns:
        Shape (n,), float64, device of `place`.
    """
    if fresh:
        return torch.rand(place.shape, dtype=torch.float64, device=place.device)
    key = place
    for number in salt:
        key = mix(key + mix(torch.tensor(number, device=place.device)))
    return ((mix(key) >> 11) & ((1 << 53) - 1)).double() * 2.0**-53
