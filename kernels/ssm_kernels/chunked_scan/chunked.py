"""The matrix-valued scan as matrix products: exact within chunks of tokens, and a loop over the chunks' states.

With P[i] the log decay from the chunk's start to step i, and S the state that the chunk starts from,

    o[i] = (q[i] e^P[i]) . S + sum over j <= i of A[i, j] u[j]
    A[i, j] = sum over d of q[i, d] k[j, d] e^(P[i, d] - P[j, d])

where u = v; under the delta rule u solves (1 + beta tril(A_kk, -1)) u = beta (v - (k e^P) . S), one triangular system.
e^(P[i] - P[j]) is never a quotient: each chunk is halved again and again, and the block between two halves is a product
of a decay up to their border and one from it on. No exponent is positive where the decay is none, none is the
difference of two sums, so nothing overflows or cancels however strong the decay, log decay = -inf included.

Names: b batch, g groups, e = h / g heads of a group, c chunks, t steps of a chunk, n keys, p values; a decay has m
channels, n or 1. Source: Dao & Gu 2024 (Mamba-2), sec. 6; Yang et al. 2024, GLA, sec. 4 and Parallelizing linear
transformers with the delta rule, sec. 3; the halving is ours.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rows import Row


def chunked_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    initial_state: Tensor | None,
    rows: list[Row] | None,
    reverse: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """o (b, l, h, p) and the last state (rows, h, n, p); arguments as in reference.py, chunk a power of two."""
    steps = (q, k, v, log_decay, beta)
    if rows is None:
        o, last = _batch([t if t is None or not reverse else t.flip(1) for t in steps], initial_state, chunk)
        return (o.flip(1) if reverse else o).contiguous(), last.contiguous()
    (b, l, h, p), n = v.shape, q.shape[3]
    o = v.new_zeros(b * l, h, p)
    last = v.new_zeros(len(rows), h, n, p) if initial_state is None else initial_state.clone()
    for index in _alike(rows):
        some = torch.tensor(index, device=v.device)
        at, exists = _places([rows[i] for i in index], l, reverse, v.device)
        cut = [None if t is None else _take(t, at, exists) for t in steps]
        o_some, last_some = _batch(cut, None if initial_state is None else initial_state[some], chunk)
        o = o.index_copy(0, at[exists], o_some[exists])
        last = last.index_copy(0, some, last_some)
    return o.view(v.shape), last


def _alike(rows: list[Row]) -> list[list[int]]:
    """The rows that are not empty, in sets whose lengths differ by less than a factor of two."""
    sets: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        if row.length:
            sets.setdefault((row.length - 1).bit_length(), []).append(i)
    return list(sets.values())


def _places(rows: list[Row], l: int, reverse: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each row and step the flat place of its token, batch * l + time, and whether there is one."""
    batch, start, length = torch.tensor(rows, device=device)[..., None].unbind(1)
    step = torch.arange(max(row.length for row in rows), device=device)
    exists = step < length
    step = step.minimum(length - 1)
    return batch * l + start + (length - 1 - step if reverse else step), exists


def _take(x: Tensor, at: Tensor, exists: Tensor) -> Tensor:
    """Tokens (rows, longest, ...) of x (b, l, ...), zero where there is none."""
    return torch.where(exists.view(*exists.shape, *[1] * (x.ndim - 2)), x.flatten(0, 1)[at], 0)


def _batch(steps: Sequence[Tensor | None], initial_state: Tensor | None, chunk: int) -> tuple[Tensor, Tensor]:
    """A plain batch of q, k, v, log_decay and beta, from its first step to its last."""
    q, k, v, log_decay, beta = steps
    assert q is not None
    assert k is not None
    assert v is not None
    (b, l, h, p), (g, n) = v.shape, q.shape[2:]
    e = h // g
    state = v.new_zeros(b, g, e, n, p) if initial_state is None else initial_state.view(b, g, e, n, p)
    if v.numel() == 0 or n == 0:
        return v.new_zeros(v.shape), state.reshape(b, h, n, p).clone()
    t = min(chunk, 1 << (l - 1).bit_length())
    q, k = _cut(q, t, g), _cut(k, t, g)
    v = _cut(v, t, g)
    decay = None if log_decay is None else _cut(log_decay if log_decay.ndim == 4 else log_decay[..., None], t, g)
    erase = None if beta is None else _cut(beta[..., None], t, g)
    inside, among_keys, carried = _pairs(q, k, decay, erase is not None)
    q_in, k_in, k_out, through = q, k, k, None
    if carried is not None:
        up_to, from_there = carried[0].exp(), carried[1].exp()
        q_in, k_in, k_out, through = q * up_to, k * up_to, k * from_there, up_to[..., -1:, :].mT
    solved = None
    if erase is not None and among_keys is not None:
        right = torch.cat([v, k_in.expand(*v.shape[:-1], n)], -1)
        solved = torch.linalg.solve_triangular(
            erase * among_keys, erase * right, upper=False, unitriangular=True
        ).split([p, n], -1)
    before, u, state = _through_chunks(state, v, k_out, through, solved)
    o = q_in @ before + inside @ u
    o = o.permute(0, 3, 4, 1, 2, 5).reshape(b, -1, h, p)[:, :l]
    return o, state.reshape(b, h, n, p)


