"""The scan with a matrix for a state and one decay a head (Mamba-2's SSD, linear attention), in Triton, in chunks.

    S = a S + k v^T,   o = S^T q;   with P[i, j] the log decay over j+1 .. i, S0 and G the state before a chunk and the
    adjoint of the one after it, L[i, j] = e^P[i, j] for j <= i:

    o[i]  = sum_j L[i, j] (q[i] k[j]) v[j] + up[i] q[i] S0          dv[j] likewise, transposed, with do, from[j] and G
    dq[i] = sum_j M[i, j] k[j] + up[i] S0 do[i],   M = L (do v^T)   dk[j] likewise, transposed, with q, from[j] and G

up[i] = e^P[i, start] and from[j] = e^P[end, j] are the decays from and to the borders of the chunk. A decay's gradient
is the sum over the pairs j < m <= i that it lies between. Every exponent is a sum of log decays and never a difference
of two sums, so a decay of any strength costs its neighbours no digits, -inf included.

One kernel carries states through the chunks of a row (or adjoints back), the others have a program for every chunk.
States are (pieces, h, n, p); a chunk is a piece (see triton_common.py). All steps of a chunk are a tile (T, ...).
"""

import triton
import triton.language as tl

from ..triton_common import LOG2E, piece_at, wide


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, HALVES: tl.constexpr):
    """a @ b, summed in float32 (float64): in half precision where both are and HALVES, else by PRECISION."""
    if HALVES and a.dtype.primitive_bitwidth == 16 and b.dtype.primitive_bitwidth == 16:
        product = tl.dot(a, b)
    elif a.dtype == tl.float64 or b.dtype == tl.float64:
        product = tl.dot(a.to(tl.float64), b.to(tl.float64), input_precision="ieee", out_dtype=tl.float64)
    else:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    return product


@triton.jit
def rows_of(X, X_t, places, start, count, columns, width, REVERSE: tl.constexpr):
    """Rows of X (l, width) at some places of a piece, in scan order; zeros where there is none."""
    t = start + count - 1 - places if REVERSE else start + places
    mask = ((places >= 0) & (places < count))[:, None] & (columns < width)[None, :]
    return tl.load(X + t.to(tl.int64)[:, None] * X_t + columns[None, :], mask=mask, other=0)


