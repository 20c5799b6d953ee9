"""The linear recurrence in Triton: h = a h + b forward; G = dh + conj(a') G' backward, a' and G' of the step after.

A program walks one row for a block of channels, a lane a channel; the loads of UNROLL steps are under way together.
Complex numbers lie as pairs of reals, so a complex kernel reads both planes of a channel; a real one has no second.
"""

import triton
import triton.language as tl

from ..triton_common import piece_at, tokens_at


@triton.jit
def read(pointer, at, mask, COMPLEX: tl.constexpr):
    """Real and imaginary part of entries `at`; of a real array the second is the first's zero."""
    if COMPLEX:
        re = tl.load(pointer + 2 * at, mask=mask, other=0)
        im = tl.load(pointer + 2 * at + 1, mask=mask, other=0)
    else:
        re = tl.load(pointer + at, mask=mask, other=0)
        im = tl.zeros_like(re)
    return re, im


@triton.jit
def write(pointer, at, re, im, mask, COMPLEX: tl.constexpr):
    """The inverse of `read`."""
    if COMPLEX:
        tl.store(pointer + 2 * at, re, mask=mask)
        tl.store(pointer + 2 * at + 1, im, mask=mask)
    else:
        tl.store(pointer + at, re, mask=mask)


@triton.jit
def times(re, im, other_re, other_im, COMPLEX: tl.constexpr):
    """The product of two numbers."""
    if COMPLEX:
        product, second = re * other_re - im * other_im, re * other_im + im * other_re
    else:
        product, second = re * other_re, im
    return product, second


@triton.jit
def read_steps(pointer, step, tokens, channels, mask, COMPLEX: tl.constexpr):
    """The numbers at some tokens, a tuple of pairs."""
    steps = ()
    for i in tl.static_range(len(tokens)):
        steps = steps + (read(pointer, tokens[i] * step + channels, mask, COMPLEX),)
    return steps


@triton.jit
def forward_kernel(
    a, b, h0, h, last, table, length, per_row, piece_steps, row_slots, pieces, d, blocks,
    a_b, a_t, b_b, b_t, h_b, h_t,
    BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, REVERSE: tl.constexpr, VARIES: tl.constexpr, COMPLEX: tl.constexpr,
):  # fmt: skip
    """h and the last state of one row and block of channels; a varies in time or is (d,)."""
    p = (tl.program_id(0) // blocks).to(tl.int64)
    channels = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    real = channels < d
    batch, start, count, _ = piece_at(p, table, length, per_row, piece_steps, row_slots, 1, REVERSE)
    here_re, here_im = read(b, channels, real & False, COMPLEX)
    if h0 is not None:
        here_re, here_im = read(h0, p * d + channels, real, COMPLEX)
    fixed = read(a, channels, real, COMPLEX)
    for s in range(0, count, UNROLL):
        tokens = tokens_at(s, start, count, None, UNROLL, REVERSE, True)
        bs = read_steps(b, b_t, tokens, batch * b_b + channels, real, COMPLEX)
        if VARIES:
            decays = read_steps(a, a_t, tokens, batch * a_b + channels, real, COMPLEX)
        for i in tl.static_range(UNROLL):
            decay_re, decay_im = decays[i] if VARIES else fixed
            next_re, next_im = times(decay_re, decay_im, here_re, here_im, COMPLEX)
            within = s + i < count
            here_re = tl.where(within, next_re + bs[i][0], here_re)
            here_im = tl.where(within, next_im + bs[i][1], here_im)
            write(h, batch * h_b + tokens[i] * h_t + channels, here_re, here_im, real & within, COMPLEX)
    write(last, p * d + channels, here_re, here_im, real, COMPLEX)


@triton.jit
def backward_kernel(
    a, h, h0, dh, dlast, da, db, dh0, table, length, per_row, piece_steps, row_slots, pieces, d, blocks,
    a_b, a_t, h_b, h_t, dh_b, dh_t,
    BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, REVERSE: tl.constexpr, VARIES: tl.constexpr, COMPLEX: tl.constexpr,
):  # fmt: skip
    """da, db and dh0 of one row and block of channels; da is a sum over the row where a does not vary."""
    p = (tl.program_id(0) // blocks).to(tl.int64)
    channels = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    real = channels < d
    batch, start, count, _ = piece_at(p, table, length, per_row, piece_steps, row_slots, 1, REVERSE)
    zero_re, zero_im = read(a, channels, real & False, COMPLEX)
    back_re, back_im, sum_re, sum_im = zero_re, zero_im, zero_re, zero_im
    first_re, first_im = zero_re, zero_im
    if dlast is not None:
        back_re, back_im = read(dlast, p * d + channels, real, COMPLEX)
    if h0 is not None:
        first_re, first_im = read(h0, p * d + channels, real, COMPLEX)
    fixed = read(a, channels, real, COMPLEX)
    for j in range(0, count, UNROLL):
        tokens = tokens_at(j, start, count, None, UNROLL, not REVERSE, True)
        earlier = tokens_at(j + 1, start, count, None, UNROLL, not REVERSE, True)
        states = read_steps(h, h_t, earlier, batch * h_b + channels, real, COMPLEX)
        if VARIES:
            decays = read_steps(a, a_t, tokens, batch * a_b + channels, real, COMPLEX)
        if dh is not None:
            given = read_steps(dh, dh_t, tokens, batch * dh_b + channels, real, COMPLEX)
        for i in tl.static_range(UNROLL):
            within, is_first = j + i < count, j + i == count - 1
            g_re, g_im = back_re, back_im
            if dh is not None:
                g_re, g_im = g_re + given[i][0], g_im + given[i][1]
            at = batch * h_b + tokens[i] * h_t + channels
            write(db, at, g_re, g_im, real & within, COMPLEX)
            before_re = tl.where(is_first, first_re, states[i][0])
            before_im = tl.where(is_first, first_im, states[i][1])
            da_re, da_im = times(g_re, g_im, before_re, -before_im, COMPLEX)
            if VARIES:
                write(da, at, da_re, da_im, real & within, COMPLEX)
            else:
                sum_re, sum_im = sum_re + tl.where(within, da_re, 0), sum_im + tl.where(within, da_im, 0)
            decay_re, decay_im = decays[i] if VARIES else fixed
            next_re, next_im = times(decay_re, -decay_im, g_re, g_im, COMPLEX)
            back_re, back_im = tl.where(within, next_re, back_re), tl.where(within, next_im, back_im)
    if not VARIES:
        write(da, p * d + channels, sum_re, sum_im, real, COMPLEX)
    if dh0 is not None:
        write(dh0, p * d + channels, back_re, back_im, real, COMPLEX)