def _cut(x: Tensor, t: int, g: int) -> Tensor:
    """(b, l, heads, w) into chunks: (b, g, heads / g, c, t, w), with zeros after the last step."""
    x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % t))
    return x.unflatten(2, (g, -1)).unflatten(1, (-1, t)).permute(0, 3, 4, 1, 2, 5)


def _through_chunks(
    state: Tensor, v: Tensor, k_out: Tensor, through: Tensor | None, solved: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The state before each chunk (b, g, e, c, n, p), what each step writes (b, g, e, c, t, p), and the last state.

    Args:
        state: Before the first chunk, shape (b, g, e, n, p).
        v: Values, shape (b, g, e, c, t, p).
        k_out: Keys, decayed up to their chunk's end, shape (b, g, 1 or e, c, t, n).
        through: Decay over a whole chunk, shape (b, g, e, c, m, 1); None is 1.
        solved: Under the delta rule u = solved[0] - solved[1] . S, shapes (b, g, e, c, t, p) and (b, g, e, c, t, n).
    """
    before, writes = [], []
    keep = [None] * v.shape[3] if through is None else through.unbind(3)  # unbind: indices would each copy in backward
    if solved is None:
        for decay, added in zip(keep, (k_out.mT @ v).unbind(3), strict=True):
            before.append(state)
            state = added + (state if decay is None else decay * state)
        return torch.stack(before, 3), v, state
    for decay, key, value, erased in zip(keep, k_out.mT.unbind(3), *(t.unbind(3) for t in solved), strict=True):
        before.append(state)
        writes.append(value - erased @ state)
        state = key @ writes[-1] + (state if decay is None else decay * state)
    return torch.stack(before, 3), torch.stack(writes, 3), state


def _pairs(
    q: Tensor, k: Tensor, decay: Tensor | None, delta: bool
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
    """A of queries and keys, A of keys and keys (below the diagonal only matters) where `delta`, and the log decays

    from a chunk's start up to each step, and from after it to the chunk's end, shape of `decay`.
    """
    if decay is None:
        return (q @ k.mT).tril(), k @ k.mT if delta else None, None
    if decay.shape[-1] == 1:
        one = torch.ones_like(decay)
        (pairs,), carried = _by_halves([one], one, decay)
        return (q @ k.mT) * pairs, (k @ k.mT) * pairs if delta else None, carried
    pairs, carried = _by_halves([q, k] if delta else [q], k, decay)
    return pairs[0], pairs[1] if delta else None, carried


def _by_halves(left: list[Tensor], k: Tensor, decay: Tensor) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """sum over d of x[i,d] k[j,d] e^(decay of d over j+1 .. i) for j <= i and each x of `left`, shape (..., t, t).

    Also the log decays up to each step and from after it, as `_pairs`.
    """
    t = decay.shape[-2]
    up_to, from_there = decay, torch.zeros_like(decay)
    shape = torch.broadcast_shapes(k.shape[:-1], decay.shape[:-1])
    blocks = [(x * k).sum(-1).expand(shape)[..., None, None] for x in left]
    size = 1
    while size < t:
        (up_1, up_2), (from_1, from_2) = _halves(up_to, size), _halves(from_there, size)
        key = (_halves(k, size)[0] * from_1.exp()).mT
        rise = up_2.exp()
        between = [(_halves(x, size)[1] * rise) @ key for x in left]
        blocks = [_join(block, off) for block, off in zip(blocks, between, strict=True)]
        whole_1, whole_2 = up_1[..., -1:, :], up_2[..., -1:, :]
        up_to = torch.cat([up_1, up_2 + whole_1], -2).flatten(-3, -2)
        from_there = torch.cat([from_1 + whole_2, from_2], -2).flatten(-3, -2)
        size *= 2
    return [block[..., 0, :, :] for block in blocks], (up_to, from_there)


def _halves(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and second halves of blocks of 2 size steps, each (..., t / 2 size, size, w)."""
    first, second = x.unflatten(-2, (-1, 2, size)).unbind(-3)
    return first, second


def _join(blocks: Tensor, off: Tensor) -> Tensor:
    """Lower triangular blocks (..., 2 a, size, size) and what lies between pairs of them, (..., a, size, size)."""
    first, second = blocks.unflatten(-3, (-1, 2)).unbind(-3)
    return torch.cat([torch.cat([first, torch.zeros_like(off)], -1), torch.cat([off, second], -1)], -2)
