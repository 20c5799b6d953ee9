"""What a model of samples has to beat: counted contexts and linear prediction, in bits a sample.

    P(x | c) = (n(c, x) + k P'(x)) / (n(c) + k)      counts n, the next simpler model P', a prior weight of k samples

unigram: no context. bigram: the sample before. trigram: the two before, at 6 bits each, backing off to the bigram.
linear prediction: one filter for the whole collection, least squares; the level it predicts, and how far it was off of
late (8 classes), are the context, backing off to the level alone.
Source: MacKay & Peto 1995, A hierarchical Dirichlet language model, for the prior;
Makhoul 1975, Linear prediction: a tutorial review, sec. II, for the filter (his covariance method).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PRIOR = 16.0
CONTEXT_BITS = 6
ORDER = 16
ERROR_CLASSES = 8


def baselines(
    train: Sequence[Tensor],
    test: Sequence[Tensor],
    levels: int,
    decode: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Bits a sample of the simple models, counted on `train`, on every sample of `test`.

    Args:
        train: Levels of the recordings, integers, shape (t,) each.
        test: The same of the test part.
        levels: Number of levels, n.
        decode: Levels to samples in [-1, 1], any shape.
        encode: Samples to levels, any shape.
    Returns:
        Bits a sample by the model's name.
    Raises:
        ValueError: A part has no sample.
    """
    if not sum(map(len, train)) or not sum(map(len, test)):
        raise ValueError("baselines: train and test need at least one sample each")
    start = int(encode(torch.zeros(1)))
    parts = [_contexts(part, start) for part in (train, test)]
    (x, before), (y, held) = ((x, before) for x, before, _ in parts)
    flat = torch.full((1, levels), 1 / levels, dtype=torch.float64)
    unigram = _table(x, torch.zeros_like(x), 1, levels, flat)
    bigram = _table(x, before[0], levels, levels, unigram)
    shift = max(0, levels.bit_length() - 1 - CONTEXT_BITS)
    coarse = -(-levels // 2**shift)
    pair = (before[0] >> shift) * coarse + (before[1] >> shift)
    held_pair = (held[0] >> shift) * coarse + (held[1] >> shift)
    trigram = _backed_off_bits(x, pair, before[0], (y, held_pair, held[0]), (coarse**2, levels), bigram)
    coefficients = _fit_filter([decode(t.long()) for t in train])
    guesses = [_guesses(part, coefficients, decode, encode) for part in (train, test)]
    (guess, scene), (held_guess, held_scene) = guesses
    predicted = _table(x, guess, levels, levels, unigram)
    sizes = (levels * ERROR_CLASSES, levels)
    adaptive = _backed_off_bits(x, scene, guess, (y, held_scene, held_guess), sizes, predicted)
    return {
        "uniform": math.log2(levels),
        "unigram": _bits(unigram, torch.zeros_like(y), y),
        "bigram": _bits(bigram, held[0], y),
        f"trigram ({CONTEXT_BITS}-bit context)": trigram,
        f"linear prediction (order {ORDER})": adaptive,
    }


def _contexts(part: Sequence[Tensor], start: int) -> tuple[Tensor, tuple[Tensor, Tensor], int]:
    """All samples in a row, the one before each, and the one before that; silence stands before a recording."""
    padded = [torch.cat([torch.full((2,), start), t.long()]) for t in part]
    now, one, two = (torch.cat([p[i : len(p) - 2 + i] for p in padded]) for i in (2, 1, 0))
    return now, (one, two), len(now)


def _table(x: Tensor, context: Tensor, contexts: int, levels: int, lower: Tensor) -> Tensor:
    """P(x | c), float64, shape (contexts, levels); `lower` has one row, or one that fits all."""
    counts = torch.bincount(context * levels + x, minlength=contexts * levels).view(contexts, levels).double()
    return (counts + PRIOR * lower) / (counts.sum(1, keepdim=True) + PRIOR)


def _backed_off_bits(x, context, nearer, held, sizes, lower) -> float:
    """Bits of held-out samples under counts of `context`, backing off to `lower` by the nearer context."""
    contexts, levels = sizes
    y, held_context, held_nearer = held
    counts = torch.bincount(context * levels + x, minlength=contexts * levels).view(contexts, levels).double()
    seen = counts.sum(1)
    p = (counts[held_context, y] + PRIOR * lower[held_nearer, y]) / (seen[held_context] + PRIOR)
    return float(-p.log2().mean())


def _bits(table: Tensor, context: Tensor, x: Tensor) -> float:
    return float(-table[context, x].log2().mean())


def _fit_filter(waves: Sequence[Tensor]) -> Tensor:
    """Coefficients of the least-squares prediction from the ORDER samples before, float64, shape (ORDER,)."""
    gram = torch.zeros(ORDER + 1, ORDER + 1, dtype=torch.float64)
    for wave in waves:
        frames = _frames(wave)
        gram += frames.T @ frames
    past, now = gram[:ORDER, :ORDER], gram[:ORDER, ORDER]
    ridge = 1e-9 * past.diagonal().mean().clamp_min(1e-12)
    return torch.linalg.solve(past + ridge * torch.eye(ORDER, dtype=torch.float64), now)


def _guesses(part: Sequence[Tensor], coefficients: Tensor, decode, encode) -> tuple[Tensor, Tensor]:
    """The level the filter expects at every sample, and that level with the class of its late errors."""
    levels, scenes = [], []
    for t in part:
        wave = (_frames(decode(t.long()))[:, :ORDER] @ coefficients).clamp(-1, 1).float()
        guess = encode(wave)
        error = torch.nn.functional.pad((t.long() - guess).abs().float(), (ORDER, 0))
        late = error.unfold(0, ORDER, 1).mean(1)[: len(t)]
        kind = (1.5 * (1 + late).log2()).long().clamp_max(ERROR_CLASSES - 1)
        levels.append(guess)
        scenes.append(guess * ERROR_CLASSES + kind)
    return torch.cat(levels), torch.cat(scenes)


def _frames(wave: Tensor) -> Tensor:
    """The ORDER samples before each sample, and itself last, float64, shape (t, ORDER + 1)."""
    return torch.nn.functional.pad(wave.double(), (ORDER, 0)).unfold(0, ORDER + 1, 1)
