"""Long rows in Triton: every piece of a row at once, from the state that the pieces before it leave.

A piece maps its first state to its last by h -> through h + end, one number each for every channel and state. A first
pass walks all pieces from zero for these maps, without outputs; a second carries the state through the maps of a row.
Then the pieces are rows of their own to the kernels proper. The adjoint is carried in the same way, from behind.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_common import LOG2E, Pieces, launch, piece_at, rows_at, schedulers, sigmoid, tokens_at, wide
from .triton_forward import (
    UNALIGNED,
    advance,
    channels_of,
    decay_and_weight,
    load_channels,
    load_state,
    store_state,
    time_step,
)

SHORTEST = 256  # steps of a piece for which the extra pass pays
ENTRIES = 256  # of the (n, d) states that one program carries


def steps_of(rows: int, tokens: int, blocks: int, device: torch.device) -> int:
    """Steps in a piece: all, unless whole rows would leave half of the device idle.

    Args:
        rows: Rows in the batch.
        tokens: Steps in all of them.
        blocks: Programs that a step is spread over.
        device: Where the kernels run.
    """
    wanted = schedulers(device)
    if rows * blocks * 2 >= wanted:
        return max(tokens, 1)
    return max(SHORTEST, triton.cdiv(tokens * blocks, 2 * wanted))


def states_at_pieces(p, pieces: Pieces, first: Tensor | None, dy: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state before each piece (k, pieces, n, d), and the one after each row (k, rows, n, d).

    Args:
        p: The problem, see triton.py; k its routes.
        pieces: Its pieces.
        first: The state before each row, shape (k, rows, n, d); zeros when None.
        dy: None, or shape (b, l, d): then the adjoint states, from the last piece of a row to its first.
    """
    k, _, _, d, n = p.shape
    through, ends, starts = (p.A.new_empty(k, pieces.count, n, d) for _ in range(3))
    last = p.A.new_empty(k, pieces.rows, n, d)
    inputs = p.inputs()
    if dy is not None:
        inputs |= dict(x=dy, x_r=0, x_b=dy.stride(0), x_t=dy.stride(1))
        inputs |= {f"B{key}": inputs[f"C{key}"] for key in ("", "0", "_r", "_b", "_t", "_g")}
    else:
        inputs |= dict(z=None)
    unused = ("C", "C0", "C_r", "C_b", "C_t", "C_g", "D")
    launch(
        "selective_scan", summary_kernel, pieces.count * p.blocks, max(1, triton.next_power_of_2(n) // 32),
        **{name: value for name, value in inputs.items() if name not in unused}, **p.widths(), **p.options(),
        **pieces.named, through=through, ends=ends, ADJOINT=dy is not None, UNROLL=4,
    )  # fmt: skip
    bounds = None if pieces.first is None else torch.tensor(pieces.first, dtype=torch.int32).to(p.A.device)
    parts = triton.cdiv(n * d, ENTRIES)
    for route in range(k):
        launch(
            "selective_scan", carry_kernel, pieces.rows * parts, 4, through=through[route], ends=ends[route],
            first=None if first is None else first[route], starts=starts[route], last=last[route], bounds=bounds,
            per_row=pieces.per_row, size=n * d, parts=parts, ADJOINT=dy is not None, ENTRIES=ENTRIES,
        )  # fmt: skip
    return starts, last


@triton.jit
def carry_kernel(
    through, ends, first, starts, last, bounds, per_row, size, parts, ADJOINT: tl.constexpr, ENTRIES: tl.constexpr
):
    """Carry the states of a row, some entries of them, through the maps of its pieces."""
    row = tl.program_id(0) // parts
    at = tl.program_id(0) % parts * ENTRIES + tl.arange(0, ENTRIES)
    real = at < size
    if bounds is None:
        begin, count = row * per_row, per_row
    else:
        begin = tl.load(bounds + row)
        count = tl.load(bounds + row + 1) - begin
    if first is None:
        h = tl.zeros((ENTRIES,), ends.dtype.element_ty)
    else:
        h = tl.load(first + row.to(tl.int64) * size + at, mask=real, other=0)
    for j in range(count):
        piece = begin + j
        if ADJOINT:
            piece = begin + count - 1 - j
        here = piece.to(tl.int64) * size + at
        tl.store(starts + here, h, mask=real)
        h = tl.load(through + here, mask=real, other=0) * h + tl.load(ends + here, mask=real, other=0)
    tl.store(last + row.to(tl.int64) * size + at, h, mask=real)


@triton.jit
def summary_steps(
    h, total, s, start, count, order, x, x_t, dt, dt_t, z, z_t, B, B_t, B_fixed, A2, shift, channels,
    real, states, full, UNROLL: tl.constexpr, RULE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    ADJOINT: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """UNROLL steps of the state, or of the adjoint state, and of what gives the decay over all of them."""
    tokens = tokens_at(s, start, count, order, UNROLL, REVERSE, True)
    xs, dts = rows_at(tokens, x, x_t, channels, real), rows_at(tokens, dt, dt_t, channels, real)
    Bs = rows_at(tokens, B, B_t, states, full)
    for i in tl.static_range(UNROLL):
        step, _ = time_step(dts[i], shift, SOFTPLUS, DOUBLE)
        within = s + i < count
        step = tl.where(within, step, 0)
        u = tl.where(within, xs[i].to(step.dtype), 0)
        Bi = B_fixed if B is None else Bs[i][:, None]
        if ADJOINT:
            if z is not None:
                gate = tl.load(z + tokens[i] * z_t + channels, mask=real, other=0).to(step.dtype)
                u = u * gate * sigmoid(gate)
            a, _ = decay_and_weight(step, A2, RULE, DOUBLE)
            h = a * (h + u[None, :] * Bi)
        else:
            h, a = advance(h, A2, step, u, Bi, RULE, DOUBLE)
        if RULE == "bilinear":
            total = total * a
        else:
            total += step[None, :]
    return h, total


@triton.jit(do_not_specialize_on_alignment=[*UNALIGNED, "through", "ends"])
def summary_kernel(
    x, dt, z, A, B, B0, bias, through, ends, order,
    table, length, per_row, piece_steps, row_slots, pieces, d, a_group, blocks, blocks_a_group,
    x_r, x_b, x_t, dt_r, dt_b, dt_t, z_b, z_t, B_r, B_b, B_t, B_g,
    n: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, EVERY: tl.constexpr,
    ROUTES: tl.constexpr, RULE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, ADJOINT: tl.constexpr,
    DOUBLE: tl.constexpr,
):  # fmt: skip
    """The map of one piece and block of channels; with ADJOINT x is dy and B is C, and the way is backwards."""
    p = (tl.program_id(0) // blocks).to(tl.int64)
    channels, real, group = channels_of(tl.program_id(0) % blocks, a_group, blocks_a_group, BLOCK_D)
    states = tl.arange(0, N)
    exists = real[None, :] & (states < n)[:, None]
    full = None if n == N else states < n
    batch, start, count, _ = piece_at(p, table, length, per_row, piece_steps, row_slots, EVERY, REVERSE)
    x, dt = x + batch * x_b, dt + batch * dt_b
    if z is not None:
        z += batch * z_b
    if B is not None:
        B += batch * B_b + wide(group) * B_g
    for route in range(ROUTES):
        at = wide(route)
        A2 = load_state(A, route * n, d, channels, states, exists, DOUBLE) * LOG2E
        B_fixed = load_state(B0, route * n, d, channels, states, exists, DOUBLE)
        shift = load_channels(bias, route * d + channels, real, DOUBLE)
        h, total = tl.zeros_like(A2), tl.zeros_like(shift)[None, :]
        if RULE == "bilinear":
            total = tl.zeros_like(A2) + 1
        for s in range(0, count, UNROLL):
            h, total = summary_steps(
                h, total, s, start, count, order if order is None else order + route * length, x + at * x_r, x_t,
                dt + at * dt_r, dt_t, z, z_t, B if B is None else B + at * B_r, B_t, B_fixed, A2, shift, channels,
                real, states, full, UNROLL, RULE, SOFTPLUS, REVERSE != ADJOINT, ADJOINT, DOUBLE,
            )  # fmt: skip
        if RULE != "bilinear":
            total = tl.exp2(total * A2)
        store_state(through, (route * pieces + p) * n, d, channels, states, exists, total)
        store_state(ends, (route * pieces + p) * n, d, channels, states, exists, h)
