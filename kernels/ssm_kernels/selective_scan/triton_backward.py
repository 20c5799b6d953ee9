"""The selective scan's backward kernel in Triton.

    G[t] = gy[t] C[t] + a[t+1] G[t+1],   gy = dy silu(z)              the adjoint of h[t]
    dB[t] = sum_d w x G,   dC[t] = sum_d gy h,   dx = sum_n w B G + D gy,   d(log a[t]) = a[t] G[t] h[t-1]

One program walks one piece of a row backwards for one block of channels, a warp holding 32 channels by all states: a
lane has four neighbouring channels and a quarter of the states, so that sums over states and over channels are both
short exchanges within the warp, and nothing waits for another warp. Between two boundaries the states are computed
again: to the start of a span, of a part of it, of a sub-tile, and then, sub-tile after sub-tile from the last, with
decays and states kept in registers for the steps that go back. Sums over the channels of other blocks are written apart
and added in a fixed order, so that the gradients are the same bits in every run.
"""

import triton
import triton.language as tl

from ..triton_common import LN2, LOG2E, piece_at, rows_at, sigmoid, tokens_at, wide
from .triton_forward import (
    add_or_store,
    advance,
    channels_of,
    decay_and_weight,
    load_channels,
    load_state,
    store_state,
    time_step,
)


@triton.jit
def expm1_ratio_slope(u, exp_u, DOUBLE: tl.constexpr):
    """(e^u (u - 1) + 1) / u^2, by its series where the quotient loses digits."""
    terms: tl.constexpr = 15 if DOUBLE else 8
    series = 1 + 0 * u
    for k in tl.static_range(terms):
        series = 1 + u * series * ((terms + 1 - k) / ((terms - k) * (terms + 2 - k)))
    small = tl.abs(u) < 0.5
    safe = tl.where(small, 1, u)
    return tl.where(small, series * 0.5, (exp_u * (u - 1) + 1) / (safe * safe))


@triton.jit
def slopes(dt, A2, a, w, RULE: tl.constexpr, DOUBLE: tl.constexpr):
    """Of the rules but "euler": the derivatives of a and w by dt and by A, all (N, BLOCK_D)."""
    A, step = A2 * LN2, dt[None, :]
    if RULE == "bilinear":
        q = 1 / (1 - 0.5 * step * A)
        a_dt, a_A, w_dt, w_A = A * q * q, w * q, q * q, 0.5 * w * w
    else:
        a_dt, a_A, w_dt, w_A = A * a, step * a, a, step * step * expm1_ratio_slope(step * A, a, DOUBLE)
    return a_dt, a_A, w_dt, w_A


@triton.jit
def adjoint_step(g, before, h, A2, dt, x, gy, B, C, RULE: tl.constexpr, DOUBLE: tl.constexpr):
    """One step back: a G, dx and ddt (BLOCK_D,), and what each state adds to dA, dB and dC (N, BLOCK_D).

    Args: g is a G of the step after, `before` and h the states before and after the step, gy what came to C . h.
    """
    G = g + gy[None, :] * C
    a, w = decay_and_weight(dt, A2, RULE, DOUBLE)
    g = a * G
    if RULE == "euler":
        flow = g * before
        du = tl.sum(G * B, axis=0)
        dx, ddt = dt * du, x * du + LN2 * tl.sum(A2 * flow, axis=0)
        dA, dB = dt[None, :] * flow, (dt * x)[None, :] * G
    else:
        a_dt, a_A, w_dt, w_A = slopes(dt, A2, a, w, RULE, DOUBLE)
        da, dw = G * before, G * B * x[None, :]
        dx, ddt = tl.sum(G * w * B, axis=0), tl.sum(da * a_dt + dw * w_dt, axis=0)
        dA, dB = da * a_A + dw * w_A, w * x[None, :] * G
    return g, dx, ddt, dA, dB, gy[None, :] * h


