"""Launches the Triton kernels: their layouts, block sizes by shape, and the partial sums that are added afterwards."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..rows import Row
from ..triton_common import MOST, Pieces, launch, output
from . import triton_long
from .triton_backward import backward_kernel
from .triton_forward import forward_kernel

BLOCK_D = 32  # channels of a program: one a lane
UNROLL = 4  # forward steps whose loads are under way together
TILE = 2  # backward steps whose states are in registers together
PART = 4  # backward steps between two states that are kept while their sub-tiles are walked back, in each ...
SPAN = 8  # ... run of so many that is walked back from one state
# Strides of a step that the backward kernel is told are equal, by the bits of EQUAL.
ALIKE = [*((f"{name}_t", "x_t") for name in ("dt", "z", "dy", "dx", "ddt", "dz")), ("B_t", "row_t"), ("C_t", "row_t")]
MOST_STATES = 1024  # of a channel: what the registers of a program hold
MOST_RANK = 32  # of a projection to the steps within the scan


def every_of(n: int) -> int:
    """Steps between two saved states: in float32 at most 4 bytes for each entry of x up to 32 states."""
    return 16 if n <= 16 else 32


def warps_of(n: int, most: int) -> int:
    """Warps of a program, so that a lane has at most `most` states."""
    return max(1, min(16, triton.next_power_of_2(n) // most))


def boundaries_shape(A: Tensor, steps: torch.Size, rows: int) -> tuple[int, ...]:
    """Shape of what forward saves for backward: h at the start of every run of `every_of` steps, as (n, d).

    Args:
        A: Shape (d, n), with routes (k, d, n).
        steps: Shape of dt, (b, l, d), with routes (k, b, l, d).
        rows: Rows in the batch.
    """
    *routes, d, n = A.shape
    return (*routes, steps[-3] * steps[-2] // every_of(n) + rows, n, d)


@dataclass(frozen=True)
class Problem:
    """One call's tensors as the kernels take them: what routes have for themselves is under their number."""

    x: Tensor
    """(k or 1, b, l, d)."""
    dt: Tensor
    """(k, b, l, d), or with a weight (k, b, l, q)."""
    z: Tensor | None
    """(b, l, d)."""
    A: Tensor
    """(k, n, d)."""
    B: Tensor
    """(k or 1, b, l, g, n), or (k, n, d) where constant."""
    C: Tensor
    D: Tensor | None
    """(k, d)."""
    bias: Tensor | None
    weight: Tensor | None
    """(k, q, d): the step of a channel is the sum of the q numbers of dt by it."""
    order: Tensor | None
    """(k, l), or None where k = 1 and tokens are visited as they lie."""
    rows: list[Row] | None
    """None for a plain batch."""
    softplus: bool
    reverse: bool
    rule: str

    @classmethod
    def of(cls, x, dt, A, B, C, D, z, dt_bias, order, rows, softplus, reverse, rule) -> "Problem":
        """From the operator's arguments.

        Raises:
            ValueError: The problem is larger than the kernels' indices.
        """
        if max(x.shape[-2], A.numel()) > MOST or A.shape[-1] > MOST_STATES:
            raise ValueError(
                f"selective_scan: x {tuple(x.shape)} with A {tuple(A.shape)} is beyond the Triton kernels' indices: "
                f"at most {MOST} steps, {MOST_STATES} states and {MOST} entries of A"
            )

        def dense(t: Tensor) -> Tensor:
            return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()

        def dense_or_none(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.contiguous()

        def projection(M: Tensor) -> Tensor:
            if M.ndim == 2:
                return M.t().contiguous()[None]
            if order is None:
                return dense(M[None] if M.ndim == 4 else M[None, :, :, None])
            return dense((M if M.ndim == 4 else M[None])[..., None, :])

        if order is None:
            dt, A = dt[None], A[None]
        weight = None
        if dt_bias is not None and dt_bias.ndim == A.ndim - (order is None):
            weight, dt_bias = dt_bias[..., 1:].reshape(*A.shape[:2], -1).mT.contiguous(), dt_bias[..., 0]
        return cls(
            dense(x if x.ndim == 4 else x[None]), dense(dt), None if z is None else dense(z), A.mT.contiguous(),
            projection(B), projection(C), dense_or_none(D), dense_or_none(dt_bias), weight, dense_or_none(order), rows,
            softplus, reverse, rule,
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """k, b, l, d, n."""
        n, d = self.A.shape[1:]
        k, b, l = self.dt.shape[:3]
        return k, b, l, d, n

    @property
    def groups(self) -> int:
        """Groups of channels with a B and C of their own."""
        return max([1, *(M.shape[3] for M in (self.B, self.C) if M.ndim == 5)])

    @property
    def a_group(self) -> int:
        return self.shape[3] // self.groups

    @property
    def blocks_a_group(self) -> int:
        return triton.cdiv(self.a_group, BLOCK_D)

    @property
    def blocks(self) -> int:
        """Blocks of channels, a program each for every piece; it goes through all routes, which so need no merge."""
        return self.blocks_a_group * self.groups

    @property
    def slots(self) -> int:
        """Boundaries of a route."""
        _, b, l, _, n = self.shape
        return l * b // every_of(n) + (b if self.rows is None else len(self.rows))

    def pieces(self) -> Pieces:
        """The rows, cut where they alone would leave most of the device idle.

        Not those of several routes: a token lies in another piece of each, and one program must merge them.
        """
        k, b, l, _, n = self.shape
        every, count = every_of(n), b if self.rows is None else len(self.rows)
        most = triton_long.steps_of(count, b * l, self.blocks, self.x.device) if k == 1 else max(l, 1)
        return Pieces.cut((b, l), self.rows, -(-most // every) * every, every, self.reverse, self.x.device)

    def widths(self) -> dict[str, int]:
        """Sizes, by the kernels' names."""
        return dict(d=self.shape[3], a_group=self.a_group, blocks=self.blocks, blocks_a_group=self.blocks_a_group)

    def inputs(self) -> dict[str, Tensor | int | None]:
        """Inputs and their strides, by the kernels' names."""
        named: dict[str, Tensor | int | None] = dict(A=self.A, D=self.D, bias=self.bias, order=self.order)
        named |= dict(x=self.x, dt=self.dt, z=self.z, **strides("x", self.x), **strides("dt", self.dt))
        named |= strides("z", self.z)
        for name, M in (("B", self.B), ("C", self.C)):
            varies = M.ndim == 5
            named |= {name: M if varies else None, f"{name}0": None if varies else M}
            named |= {f"{name}_g": M.stride(3) if varies and M.shape[3] > 1 else 0}
            named |= strides(name, M[..., 0, :] if varies else None) | ({} if varies else {f"{name}_r": 0})
        return named

    def options(self) -> dict[str, int | bool | str]:
        """Constants that the kernels are compiled for."""
        k, _, _, _, n = self.shape
        return dict(
            n=n, N=triton.next_power_of_2(n), BLOCK_D=BLOCK_D, EVERY=every_of(n), RULE=self.rule,
            SOFTPLUS=self.softplus, REVERSE=self.reverse, DOUBLE=self.A.dtype == torch.float64, ROUTES=k,
        )  # fmt: skip


def strides(name: str, t: Tensor | None) -> dict[str, int]:
    """Strides of batch and step of a (b, l, ...) tensor, and of the route of a (k, b, l, ...) one, 0 where k is 1."""
    if t is None:
        return {f"{name}_b": 0, f"{name}_t": 0}
    at = t.ndim - 3
    route = {f"{name}_r": 0 if t.shape[0] == 1 else t.stride(0)} if at else {}
    return {**route, f"{name}_b": t.stride(at), f"{name}_t": t.stride(at + 1)}


def flipped(state: Tensor | None, order: Tensor | None) -> Tensor | None:
    """(r, d, n), or with routes (k, r, d, n), to (k, r, n, d)."""
    return None if state is None else (state if order is not None else state[None]).mT.contiguous()


def projects(tensors, order: Tensor | None, rows: list[Row] | None) -> bool:
    """Whether `forward` takes dt as the low-rank factor of the steps; else it wants the steps."""
    dt = tensors[1]
    k, tokens = (1 if order is None else dt.shape[0]), dt.shape[-3] * dt.shape[-2]
    count = dt.shape[-3] if rows is None else len(rows)
    uncut = (
        k > 1 or triton_long.steps_of(count, tokens, triton.cdiv(tensors[2].shape[-2], BLOCK_D), dt.device) >= tokens
    )
    return dt.shape[-1] <= MOST_RANK and uncut


def forward(
    x, dt, A, B, C, D, z, dt_bias, initial_state, order, rows, dt_softplus, reverse, rule, save: bool, powers=False
):
    """y (b, l, d), last state (rows, d, n) and the boundaries that `backward` wants (empty unless `save`).

    powers: A[:, i] is (i + 1) A[:, 0], so that decays are the powers of the first state's.
    """
    p = Problem.of(x, dt, A, B, C, D, z, dt_bias, order, rows, dt_softplus, reverse, rule)
    k, _, _, d, n = p.shape
    rank = 0 if p.weight is None else p.weight.shape[1]
    pieces, start, last = p.pieces(), flipped(initial_state, order), None
    y = output(p.x[0], rows, A.dtype if k > 1 else x.dtype)
    boundaries = A.new_empty(boundaries_shape(A, dt.shape, pieces.rows) if save else (0,))
    if not pieces.whole_rows:
        start, last = triton_long.states_at_pieces(p, pieces, start, None)
    ends = A.new_empty(k, pieces.count, n, d)
    launch(
        "selective_scan", forward_kernel, pieces.count * p.blocks, warps_of(n, 32),
        **p.inputs(), **p.widths(), **p.options(), **pieces.named, slots=p.slots, h0=start, y=y, last=ends,
        boundaries=boundaries if save else None, **strides("y", y), UNROLL=UNROLL if n <= 16 and rank == 0 else 2,
        POWERS=powers and rule == "euler", weight=p.weight, RANK=rank, RANKS=triton.next_power_of_2(max(rank, 1)),
    )  # fmt: skip
    last = (ends if last is None else last).mT.contiguous()
    return y.to(x.dtype), last[0] if order is None else last, boundaries


def backward(
    dy, dlast, boundaries, x, dt, A, B, C, D, z, dt_bias, initial_state, order, rows, dt_softplus, reverse, rule
):
    """Gradients (dx, ddt, dA, dB, dC, dD, dz, ddt_bias, dinitial_state); None where the input is None."""
    p = Problem.of(x, dt, A, B, C, D, z, dt_bias, order, rows, dt_softplus, reverse, rule)
    k, b, l, d, n = p.shape
    pieces, g, dh0 = p.pieces(), flipped(dlast, order), None
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    if not pieces.whole_rows:
        g, dh0 = triton_long.states_at_pieces(p, pieces, g, dy)
    shared = k > p.x.shape[0]
    dx, ddt = output(p.x, rows, A.dtype if shared else None), output(p.dt, rows)
    dz = None if z is None else output(z, rows, A.dtype if k > 1 else None)
    at_start = A.new_empty(k, pieces.count, n, d) if dh0 is None and initial_state is not None else None
    dA = A.new_empty(k, pieces.count, n, d)
    dB0, dC0 = (torch.empty_like(dA) if M.ndim == 2 else None for M in (B, C))
    dD, dbias = A.new_empty(k, pieces.count, d), A.new_empty(k, pieces.count, d)
    dB, dC = (
        None if M.ndim == 2 else output(A.new_empty(()).expand(p.blocks_a_group, k, b, l, p.groups * n), rows)
        for M in (B, C)
    )
    named = dict(
        **p.inputs(), row_t=p.groups * n, **strides("dy", dy), **strides("dx", dx), **strides("ddt", ddt),
        **strides("dz", dz),
    )  # fmt: skip
    equal = sum(1 << bit for bit, (one, other) in enumerate(ALIKE) if named[one] == named[other])
    launch(
        "selective_scan", backward_kernel, pieces.count * p.blocks, warps_of(n, 16 if n <= 32 else 8),
        **named, **p.widths(), **p.options(), **pieces.named, slots=p.slots, boundaries=boundaries, dy=dy, dlast=g,
        dx=dx, ddt=ddt, dz=dz, dA=dA, dB=dB, dC=dC, dB0=dB0, dC0=dC0, dD=dD, dbias=dbias, dh0=at_start,
        tokens=b * l, EQUAL=equal, TILE=TILE if rule == "euler" else 1, PART=PART, SPAN=SPAN, SHARED_X=shared,
    )  # fmt: skip
    dh0 = at_start if dh0 is None else dh0
    per_route = (dA.sum(1).mT, dD.sum(1), dbias.sum(1))
    sum_A, sum_D, sum_bias = (t if order is not None else t[0] for t in per_route)
    return (
        dx.to(x.dtype).reshape(x.shape), ddt.reshape(dt.shape), sum_A.contiguous(),
        projection_gradient(dB, dB0, B, order), projection_gradient(dC, dC0, C, order), None if D is None else sum_D,
        None if z is None or dz is None else dz.to(z.dtype), None if dt_bias is None else sum_bias,
        None if initial_state is None or dh0 is None else dh0.mT.reshape(initial_state.shape).contiguous(),
    )  # fmt: skip


def projection_gradient(rows: Tensor | None, constant: Tensor | None, M: Tensor, order: Tensor | None) -> Tensor:
    """The gradient of B or C, shape of M, from the parts of all blocks (p, k, b, l, g n) or pieces (k, p, n, d)."""
    if rows is None:
        assert constant is not None
        return constant.sum((0, 1)).t().contiguous()
    total = rows.sum(0) if rows.shape[0] > 1 else rows[0]
    shared = order is not None and M.ndim == 3
    return (total.sum(0) if shared else total).reshape(M.shape)
