"""The selective scan of one long sequence that lies in slices on several processes (context or sequence parallelism).

Each process scans its slice from a zero state. What a slice does to any state is affine, h -> P h + q, with
P = e^{A sum dt} and q that last state; the pairs (P, q), of size (b, d, n), are exchanged once, each process composes
those before its own, and scans its slice again from the right state. The gradients go the same way back. So a scan
costs two scans of a slice, whatever the number of processes, and what is sent does not grow with the length.

    y = context_parallel.selective_scan(x, dt, A, B, C, group=group)      x: this process's tokens
    window = context_parallel.previous_tokens(x, width - 1, group)        what a short convolution needs besides

The loss of the whole is the sum of the processes' losses: parameters' gradients are then to be summed over the group.
Code to paper: as in functional.py; b batch, l tokens of this slice, d channels, n state size.
Source: Gu & Dao 2023, Mamba, sec. 3.3.2 (the scan is associative); Blelloch 1990, Prefix sums and their applications.
"""

import functools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from ssm_kernels.checks import check_choice
from torch import Tensor

from . import functional
from .array_types import Float, Inexact, Tokens
from .functional import at_least_float32


def selective_scan(
    x: Tokens,
    dt: Tokens,
    A: Inexact[Tensor, "d n"],
    B: Inexact[Tensor, "b l n"],
    C: Inexact[Tensor, "b l n"],
    *,
    D: Float[Tensor, "d"] | None = None,
    z: Tokens | None = None,
    dt_bias: Float[Tensor, "d"] | None = None,
    dt_softplus: bool = False,
    initial_state: Inexact[Tensor, "b d n"] | None = None,
    reverse: bool = False,
    rule: str = "euler",
    return_last_state: bool = False,
    backend: str = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tokens | tuple[Tokens, Inexact[Tensor, "b d n"]]:
    """`functional.selective_scan` of a sequence whose slices lie on the processes of a group, in the order of ranks.

    Every process of the group has to call it, and its backward, or none.

    Args:
        x: This process's slice, shape (b, l, d); l may differ between processes and be 0.
        dt: Step, shape (b, l, d), as are B, C and z (b, l, ...) this slice's.
        A: Shape (d, n), the same on all processes, as are D and dt_bias, (d,).
        B: Shape (b, l, n) or another that `functional.selective_scan` takes.
        C: As B.
        D: Skip weight, shape (d,).
        z: Gate, shape (b, l, d).
        dt_bias: Added to dt before softplus, shape (d,).
        dt_softplus: Whether the step is softplus(dt + dt_bias).
        initial_state: h before the whole sequence, shape (b, d, n), on the first process of the scan; None on others.
        reverse: Scan from the last process's last step to the first one's first.
        rule: "euler" or "zoh".
        return_last_state: Also return the last state of the whole sequence, on every process.
        backend: As in `functional.selective_scan`.
        group: The processes; None is all of them.
    Returns:
        y of this slice, shape and dtype of x; and the last state, shape (b, d, n).
    Raises:
        ValueError: As `functional.selective_scan`; or the rule is "bilinear"; or an initial state comes in the middle.
    """
    check_choice("context_parallel.selective_scan", "rule", rule, ("euler", "zoh"))
    index, count = place_in_group(group, reverse)
    if initial_state is not None and index > 0:
        raise ValueError(
            "context_parallel.selective_scan: initial_state belongs to the first slice, expected None here"
        )
    scan = functools.partial(
        functional.selective_scan,
        x,
        dt,
        A,
        B,
        C,
        dt_bias=dt_bias,
        dt_softplus=dt_softplus,
        reverse=reverse,
        rule=rule,
        return_last_state=True,
        backend=backend,
    )
    if count == 1:
        y, last = scan(D=D, z=z, initial_state=initial_state)
        return (y, last) if return_last_state else y
    _, own = scan()
    start = torch.zeros_like(own) if initial_state is None else initial_state.to(own.dtype)
    state, last = _Compose.apply(own, total_decay(dt, A, dt_bias, dt_softplus), start, reverse, group)
    y, _ = scan(D=D, z=z, initial_state=state)
    return (y, last) if return_last_state else y


def total_decay(
    dt: Tokens, A: Inexact[Tensor, "d n"], dt_bias: Float[Tensor, "d"] | None, dt_softplus: bool
) -> Inexact[Tensor, "b d n"]:
    """What all steps together multiply a state with: e^{A sum dt}, shape (b, d, n).

    Args:
        dt: Step, shape (b, l, d).
        A: Shape (d, n).
        dt_bias: Added to dt before softplus, shape (d,).
        dt_softplus: Whether the step is softplus(dt + dt_bias).
    Raises nothing.
    """
    step = at_least_float32(dt) if dt_bias is None else at_least_float32(dt) + dt_bias
    step = F.softplus(step) if dt_softplus else step
    wide = A if A.is_complex() else at_least_float32(A)
    return torch.exp(step.sum(1)[..., None] * wide)


def previous_tokens(
    x: Tokens, count: int, group: dist.ProcessGroup | None = None, reverse: bool = False
) -> Float[Tensor, "b count d"]:
    """The tokens that come before this process's slice: the `initial_state` of `functional.causal_conv1d`.

    Args:
        x: This process's slice, shape (b, l, d), with at least `count` tokens.
        count: How many, the convolution's width less one.
        group: The processes; None is all of them.
        reverse: For a convolution that looks ahead, the tokens that come after the slice, the nearest one last.
    Returns:
        Shape (b, count, d); zeros on the process that is first.
    Raises:
        ValueError: The slice is shorter than `count`.
    """
    if not 0 <= count <= x.shape[1]:
        raise ValueError(f"previous_tokens: count={count}, expected 0 to {x.shape[1]}, the tokens of the slice")
    edge = x[:, :count].flip(1) if reverse else x[:, x.shape[1] - count :]
    return _Shift.apply(edge, reverse, group)


def place_in_group(group: dist.ProcessGroup | None, reverse: bool) -> tuple[int, int]:
    """Which slice in the order of the scan is this process's, and how many there are. No shapes.

    Raises:
        ValueError: torch.distributed is not initialised, or this process is not of the group.
    """
    if not dist.is_initialized():
        raise ValueError("context_parallel: torch.distributed is not initialised, call init_process_group first")
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError("context_parallel: this process is not of the group")
    return (count - 1 - rank if reverse else rank), count


def _gather(t: Tensor, reverse: bool, group: dist.ProcessGroup | None) -> list[Tensor]:
    """Every process's t, in the order of the scan."""
    flat = torch.view_as_real(t) if t.is_complex() else t
    parts = [torch.empty_like(flat, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, flat.contiguous(), group=group)
    parts = [torch.view_as_complex(part) if t.is_complex() else part for part in parts]
    return parts[::-1] if reverse else parts


class _Compose(torch.autograd.Function):
    """The state before this slice and after all, from what each slice does to a state; all (b, d, n)."""

    @staticmethod
    def forward(ctx, own, decay, start, reverse, group):
        index, count = place_in_group(group, reverse)
        gathered = _gather(torch.stack([own, decay, start]), reverse, group)
        states = [gathered[0][2]]
        for own_i, decay_i, _ in gathered:
            states.append(decay_i * states[-1] + own_i)
        ctx.save_for_backward(*(g[1] for g in gathered), states[index])
        ctx.reverse, ctx.group, ctx.index, ctx.count = reverse, group, index, count
        return states[index], states[-1]

    @staticmethod
    def backward(ctx, d_state, d_last):
        *decays, state = ctx.saved_tensors
        gathered = _gather(torch.stack([d_state, d_last]), ctx.reverse, ctx.group)
        carry = torch.stack([g[1] for g in gathered]).sum(0)  # of the state after slice i, for i from the last down
        d_own = carry
        for i in range(ctx.count - 1, -1, -1):
            d_own = carry if i == ctx.index else d_own
            carry = gathered[i][0] + decays[i].conj() * carry
        d_start = carry if ctx.index == 0 else torch.zeros_like(carry)
        return d_own, d_own * state.conj(), d_start, None, None


class _Shift(torch.autograd.Function):
    """What the process before this one has, shape kept; zeros on the first."""

    @staticmethod
    def forward(ctx, edge, reverse, group):
        ctx.reverse, ctx.group = reverse, group
        index, _ = place_in_group(group, reverse)
        parts = _gather(edge, reverse, group)
        return parts[index - 1] if index > 0 else torch.zeros_like(edge)

    @staticmethod
    def backward(ctx, gradient):
        index, count = place_in_group(ctx.group, ctx.reverse)
        parts = _gather(gradient, ctx.reverse, ctx.group)
        return (parts[index + 1] if index + 1 < count else torch.zeros_like(gradient)), None, None
