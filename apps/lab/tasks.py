"""Synthetic tasks, each a function that draws a batch: sequences that one ability solves and nothing else does.

    draw(batch, length, generator) -> inputs, targets

Inputs are tokens (b, l), targets classes (b, l), -100 where nothing is asked. A batch is a function of the generator's
seed alone, so training data need not be stored. ListOps and regression have files of their own; protocols.py says how
large each task is and how it is trained.

b batch, l length, V vocabulary.
"""

from itertools import permutations

import torch
from torch import Tensor

NOTHING = -100
Drawn = tuple[Tensor, Tensor]


def induction(batch: int, length: int, generator: torch.Generator, *, vocab: int = 16) -> Drawn:
    """A trigger stands once at a random place, and again at the end: what followed it the first time?

    Args:
        batch: b.
        length: l, at least 3.
        generator: Of the draws.
        vocab: V, the trigger among them.
    Returns:
        Tokens and targets, int64, shape (b, l); the last position alone is asked.
    Raises:
        ValueError: length is below 3.
    Source: Gu & Dao 2023, Mamba, sec. 4.1.2; Olsson et al. 2022.
    """
    at_least("induction", length, 3)
    trigger = vocab - 1
    x = torch.randint(trigger, (batch, length), generator=generator)
    place = torch.randint(length - 2, (batch,), generator=generator)
    rows = torch.arange(batch)
    x[rows, place] = trigger
    x[:, -1] = trigger
    return x, _only_at(x, length - 1, x[rows, place + 1])


def selective_copy(
    batch: int, length: int, generator: torch.Generator, *, vocab: int = 16, items: int = 16, plain: bool = False
) -> Drawn:
    """Data tokens at random places among noise, then markers: say the data in their order. `plain` puts them first.

    Args:
        batch: b.
        length: Of the part before the markers, at least `items`.
        generator: Of the draws.
        vocab: V: noise is 0, the marker V - 1, data stand between.
        items: Data tokens, and markers.
        plain: Data first, noise after: an ordinary delay line can do that.
    Returns:
        Tokens and targets, int64, shape (b, length + items); the markers are asked.
    Raises:
        ValueError: length is below `items`.
    Source: Gu & Dao 2023, Mamba, sec. 4.1.1; Arjovsky et al. 2016 (plain copying).
    """
    at_least("selective_copy", length, items)
    data = torch.randint(1, vocab - 1, (batch, items), generator=generator)
    places = torch.arange(items).expand(batch, -1)
    if not plain:
        places = torch.rand(batch, length, generator=generator).argsort(1)[:, :items].sort(1).values
    x = torch.zeros(batch, length + items, dtype=torch.int64)
    x.scatter_(1, places, data)
    x[:, length:] = vocab - 1
    targets = torch.full_like(x, NOTHING)
    targets[:, length:] = data
    return x, targets


def recall(batch: int, length: int, generator: torch.Generator, *, vocab: int = 10) -> Drawn:
    """Pairs of a key and its value, then one of the keys: which value was its own?

    Args:
        batch: b.
        length: l, odd numbers lose their last token but one; at least 3.
        generator: Of the draws.
        vocab: V: keys are the first half, values the second; a key has one value in a sequence.
    Returns:
        Tokens and targets, int64, shape (b, l); the last position alone is asked.
    Raises:
        ValueError: length is below 3.
    Source: Fu et al. 2023, H3, sec. 3.1; Ba et al. 2016.
    """
    at_least("recall", length, 3)
    pairs, half = (length - 1) // 2, vocab // 2
    book = torch.randint(half, vocab, (batch, half), generator=generator)
    keys = torch.randint(half, (batch, pairs), generator=generator)
    asked = keys.gather(1, torch.randint(pairs, (batch, 1), generator=generator))
    told = torch.stack([keys, book.gather(1, keys)], -1).flatten(1)
    x = torch.cat([told, asked], 1)
    return x, _only_at(x, x.shape[1] - 1, book.gather(1, asked)[:, 0])


