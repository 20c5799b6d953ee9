"""The causal convolution in Triton, on the inputs "seen": the w - 1 of the state, then the row's, in scan order.

    y[t] = act(bias + sum_k weight[k] seen[t + k])
    dseen[q] = sum_k weight[k] dpre[q - k],   dweight[k] = sum_t dpre[t] seen[t + k],   dpre = dy act'

A program has a row's BLOCK_T steps of BLOCK_D channels; taps are a loop, so that any width compiles to the same code.
"""

import triton
import triton.language as tl

from ..triton_common import piece_at, sigmoid


@triton.jit
def place_of(blocks, t_blocks, d, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr):
    """Row, first step, channels and which of them exist, of this program."""
    program = tl.program_id(0)
    channels = program % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    return program // blocks // t_blocks, program // blocks % t_blocks * BLOCK_T, channels, channels < d


@triton.jit
def seen_at(q, x, x_t, h0, start, count, channels, real, d, width, REVERSE: tl.constexpr):
    """Inputs number q of those seen, (BLOCK_T, BLOCK_D): the state's first, zeros where there is none."""
    s = q - (width - 1)
    t = start + count - 1 - s if REVERSE else start + s
    inside = ((s >= 0) & (s < count))[:, None] & real[None, :]
    value = tl.load(x + t.to(tl.int64)[:, None] * x_t + channels[None, :], mask=inside, other=0)
    value = value.to(tl.float64 if value.dtype == tl.float64 else tl.float32)
    if h0 is not None:
        before = ((q >= 0) & (s < 0))[:, None] & real[None, :]
        value += tl.load(h0 + q[:, None] * d + channels[None, :], mask=before, other=0)
    return value


@triton.jit
def forward_kernel(
    x, weight, bias, h0, dy, y, last, table, length, per_row, piece_steps, row_slots, pieces, d, width, blocks,
    t_blocks, x_b, x_t, dy_b, dy_t, y_b, y_t,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """y and the last state; with dy instead the gradient before the activation. weight is (w, d)."""
    row, first, channels, real = place_of(blocks, t_blocks, d, BLOCK_T, BLOCK_D)
    batch, start, count, _ = piece_at(row, table, length, per_row, piece_steps, row_slots, 1, REVERSE)
    x, y = x + batch * x_b, y + batch * y_b
    state_at = row.to(tl.int64) * (width - 1) * d
    if h0 is not None:
        h0 += state_at
    s = first + tl.arange(0, BLOCK_T)
    total = tl.zeros((BLOCK_T, BLOCK_D), weight.dtype.element_ty)
    if bias is not None:
        total += tl.load(bias + channels, mask=real, other=0)[None, :]
    for k in range(width):
        tap = tl.load(weight + k * d + channels, mask=real, other=0)
        total += tap[None, :] * seen_at(s + k, x, x_t, h0, start, count, channels, real, d, width, REVERSE)
    t = start + count - 1 - s if REVERSE else start + s
    inside = (s < count)[:, None] & real[None, :]
    gate = sigmoid(total)
    if dy is not None:
        at = dy + batch * dy_b + t.to(tl.int64)[:, None] * dy_t + channels[None, :]
        out = tl.load(at, mask=inside, other=0).to(total.dtype)
        if SILU:
            out = out * gate * (1 + total * (1 - gate))
    else:
        out = total
        if SILU:
            out = total * gate
    tl.store(y + t.to(tl.int64)[:, None] * y_t + channels[None, :], out, mask=inside)
    if last is not None:
        kept = (s < width - 1)[:, None] & real[None, :]
        value = seen_at(s + count, x, x_t, h0, start, count, channels, real, d, width, REVERSE)
        tl.store(last + state_at + s[:, None] * d + channels[None, :], value, mask=kept)


@triton.jit
def backward_kernel(
    x, weight, h0, dpre, dlast, dx, dh0, dweight, dbias, table, length, per_row, piece_steps, row_slots, pieces, d,
    width, blocks, t_blocks, x_b, x_t, dx_b, dx_t,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """dx, dh0, and of dweight and dbias the part of this program's steps, (rows, t_blocks, w, d) and (.., d)."""
    row, first, channels, real = place_of(blocks, t_blocks, d, BLOCK_T, BLOCK_D)
    batch, start, count, _ = piece_at(row, table, length, per_row, piece_steps, row_slots, 1, REVERSE)
    x, dx, dpre = x + batch * x_b, dx + batch * dx_b, dpre + batch * dx_b
    state_at = row.to(tl.int64) * (width - 1) * d
    if h0 is not None:
        h0 += state_at
    s = first + tl.arange(0, BLOCK_T)
    part = (row * t_blocks + first // BLOCK_T).to(tl.int64)
    own = seen_at(s, dpre, dx_t, None, start, count, channels, real, d, 1, REVERSE)
    tl.store(dbias + part * d + channels, tl.sum(own, axis=0), mask=real)
    total = tl.zeros((BLOCK_T, BLOCK_D), weight.dtype.element_ty)
    for k in range(width):
        tap = tl.load(weight + k * d + channels, mask=real, other=0)
        total += tap[None, :] * seen_at(s - k, dpre, dx_t, None, start, count, channels, real, d, 1, REVERSE)
        seen = seen_at(s + k, x, x_t, h0, start, count, channels, real, d, width, REVERSE)
        tl.store(dweight + (part * width + k) * d + channels, tl.sum(own * seen, axis=0), mask=real)
    if dlast is not None:
        kept = ((s >= count) & (s < count + width - 1))[:, None] & real[None, :]
        total += tl.load(dlast + state_at + (s - count)[:, None] * d + channels[None, :], mask=kept, other=0)
    place = s - (width - 1)
    t = start + count - 1 - place if REVERSE else start + place
    inside = ((place >= 0) & (place < count))[:, None] & real[None, :]
    tl.store(dx + t.to(tl.int64)[:, None] * dx_t + channels[None, :], total, mask=inside)
    if dh0 is not None:
        tl.store(dh0 + state_at + s[:, None] * d + channels[None, :], total, mask=(place < 0)[:, None] & real[None, :])