@triton.jit
def sweep(h, s, start, count, order, x, x_t, dt, dt_t, B, B_t, B_fixed, A2, shift, channels, real, states,
          full, TILE: tl.constexpr, RULE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
          DOUBLE: tl.constexpr):  # fmt: skip
    """The states of TILE steps from place s, again: tuples of x, dt, its slope, rows of B, and TILE + 1 states."""
    tokens = tokens_at(s, start, count, order, TILE, REVERSE, True)
    xs, raw = rows_at(tokens, x, x_t, channels, real), rows_at(tokens, dt, dt_t, channels, real)
    Bs = rows_at(tokens, B, B_t, states, full)
    inputs, dts, gradients, hs = (), (), (), (h,)
    for i in tl.static_range(TILE):
        step, slope = time_step(raw[i], shift, SOFTPLUS, DOUBLE)
        step = tl.where(s + i < count, step, 0)  # beyond the end: the state stays as it is
        h, _ = advance(h, A2, step, xs[i].to(step.dtype), B_fixed if B is None else Bs[i][:, None], RULE, DOUBLE)
        inputs, dts, gradients, hs = inputs + (xs[i].to(step.dtype),), dts + (step,), gradients + (slope,), hs + (h,)
    return inputs, dts, gradients, Bs, hs


@triton.jit
def replay(h, s, tiles, start, count, order, x, x_t, dt, dt_t, B, B_t, B_fixed, A2, shift, channels, real,
           states, full, TILE: tl.constexpr, RULE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
           DOUBLE: tl.constexpr):  # fmt: skip
    """The state after `tiles` sub-tiles from place s, whose state before is h."""
    for m in range(tiles):
        _, _, _, _, hs = sweep(
            h, s + m * TILE, start, count, order, x, x_t, dt, dt_t, B, B_t, B_fixed, A2, shift, channels,
            real, states, full, TILE, RULE, SOFTPLUS, REVERSE, DOUBLE,
        )  # fmt: skip
        h = hs[TILE]
    return h