def mqar(
    batch: int,
    length: int,
    generator: torch.Generator,
    *,
    vocab: int = 8192,
    pairs: int = 4,
    power: float = 0.01,
    filler: bool = True,
) -> Drawn:
    """Several pairs first, each key asked once later on, most of them soon: multi-query associative recall.

    Args:
        batch: b.
        length: l, even, at least 4 pairs.
        generator: Of the draws.
        vocab: V: keys below V / 2, values above; none twice in a sequence; 0 is never one.
        pairs: Pairs, and questions.
        power: Exponent of the gaps' power law.
        filler: Random tokens between the questions, which may be keys or values; without, zeros.
    Returns:
        Tokens and targets, int64, shape (b, l); the questions are asked.
    Raises:
        ValueError: length is odd or below 4 pairs.
    Source: Arora et al. 2023, Zoology, sec. 4 and appendix E.
    """
    space = (length - 2 * pairs) // 2
    if length % 2 or space < pairs:
        raise ValueError(f"mqar: length={length}, expected an even number of at least {4 * pairs} for {pairs} pairs")
    half = vocab // 2
    keys = 1 + torch.rand(batch, half - 1, generator=generator).argsort(1)[:, :pairs]
    values = half + torch.rand(batch, vocab - half, generator=generator).argsort(1)[:, :pairs]
    weight = power * torch.arange(1, space + 1, dtype=torch.float64) ** (power - 1)
    # The largest of log p plus Gumbel noise are a draw without replacement.
    noise = -torch.rand(batch, space, generator=generator, dtype=torch.float64).log().neg().log()
    gaps = (weight.log() + noise).argsort(1, descending=True)[:, :pairs]
    x = torch.randint(1, vocab, (batch, length), generator=generator) * filler
    x[:, : 2 * pairs] = torch.stack([keys, values], -1).flatten(1)
    asked = 2 * pairs + 2 * gaps
    x.scatter_(1, asked, keys)
    targets = torch.full_like(x, NOTHING).scatter_(1, asked, values)
    return x, targets


def parity(batch: int, length: int, generator: torch.Generator) -> Drawn:
    """Bits: is the number of ones so far odd? Asked at every position.

    Args:
        batch: b.
        length: l, at least 1.
        generator: Of the draws.
    Returns:
        Tokens and targets, int64, shape (b, l).
    Raises:
        ValueError: length is below 1.
    Source: Deletang et al. 2023; Grazzi et al. 2025 (needs negative or complex eigenvalues).
    """
    at_least("parity", length, 1)
    x = torch.randint(2, (batch, length), generator=generator)
    return x, x.cumsum(1) % 2


def permutation(batch: int, length: int, generator: torch.Generator, *, size: int = 5) -> Drawn:
    """Permutations one after the other: which one are they together? Asked at every position.

    Args:
        batch: b.
        length: l, at least 1.
        generator: Of the draws.
        size: Things that are permuted: the group is S_size, of size! elements.
    Returns:
        Tokens and targets, int64, shape (b, l).
    Raises:
        ValueError: length is below 1.
    Source: Merrill et al. 2024, The illusion of state (S5 is complete for NC1).
    """
    at_least("permutation", length, 1)
    elements = torch.tensor(list(permutations(range(size))))
    place = {tuple(p): i for i, p in enumerate(elements.tolist())}
    after = torch.tensor([[place[tuple(q[i] for i in p)] for q in elements.tolist()] for p in elements.tolist()])
    x = torch.randint(len(elements), (batch, length), generator=generator)
    so_far, out = torch.zeros(batch, dtype=torch.int64), []
    for step in x.unbind(1):
        so_far = after[step, so_far]
        out.append(so_far)
    return x, torch.stack(out, 1)


def at_least(name: str, length: int, least: int) -> None:
    """Raise ValueError where a length, in tokens, is below the least that a task can have."""
    if length < least:
        raise ValueError(f"{name}: length={length}, expected at least {least}")


def _only_at(x: Tensor, place: int, answer: Tensor) -> Tensor:
    targets = torch.full_like(x, NOTHING)
    targets[:, place] = answer
    return targets
