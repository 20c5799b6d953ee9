"""The selective scan's forward kernel in Triton: h = a h + w B x,  y = (C . h + D x) silu(z).

One program walks one piece of a row for one block of channels, and one warp holds 32 channels: a lane has one channel
and all its states, so that a step needs no exchange between lanes, and the rows of B and C are loads that the whole
warp shares. That layout comes about because the pointers to states are not specialised on alignment: Triton then loads
them one entry a lane, with channels along the lanes. The loads of the next steps are on their way while these are
computed. States and A are stored as (n, d).
"""

import triton
import triton.language as tl

from ..triton_common import LN2, LOG2E, piece_at, rows_at, sigmoid, softplus, tokens_at, wide


@triton.jit
def decay_and_weight(dt, A2, RULE: tl.constexpr, DOUBLE: tl.constexpr):
    """a and w of h = a h + w B x, shapes of dt[None] A2 and, for "euler", of dt[None]; A2 is A log2(e)."""
    if RULE == "bilinear":
        half = dt[None, :] * A2 * (0.5 * LN2)
        q = 1 / (1 - half)
        a = (1 + half) * q
        w = dt[None, :] * q
    else:
        a = tl.exp2(dt[None, :] * A2)
        w = dt[None, :]
        if RULE == "zoh":
            w = w * expm1_ratio(dt[None, :] * A2 * LN2, a, DOUBLE)
    return a, w


@triton.jit
def expm1_ratio(u, exp_u, DOUBLE: tl.constexpr):
    """(e^u - 1) / u, by its series where the quotient loses digits."""
    terms: tl.constexpr = 15 if DOUBLE else 8
    series = 1 + 0 * u
    for k in tl.static_range(terms):
        series = 1 + u * series * (1.0 / (terms + 1 - k))
    small = tl.abs(u) < 0.5
    return tl.where(small, series, (exp_u - 1) / tl.where(small, 1, u))


@triton.jit
def channels_of(block, a_group, blocks_a_group, BLOCK_D: tl.constexpr):
    """The channels of a block (blocks do not straddle groups), which of them exist, and their group."""
    group = block // blocks_a_group
    local = block % blocks_a_group * BLOCK_D + tl.arange(0, BLOCK_D)
    return group * a_group + local, local < a_group, group


@triton.jit
def load_state(pointer, index, d, channels, states, exists, DOUBLE: tl.constexpr):
    """The index-th of many (n, d) arrays, shape (N, BLOCK_D); zeros where `pointer` is None."""
    if pointer is None:
        value = tl.zeros(exists.shape, tl.float64 if DOUBLE else tl.float32)
    else:
        value = tl.load((pointer + index * d) + (states[:, None] * d + channels[None, :]), mask=exists, other=0)
    return value


@triton.jit
def store_state(pointer, index, d, channels, states, exists, value):
    """Write the index-th of many (n, d) arrays."""
    tl.store((pointer + index * d) + (states[:, None] * d + channels[None, :]), value, mask=exists)