@triton.jit
def go_back(
    sums, h, s, start, count, order, x, x_t, dt, dt_t, z, z_t, B, B_t, C, C_t, dy, dy_t, dx, dx_t, ddt, ddt_t, dz, dz_t,
    dB, dC, row_t, B_fixed, C_fixed, A2, skip, shift, channels, real, states, full,
    later, ADDS: tl.constexpr, X_ADDS: tl.constexpr, TILE: tl.constexpr,
    RULE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """A sub-tile of TILE steps from place s, whose state before is h: writes its gradients, returns the new sums."""
    g, dA, dB_fixed, dC_fixed, dD, dbias = sums
    xs, dts, slope, Bs, hs = sweep(
        h, s, start, count, order, x, x_t, dt, dt_t, B, B_t, B_fixed, A2, shift, channels, real, states,
        full, TILE, RULE, SOFTPLUS, REVERSE, DOUBLE,
    )  # fmt: skip
    tokens = tokens_at(s, start, count, order, TILE, REVERSE, True)
    Cs, dys = rows_at(tokens, C, C_t, states, full), rows_at(tokens, dy, dy_t, channels, real)
    zs = rows_at(tokens, z, z_t, channels, real)
    for i in tl.static_range(TILE - 1, -1, -1):
        t, within = tokens[i], s + i < count
        Bi, Ci = B_fixed if B is None else Bs[i][:, None], C_fixed if C is None else Cs[i][:, None]
        gy = tl.where(within, dys[i].to(A2.dtype), 0)
        if z is not None:
            gate = zs[i].to(A2.dtype)
            sig = sigmoid(gate)
            y = tl.sum(Ci * hs[i + 1], axis=0) + skip * xs[i]
            add_or_store((dz + channels) + t * dz_t, gy * y * sig * (1 + gate * (1 - sig)), real & within, later, ADDS)
            gy = gy * gate * sig
        g, dxi, ddti, dAi, dBi, dCi = adjoint_step(g, hs[i], hs[i + 1], A2, dts[i], xs[i], gy, Bi, Ci, RULE, DOUBLE)
        add_or_store((dx + channels) + t * dx_t, dxi + skip * gy, real & within, later, X_ADDS)
        ddti = tl.where(within, ddti * slope[i], 0)
        add_or_store((ddt + channels) + t * ddt_t, ddti, real & within, later, False)
        dA, dD, dbias = dA + dAi, dD + gy * xs[i], dbias + ddti
        if B is None:
            dB_fixed += dBi
        else:
            tl.store((dB + states) + t * row_t, tl.sum(dBi, axis=1), mask=full & within)
        if C is None:
            dC_fixed += dCi
        else:
            tl.store((dC + states) + t * row_t, tl.sum(dCi, axis=1), mask=full & within)
    return g, dA, dB_fixed, dC_fixed, dD, dbias


@triton.jit
def backward_piece(
    sums, boundaries, slot, start, count, order, x, x_t, dt, dt_t, z, z_t, B, B_t, C, C_t, dy, dy_t, dx, dx_t, ddt,
    ddt_t, dz, dz_t, dB, dC, row_t, B_fixed, C_fixed, A2, skip, shift, channels, real, states,
    exists, full, d, n, later, ADDS: tl.constexpr, X_ADDS: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
    SPAN: tl.constexpr, EVERY: tl.constexpr, RULE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    DOUBLE: tl.constexpr,
):  # fmt: skip
    """All steps of a piece from the last: the state at the start of a span, of a part of it, then its sub-tiles."""
    spans = tl.cdiv(count, SPAN)
    for j in range(spans):
        span = (spans - 1 - j) * SPAN
        chunk = span // EVERY
        before = load_state(boundaries, (slot + chunk) * n, d, channels, states, exists, DOUBLE)
        before = replay(
            before, chunk * EVERY, (span - chunk * EVERY) // TILE, start, count, order, x, x_t, dt, dt_t, B, B_t,
            B_fixed, A2, shift, channels, real, states, full, TILE, RULE, SOFTPLUS, REVERSE, DOUBLE,
        )  # fmt: skip
        for i in range(SPAN // PART):
            part = span + (SPAN // PART - 1 - i) * PART
            middle = replay(
                before, span, (part - span) // TILE, start, count, order, x, x_t, dt, dt_t, B, B_t, B_fixed, A2, shift,
                channels, real, states, full, TILE, RULE, SOFTPLUS, REVERSE, DOUBLE,
            )  # fmt: skip
            for k in range(PART // TILE):
                tiles = PART // TILE - 1 - k
                h = replay(
                    middle, part, tiles, start, count, order, x, x_t, dt, dt_t, B, B_t, B_fixed, A2, shift,
                    channels, real, states, full, TILE, RULE, SOFTPLUS, REVERSE, DOUBLE,
                )  # fmt: skip
                sums = go_back(
                    sums, h, part + tiles * TILE, start, count, order, x, x_t, dt, dt_t, z, z_t, B, B_t, C, C_t, dy,
                    dy_t, dx, dx_t, ddt, ddt_t, dz, dz_t, dB, dC, row_t, B_fixed, C_fixed, A2, skip, shift, channels,
                    real, states, full, later, ADDS, X_ADDS, TILE, RULE, SOFTPLUS, REVERSE, DOUBLE,
                )  # fmt: skip
    return sums


@triton.jit
def backward_kernel(
    x, dt, z, A, B, C, B0, C0, D, bias, boundaries, dy, dlast, order,
    dx, ddt, dz, dA, dB, dC, dB0, dC0, dD, dbias, dh0,
    table, length, per_row, piece_steps, row_slots, pieces, slots, d, a_group, blocks, blocks_a_group, row_t, tokens,
    x_r, x_b, x_t, dt_r, dt_b, dt_t, z_b, z_t, B_r, B_b, B_t, B_g, C_r, C_b, C_t, C_g, dy_b, dy_t,
    dx_r, dx_b, dx_t, ddt_r, ddt_b, ddt_t, dz_b, dz_t,
    n: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
    SPAN: tl.constexpr, EVERY: tl.constexpr, ROUTES: tl.constexpr, SHARED_X: tl.constexpr, EQUAL: tl.constexpr,
    RULE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """All gradients of one piece and block of channels, route after route; arrays as in `forward_kernel`.

    (n, d) and (d,) gradients are a slice for each route and piece. dB and dC are (blocks of a group, ROUTES, tokens, g,
    n) with the rows of a token `row_t` long. EQUAL says which strides are equal, a bit each: they share their products.
    """
    if EQUAL & 1:
        dt_t = x_t
    if EQUAL & 2:
        z_t = x_t
    if EQUAL & 4:
        dy_t = x_t
    if EQUAL & 8:
        dx_t = x_t
    if EQUAL & 16:
        ddt_t = x_t
    if EQUAL & 32:
        dz_t = x_t
    if EQUAL & 64:
        B_t = row_t
    if EQUAL & 128:
        C_t = row_t
    p = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    channels, real, group = channels_of(block, a_group, blocks_a_group, BLOCK_D)
    states = tl.arange(0, N)
    exists, full = real[None, :] & (states < n)[:, None], states < n
    batch, start, count, slot = piece_at(p, table, length, per_row, piece_steps, row_slots, EVERY, REVERSE)
    x, dt, dy = x + batch * x_b, dt + batch * dt_b, dy + batch * dy_b
    dx, ddt = dx + batch * dx_b, ddt + batch * ddt_b
    if z is not None:
        z, dz = z + batch * z_b, dz + batch * dz_b
    if B is not None:
        B += batch * B_b + wide(group) * B_g
    if C is not None:
        C += batch * C_b + wide(group) * C_g
    for route in range(ROUTES):
        at = wide(route)
        own = route * pieces + p
        rows = ((wide(block % blocks_a_group) * ROUTES + route) * tokens + batch * length) * row_t + group * n
        A2 = load_state(A, route * n, d, channels, states, exists, DOUBLE) * LOG2E
        shift = load_channels(bias, route * d + channels, real, DOUBLE)
        zero, nothing = tl.zeros_like(A2), tl.zeros_like(shift)
        g, sum_A, sum_B, sum_C, sum_D, sum_bias = backward_piece(
            (load_state(dlast, own * n, d, channels, states, exists, DOUBLE), zero, zero, zero, nothing, nothing),
            boundaries, route * slots + slot, start, count, order if order is None else order + route * length,
            x + at * x_r, x_t, dt + at * dt_r, dt_t, z, z_t,
            B if B is None else B + at * B_r, B_t, C if C is None else C + at * C_r, C_t, dy, dy_t,
            dx + at * dx_r, dx_t, ddt + at * ddt_r, ddt_t, dz, dz_t,
            dB if B is None else dB + rows, dC if C is None else dC + rows, row_t,
            load_state(B0, route * n, d, channels, states, exists, DOUBLE),
            load_state(C0, route * n, d, channels, states, exists, DOUBLE), A2,
            load_channels(D, route * d + channels, real, DOUBLE), shift, channels, real, states, exists, full, d, n,
            route > 0, ROUTES > 1, SHARED_X, TILE, PART, SPAN, EVERY, RULE, SOFTPLUS, REVERSE, DOUBLE,
        )  # fmt: skip
        store_state(dA, own * n, d, channels, states, exists, sum_A)
        if B is None:
            store_state(dB0, own * n, d, channels, states, exists, sum_B)
        if C is None:
            store_state(dC0, own * n, d, channels, states, exists, sum_C)
        if dh0 is not None:
            store_state(dh0, own * n, d, channels, states, exists, g)
        tl.store(dD + own * d + channels, sum_D, mask=real)
        tl.store(dbias + own * d + channels, sum_bias, mask=real)