@triton.jit
def decays_of(log_decay, step, places, start, count, DOUBLE: tl.constexpr, REVERSE: tl.constexpr):
    """log2 of the decay at some places of a piece, 0 where there is none, or no decay at all."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    if log_decay is None:
        value = tl.zeros(places.shape, dtype)
    else:
        t = start + count - 1 - places if REVERSE else start + places
        inside = (places >= 0) & (places < count)
        value = tl.load(log_decay + t.to(tl.int64) * step, mask=inside, other=0).to(dtype) * LOG2E
    return value


@triton.jit
def tile_of(pointer, index, rows, columns, n, p):
    """Some rows and columns of the index-th of many (n, p) matrices."""
    mask = (rows < n)[:, None] & (columns < p)[None, :]
    return tl.load(pointer + index * n * p + rows[:, None] * p + columns[None, :], mask=mask, other=0)


@triton.jit
def put_tile(pointer, index, rows, columns, n, p, value):
    """The inverse of `tile_of`."""
    mask = (rows < n)[:, None] & (columns < p)[None, :]
    tl.store(pointer + index * n * p + rows[:, None] * p + columns[None, :], value, mask=mask)


@triton.jit
def chunk_decays(log_decay, step, start, count, T: tl.constexpr, DOUBLE: tl.constexpr, REVERSE: tl.constexpr):
    """L (T, T), zero above the diagonal, up and from (T,), of one piece."""
    i = tl.arange(0, T)
    log2 = decays_of(log_decay, step, i, start, count, DOUBLE, REVERSE)
    later = i[:, None] > i[None, :]
    pairs = tl.exp2(tl.cumsum(tl.where(later, log2[:, None], 0), axis=0))
    from_there = tl.sum(tl.where((i == T - 1)[:, None], pairs, 0), axis=0)
    return tl.where(i[:, None] >= i[None, :], pairs, 0), tl.exp2(tl.cumsum(log2, axis=0)), from_there


@triton.jit
def products(
    left, left_t, i, right, right_t, j, start, count, width, BLOCK: tl.constexpr, DOUBLE: tl.constexpr,
    PRECISION: tl.constexpr, HALVES: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """left[i] . right[j] of some places i and j, a tile."""
    made = tl.zeros((i.shape[0], j.shape[0]), tl.float64 if DOUBLE else tl.float32)
    for at in tl.range(0, width, BLOCK, num_stages=1):
        columns = at + tl.arange(0, BLOCK)
        rows = rows_of(left, left_t, i, start, count, columns, width, REVERSE)
        others = rows_of(right, right_t, j, start, count, columns, width, REVERSE)
        made += dot(rows, tl.trans(others), PRECISION, HALVES)
    return made


@triton.jit
def walk_kernel(
    k, v, log_decay, first, before, last, bounds, chunks,
    table, length, per_row, piece_steps, row_slots, pieces, heads, a_group, n, p, n_blocks, p_blocks,
    k_b, k_t, k_h, v_b, v_t, v_h, decay_b, decay_t,
    T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, DOUBLE: tl.constexpr, ADJOINT: tl.constexpr,
    PRECISION: tl.constexpr, HALVES: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The state before every chunk of a row, and the one after the row, for one head and block of (n, p).

    With ADJOINT k is q, v is do, and the way is from a row's last chunk to its first: what is kept is the adjoint of
    the state after each chunk.
    """
    program = tl.program_id(0)
    columns = program % p_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    keys = program // p_blocks % n_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    head = wide(program // p_blocks // n_blocks % heads)
    row = program // p_blocks // n_blocks // heads
    begin, number = row * chunks, chunks
    if bounds is not None:
        begin = tl.load(bounds + row)
        number = tl.load(bounds + row + 1) - begin
    i = tl.arange(0, T)
    at = row.to(tl.int64) * heads + head
    state = tl.zeros((BLOCK_N, BLOCK_P), tl.float64 if DOUBLE else tl.float32)
    if first is not None:
        state = tile_of(first, at, keys, columns, n, p)
    for c in range(number):
        piece = begin + (number - 1 - c if ADJOINT else c)
        batch, start, count, _ = piece_at(piece, table, length, per_row, piece_steps, row_slots, 1, REVERSE)
        put_tile(before, piece.to(tl.int64) * heads + head, keys, columns, n, p, state)
        own = log_decay if log_decay is None else log_decay + batch * decay_b + head
        # Forward the steps are taken from the last, so that the decays to the chunk's end are a sum from the front.
        places = i if ADJOINT else count - 1 - i
        up_to = decays_of(own, decay_t, i if ADJOINT else count - i, start, count, DOUBLE, REVERSE)
        whole = tl.exp2(tl.sum(decays_of(own, decay_t, i, start, count, DOUBLE, REVERSE), axis=0))
        left = rows_of(k + batch * k_b + head // a_group * k_h, k_t, places, start, count, keys, n, REVERSE)
        right = rows_of(v + batch * v_b + head * v_h, v_t, places, start, count, columns, p, REVERSE)
        left = left.to(state.dtype) * tl.exp2(tl.cumsum(up_to, axis=0))[:, None]
        state = whole * state + dot(tl.trans(left), right, PRECISION, HALVES)
    put_tile(last, at, keys, columns, n, p, state)


@triton.jit
def outputs_kernel(
    q, k, v, log_decay, states, o,
    table, length, per_row, piece_steps, row_slots, pieces, heads, a_group, n, p, p_blocks,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, decay_b, decay_t, o_b, o_t, o_h,
    T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, DOUBLE: tl.constexpr, ADJOINT: tl.constexpr,
    PRECISION: tl.constexpr, HALVES: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """o of one chunk, head and block of values; with ADJOINT v is do, states the adjoints, and o is dv."""
    program = tl.program_id(0)
    columns = program % p_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    head, piece = wide(program // p_blocks % heads), program // p_blocks // heads
    batch, start, count, _ = piece_at(piece, table, length, per_row, piece_steps, row_slots, 1, REVERSE)
    q, k = q + batch * q_b + head // a_group * q_h, k + batch * k_b + head // a_group * k_h
    own = log_decay if log_decay is None else log_decay + batch * decay_b + head
    pairs, up, from_there = chunk_decays(own, decay_t, start, count, T, DOUBLE, REVERSE)
    i, at = tl.arange(0, T), piece.to(tl.int64) * heads + head
    side, side_t, border = (k, k_t, from_there) if ADJOINT else (q, q_t, up)
    out = tl.zeros((T, BLOCK_P), pairs.dtype)
    for start_n in tl.range(0, n, BLOCK_N, num_stages=1):
        keys = start_n + tl.arange(0, BLOCK_N)
        rows = rows_of(side, side_t, i, start, count, keys, n, REVERSE)
        out += dot(rows, tile_of(states, at, keys, columns, n, p), PRECISION, HALVES)
    pairs *= products(q, q_t, i, k, k_t, i, start, count, n, BLOCK_N, DOUBLE, PRECISION, HALVES, REVERSE)
    values = rows_of(v + batch * v_b + head * v_h, v_t, i, start, count, columns, p, REVERSE)
    out = out * border[:, None] + dot(tl.trans(pairs) if ADJOINT else pairs, values, PRECISION, HALVES)
    t = start + count - 1 - i if REVERSE else start + i
    to = o + batch * o_b + head * o_h + t.to(tl.int64)[:, None] * o_t + columns[None, :]
    tl.store(to, out.to(o.dtype.element_ty), mask=(i < count)[:, None] & (columns < p)[None, :])


@triton.jit
def through_state(
    left, left_t, states, before, at, start, count, keys, n, p, T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr, DOUBLE: tl.constexpr, PRECISION: tl.constexpr, HALVES: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Of one head the state times each step's left (T, BLOCK_N), and the sum of the state's entries times before's."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    i = tl.arange(0, T)
    through, both = tl.zeros((T, BLOCK_N), dtype), tl.zeros((BLOCK_N,), dtype)
    for at_p in tl.range(0, p, BLOCK_P, num_stages=1):
        columns = at_p + tl.arange(0, BLOCK_P)
        state = tile_of(states, at, keys, columns, n, p)
        through += dot(rows_of(left, left_t, i, start, count, columns, p, REVERSE), tl.trans(state), PRECISION, HALVES)
        if before is not None:
            both += tl.sum(state * tile_of(before, at, keys, columns, n, p), axis=1)
    return through, tl.sum(both, axis=0)


@triton.jit
def pair_decays(log2, i, log2_j, j, since, KEYS: tl.constexpr):
    """The decays from keys j to queries i, or with KEYS from keys i to queries j (T, J), and the new `since`.

    since are the log decays from the keys i to the last query of the tiles before.
    """
    if KEYS:
        between = tl.where(j[None, :] > i[:, None], log2_j[None, :], 0)
        pairs = tl.where(j[None, :] >= i[:, None], tl.exp2(since[:, None] + tl.cumsum(between, axis=1)), 0)
        since += tl.sum(between, axis=1)
    else:
        between = tl.cumsum(tl.where(i[:, None] > j[None, :], log2[:, None], 0), axis=0)
        pairs = tl.where(i[:, None] >= j[None, :], tl.exp2(between), 0)
    return pairs, since


@triton.jit
def inputs_kernel(
    own, other, left, right, log_decay, states, before, gradient, ddecay,
    table, length, per_row, piece_steps, row_slots, pieces, groups, a_group, splits, a_split, n, p, n_blocks, tokens,
    own_b, own_t, own_h, other_b, other_t, other_h, left_b, left_t, left_h, right_b, right_t, right_h, decay_b, decay_t,
    T: tl.constexpr, J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, DOUBLE: tl.constexpr,
    PRECISION: tl.constexpr, HALVES: tl.constexpr, REVERSE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dq and its share of the decays' gradients, of one chunk, block of keys, and share of the heads of a group.

    own is q, other k, left do, right v and states those before each chunk. With KEYS it is dk: own is k, other q, left
    v, right do, states the adjoints and before the states. One of both at a time, and J of the other's steps at a time:
    more does not fit into registers. The gradient is (splits, tokens, groups, n), ddecay (n_blocks, tokens, heads):
    parts that are added afterwards.
    """
    program = tl.program_id(0)
    block, share = program % n_blocks, program // n_blocks % splits
    group = wide(program // n_blocks // splits % groups)
    piece = program // n_blocks // splits // groups
    batch, start, count, _ = piece_at(piece, table, length, per_row, piece_steps, row_slots, 1, REVERSE)
    i, keys = tl.arange(0, T), block * BLOCK_N + tl.arange(0, BLOCK_N)
    own, other, heads = own + batch * own_b + group * own_h, other + batch * other_b + group * other_h, groups * a_group
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    total = tl.zeros((T, BLOCK_N), dtype)
    t = start + count - 1 - i if REVERSE else start + i
    end = group * a_group + tl.minimum((share + 1) * a_split, a_group)
    for head in tl.range(group * a_group + share * a_split, end, num_stages=1):
        decay = log_decay if log_decay is None else log_decay + batch * decay_b + head
        lefts, rights = left + batch * left_b + head * left_h, right + batch * right_b + head * right_h
        through, both = through_state(
            lefts, left_t, states, before, piece.to(tl.int64) * heads + head, start, count, keys, n, p, T, BLOCK_N,
            BLOCK_P, DOUBLE, PRECISION, HALVES, REVERSE,
        )  # fmt: skip
        log2 = decays_of(decay, decay_t, i, start, count, DOUBLE, REVERSE)
        border = tl.cumsum(log2, axis=0)
        if KEYS:
            border = tl.sum(tl.where(i[:, None] < i[None, :], log2[None, :], 0), axis=1)
        through *= tl.exp2(border)[:, None]
        total += through
        # Of the decay after step m: the pairs that it lies between, what comes from before, what goes beyond.
        passed, first = tl.zeros((T,), dtype), both * tl.exp2(tl.sum(log2, axis=0))
        if ddecay is not None:
            passed = tl.sum(through * rows_of(own, own_t, i, start, count, keys, n, REVERSE), axis=1)
            to = ddecay + (block.to(tl.int64) * tokens + batch * length) * heads + head
            first = first if KEYS else tl.sum(passed, axis=0)
            tl.store(to + t.to(tl.int64) * heads, first, mask=(i == 0) & (i < count))
            if KEYS:
                next_t = (t - 1 if REVERSE else t + 1).to(tl.int64)
                tl.store(to + next_t * heads, tl.cumsum(passed, axis=0) + first, mask=i + 1 < count)
        since = tl.zeros((T,), dtype)
        for at_j in tl.range(0, T, J, num_stages=1):
            j = at_j + tl.arange(0, J)
            log2_j = decays_of(decay, decay_t, j, start, count, DOUBLE, REVERSE)
            given, since = pair_decays(log2, i, log2_j, j, since, KEYS)
            given *= products(
                lefts, left_t, i, rights, right_t, j, start, count, p, BLOCK_P, DOUBLE, PRECISION, HALVES, REVERSE
            )
            others = rows_of(other, other_t, j, start, count, keys, n, REVERSE)
            total += dot(given, others, PRECISION, HALVES)
            if ddecay is not None and not KEYS:
                if block == 0:  # what lies within the chunk counts once, not for each block of keys
                    given *= products(
                        own, own_t, i, other, other_t, j, start, count, n, BLOCK_P, DOUBLE, PRECISION, HALVES, REVERSE
                    )
                else:
                    given *= 0
                over = tl.where(i[:, None] > j[None, :], passed[:, None] + tl.cumsum(given, axis=1), 0)
                passed += tl.sum(given, axis=1)
                next_t = (start + count - 2 - j if REVERSE else start + j + 1).to(tl.int64)
                tl.store(to + next_t * heads, tl.sum(over, axis=0), mask=j + 1 < count)
    to = gradient + ((share.to(tl.int64) * tokens + batch * length) * groups + group) * n
    to += t.to(tl.int64)[:, None] * (groups * n) + keys[None, :]
    tl.store(to, total, mask=(i < count)[:, None] & (keys < n)[None, :])
