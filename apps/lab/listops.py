"""ListOps: nested lists of digits under MIN, MAX, MED and SM (sum modulo 10): what is the value of the whole?

    [MAX 2 9 [MIN 4 7 ] 0 ]  ->  9

Expressions are drawn as in Long Range Arena: at depth below 10 a node is an operator with probability 1/4, of 2 to 10
arguments, else a digit; those whose length is out of bounds are drawn again. The length counts operators, digits and
closing brackets. The median of an even number of arguments is the mean of the middle two, cut to an integer.
Source: Nangia & Bowman 2018, ListOps; Tay et al. 2021, Long Range Arena, sec. 2.2.1.
"""

import random
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .tasks import NOTHING

OPERATORS: dict[str, Callable[[Sequence[int]], int]] = {
    "MIN": min,
    "MAX": max,
    "MED": lambda values: int(statistics.median(values)),
    "SM": lambda values: sum(values) % 10,
}
VOCABULARY = ("<pad>", "<unk>", "<eos>", *map(str, range(10)), *(f"[{name}" for name in OPERATORS), "]")
"""18 tokens; a closing bracket is one, opening ones belong to their operator."""
MOST_DEPTH, OPERATOR_RATE, MOST_ARGUMENTS = 10, 0.25, 10


def expression(rng: random.Random, longest: int, depth: int = 1) -> tuple[list[str], int]:
    """Draw an expression.

    Args:
        rng: Source of the draws.
        longest: Give up as soon as there are more tokens; what is returned is then longer than this and worthless.
        depth: Of the node that is drawn.
    Returns:
        Its tokens, e.g. ["[MAX", "2", "9", "]"], and its value.
    """
    if depth >= MOST_DEPTH or rng.random() > OPERATOR_RATE:
        digit = rng.randrange(10)
        return [str(digit)], digit
    name = rng.choice(list(OPERATORS))
    tokens, values = [f"[{name}"], []
    for _ in range(rng.randint(2, MOST_ARGUMENTS)):
        inner, value = expression(rng, longest - len(tokens), depth + 1)
        tokens += inner
        values.append(value)
        if len(tokens) > longest:
            break
    return [*tokens, "]"], OPERATORS[name](values)


def evaluate(tokens: Sequence[str]) -> int:
    """The value of an expression's tokens.

    Args:
        tokens: As `expression` gives them.
    Raises:
        ValueError: They are no expression.
    """
    open_lists: list[tuple[str, list[int]]] = []
    for place, token in enumerate(tokens):
        if token.startswith("["):
            open_lists.append((token[1:], []))
            continue
        if token == "]":
            if not open_lists or not open_lists[-1][1]:
                raise ValueError(f"evaluate: a bracket closes nothing at token {place}")
            name, values = open_lists.pop()
            value = OPERATORS[name](values)
        else:
            value = int(token)
        if not open_lists:
            if place != len(tokens) - 1:
                raise ValueError(f"evaluate: the expression ends at token {place} of {len(tokens)}")
            return value
        open_lists[-1][1].append(value)
    raise ValueError("evaluate: a list is not closed")


def listops(batch: int, length: int, generator: torch.Generator, *, shortest: float = 0.25) -> tuple[Tensor, Tensor]:
    """A batch of expressions, each followed by <eos>, where its value is asked.

    Args:
        batch: b.
        length: l; an expression has fewer tokens than that.
        generator: Of the draws.
        shortest: An expression has more tokens than this part of l.
    Returns:
        Tokens, int64, padded on the right, and targets, shape (b, l).
    Raises:
        ValueError: length is below 8.
    """
    if length < 8:
        raise ValueError(f"listops: length={length}, expected at least 8")
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    index = {token: i for i, token in enumerate(VOCABULARY)}
    x = torch.zeros(batch, length, dtype=torch.int64)
    targets = torch.full_like(x, NOTHING)
    for row in range(batch):
        tokens: list[str] = []
        while not shortest * length < len(tokens) < length:
            tokens, value = expression(rng, length)
        x[row, : len(tokens) + 1] = torch.tensor([index[token] for token in [*tokens, "<eos>"]])
        targets[row, len(tokens)] = value
    return x, targets