@triton.jit
def load_channels(pointer, channels, real, DOUBLE: tl.constexpr):
    """A (d,) array in the state's dtype; zeros where it is None."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    if pointer is None:
        value = tl.zeros(real.shape, dtype)
    else:
        value = tl.load(pointer + channels, mask=real, other=0).to(dtype)
    return value


@triton.jit
def time_step(raw, shift, SOFTPLUS: tl.constexpr, DOUBLE: tl.constexpr):
    """The step from what was given, and its derivative."""
    dt = raw.to(shift.dtype) + shift
    slope = tl.full(dt.shape, 1, dt.dtype)
    if SOFTPLUS:
        dt, slope = softplus(dt, DOUBLE)
    return dt, slope


@triton.jit
def advance(h, A2, dt, x, B, RULE: tl.constexpr, DOUBLE: tl.constexpr):
    """One step of the state, (N, BLOCK_D), from B, (N, 1) or (N, BLOCK_D); returns it and the decay.

    A2 of one row stands for its multiples: the decays are powers of the first, one exponential for all of them.
    """
    a, w = decay_and_weight(dt, A2, RULE, DOUBLE)
    if A2.shape[0] != h.shape[0]:
        a = tl.cumprod(tl.broadcast_to(a, h.shape), axis=0)
    if RULE == "euler":
        h = a * h + (dt * x)[None, :] * B
    else:
        h = a * h + w * (x[None, :] * B)
    return h, a


@triton.jit
def forward_steps(
    h, y, y_t, tokens, xs, dts, zs, low, low_t, weight, ranks, ranked, B, B_t, C, C_t, B_fixed, C_fixed, A2, skip,
    shift, channels, real, states, full,
    later, ADDS: tl.constexpr, RULE: tl.constexpr, SOFTPLUS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """The steps of some tokens whose x, dt and z are given: writes y, or adds to it, and returns the state.

    Where `low` is not None, the steps are its rows, of the `ranks` that are `ranked`, times `weight` (R, BLOCK_D).
    """
    Bs, Cs = rows_at(tokens, B, B_t, states, full), rows_at(tokens, C, C_t, states, full)
    lows = rows_at(tokens, low, low_t, ranks, ranked)
    ys = ()
    for i in tl.static_range(len(tokens)):
        if low is None:
            raw = dts[i]
        else:
            raw = tl.sum(weight * lows[i].to(weight.dtype)[:, None], axis=0)
        dt, _ = time_step(raw, shift, SOFTPLUS, DOUBLE)
        x = xs[i].to(dt.dtype)
        h, _ = advance(h, A2, dt, x, B_fixed if B is None else Bs[i][:, None], RULE, DOUBLE)
        out = tl.sum((C_fixed if C is None else Cs[i][:, None]) * h, axis=0) + skip * x
        if len(zs) > 0:
            z = zs[i].to(dt.dtype)
            out = out * z * sigmoid(z)
        ys = ys + (out,)
    for i in tl.static_range(len(tokens)):
        add_or_store((y + channels) + tokens[i] * y_t, ys[i], real, later, ADDS)
    return h


@triton.jit
def add_or_store(at, value, mask, later, ADDS: tl.constexpr):
    """Write, or where an earlier route of this program has written, add: one thread has a channel in all routes."""
    if ADDS:
        value += tl.load(at, mask=mask & later, other=0)
    tl.store(at, value.to(at.dtype.element_ty), mask=mask)


@triton.jit
def forward_piece(
    h, x, x_t, dt, dt_t, low, low_t, weight, ranks, ranked, z, z_t, B, B_t, C, C_t, B_fixed, C_fixed, y, y_t,
    boundaries, slot, start, count, order, A2, skip, shift, channels, real, states, exists, full, d, n, later,
    ADDS: tl.constexpr, UNROLL: tl.constexpr, EVERY: tl.constexpr, RULE: tl.constexpr, SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """All steps of a piece: whole groups of UNROLL, the next one's inputs under way, then the rest one by one."""
    whole = count // UNROLL * UNROLL
    if whole > 0:
        tokens = tokens_at(0, start, count, order, UNROLL, REVERSE)
        xs, dts = rows_at(tokens, x, x_t, channels, real), rows_at(tokens, dt, dt_t, channels, real)
        zs = rows_at(tokens, z, z_t, channels, real)
        for s in range(0, whole, UNROLL):
            if boundaries is not None:
                if s % EVERY == 0:
                    store_state(boundaries, (slot + s // EVERY) * n, d, channels, states, exists, h)
            next_tokens = tokens_at(tl.minimum(s + UNROLL, whole - UNROLL), start, count, order, UNROLL, REVERSE)
            next_xs = rows_at(next_tokens, x, x_t, channels, real)
            next_dts = rows_at(next_tokens, dt, dt_t, channels, real)
            next_zs = rows_at(next_tokens, z, z_t, channels, real)
            h = forward_steps(
                h, y, y_t, tokens, xs, dts, zs, low, low_t, weight, ranks, ranked, B, B_t, C, C_t, B_fixed, C_fixed,
                A2, skip, shift, channels, real, states, full, later, ADDS, RULE, SOFTPLUS, DOUBLE,
            )  # fmt: skip
            tokens, xs, dts, zs = next_tokens, next_xs, next_dts, next_zs
    for s in range(whole, count):
        if boundaries is not None:
            if s % EVERY == 0:
                store_state(boundaries, (slot + s // EVERY) * n, d, channels, states, exists, h)
        tokens = tokens_at(s, start, count, order, 1, REVERSE)
        xs, dts = rows_at(tokens, x, x_t, channels, real), rows_at(tokens, dt, dt_t, channels, real)
        zs = rows_at(tokens, z, z_t, channels, real)
        h = forward_steps(
            h, y, y_t, tokens, xs, dts, zs, low, low_t, weight, ranks, ranked, B, B_t, C, C_t, B_fixed, C_fixed, A2,
            skip, shift, channels, real, states, full, later, ADDS, RULE, SOFTPLUS, DOUBLE,
        )  # fmt: skip
    return h


# Pointers whose alignment the kernel is not compiled for: see the layout above.
UNALIGNED = ["A", "B0", "C0", "h0", "last", "boundaries"]


@triton.jit(do_not_specialize_on_alignment=[*UNALIGNED, "weight"])
def forward_kernel(
    x, dt, z, A, B, C, B0, C0, D, bias, weight, h0, y, last, boundaries, order,
    table, length, per_row, piece_steps, row_slots, pieces, slots, d, a_group, blocks, blocks_a_group,
    x_r, x_b, x_t, dt_r, dt_b, dt_t, z_b, z_t, B_r, B_b, B_t, B_g, C_r, C_b, C_t, C_g, y_b, y_t,
    n: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, EVERY: tl.constexpr,
    ROUTES: tl.constexpr, RULE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, DOUBLE: tl.constexpr,
    POWERS: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """y, the last state, and a boundary in every EVERY steps, of one piece and block of channels, route after route.

    B and C vary in time or are None; B0 and C0 are constant, (ROUTES, n, d), or None. order is (ROUTES, l) or None.
    States are (ROUTES, pieces, n, d), boundaries (ROUTES, slots, n, d). EVERY is a multiple of UNROLL.
    weight is (ROUTES, RANK, d) and dt then of that rank, or None and 0; RANKS is the power of two above it.
    """
    p = (tl.program_id(0) // blocks).to(tl.int64)
    channels, real, group = channels_of(tl.program_id(0) % blocks, a_group, blocks_a_group, BLOCK_D)
    states = tl.arange(0, N)
    exists = real[None, :] & (states < n)[:, None]
    full = None if n == N else states < n
    batch, start, count, slot = piece_at(p, table, length, per_row, piece_steps, row_slots, EVERY, REVERSE)
    x, dt, y = x + batch * x_b, dt + batch * dt_b, y + batch * y_b
    if z is not None:
        z += batch * z_b
    if B is not None:
        B += batch * B_b + wide(group) * B_g
    if C is not None:
        C += batch * C_b + wide(group) * C_g
    for route in range(ROUTES):
        at = wide(route)
        own = (route * pieces + p) * n
        h = load_state(h0, own, d, channels, states, exists, DOUBLE)
        if POWERS:
            A2 = load_channels(A, route * n * d + channels, real, DOUBLE)[None, :] * LOG2E
        else:
            A2 = load_state(A, route * n, d, channels, states, exists, DOUBLE) * LOG2E
        steps = dt + at * dt_r
        ranks = states
        ranked = full
        projection = A2
        if RANK > 0:
            ranks = tl.arange(0, RANKS)
            ranked = ranks < RANK
            projection = load_state(weight, route * RANK, d, channels, ranks, real[None, :] & ranked[:, None], DOUBLE)
        h = forward_piece(
            h, x + at * x_r, x_t, steps if RANK == 0 else None, dt_t, None if RANK == 0 else steps, dt_t, projection,
            ranks, ranked, z, z_t,
            B if B is None else B + at * B_r, B_t, C if C is None else C + at * C_r, C_t,
            load_state(B0, route * n, d, channels, states, exists, DOUBLE),
            load_state(C0, route * n, d, channels, states, exists, DOUBLE),
            y, y_t, boundaries, route * slots + slot, start, count, order if order is None else order + route * length,
            A2, load_channels(D, route * d + channels, real, DOUBLE),
            load_channels(bias, route * d + channels, real, DOUBLE),
            channels, real, states, exists, full, d, n, route > 0, ROUTES > 1,
            UNROLL, EVERY, RULE, SOFTPLUS, REVERSE, DOUBLE,
        )  # fmt: skip
        store_state(last, own, d, channels, states, exists, h)
