"""One diagonal linear time-invariant system a channel, and the two algorithms that run it.

    h' = A h + B x,   y = 2 Re(C . h) + D x  (C . h where A is real),   sampled with step dt
    K[t] = 2 Re sum_n C_n w_n B_n a_n^t,  a, w = discretize(A, dt);     y = K * x

An FFT convolution where a whole sequence comes alone, the recurrence where it comes with a state, resets, padding or
steps of its own. S4D is this and an output map; DSS, GSS, H3, Liquid-S4 and Mega stand on it too.
Source: Gu et al. 2022, On the parameterization and initialization of diagonal state space models (S4D), sec. 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..array_types import Float, Inexact, State, Tokens
from ..discretization import Rule, discretize_diagonal
from ..functional import at_least_float32, damped_modes, fft_conv, selective_scan
from ..mixer import Context


class Diagonal(NamedTuple):
    """The systems before they are sampled, in float32 or wider."""

    A: Inexact[Tensor, "d n"]
    B: Inexact[Tensor, "d n"]
    C: Inexact[Tensor, "d n"]
    dt: Float[Tensor, "d"]


def run_diagonal(
    system: Diagonal,
    D: Float[Tensor, "d"],
    x: Tokens,
    ssm: State | None,
    ctx: Context,
    rule: Rule,
    back: Diagonal | None = None,
) -> tuple[Tokens, State | None]:
    """The systems on their channels.

    Args:
        system: One a channel.
        D: Skip weights, shape (d,).
        x: Inputs, shape (b, l, d) or packed.
        ssm: States before the first token, shape (b, d, n) or (r, d, n); zeros when None.
        ctx: Rows, steps, and whether the state is wanted.
        rule: Discretisation.
        back: Systems that read the tokens ahead, from the next one on; there is no state then, and no dt.
    Returns:
        y, shape of x; and the states after the last token, or None where none came and none is wanted.
    """
    with torch.autocast(x.device.type, enabled=False):
        D = at_least_float32(D)
        if back is not None:
            longest = x.shape[1] if ctx.rows is None else int(ctx.rows.lengths.max())
            kernel, ahead = diagonal_kernel(system, D, longest, rule), diagonal_kernel(back, 0 * D, longest, rule)
            return fft_conv(x, kernel, kernel_back=ahead, back_lag=1, cu_seqlens=ctx.cu_seqlens), None
        if ssm is None and ctx.rows is None and ctx.dt is None and not ctx.return_state:
            return fft_conv(x, diagonal_kernel(system, D, x.shape[1], rule)), None
        dt = system.dt.expand(x.shape) if ctx.dt is None else system.dt * ctx.dt.to(system.dt.dtype)[..., None]
        y, last = selective_scan(
            x,
            dt,
            *system[:3],
            D=D,
            initial_state=ssm,
            cu_seqlens=ctx.cu_seqlens,
            rule=rule,
            return_last_state=True,
        )
    return y, last


def diagonal_kernel(system: Diagonal, D: Float[Tensor, "d"], length: int, rule: Rule) -> Float[Tensor, "l d"]:
    """The impulse response.

    Args:
        system: One a channel.
        D: Skip weights, shape (d,).
        length: Number of steps, l.
        rule: Discretisation.
    Returns:
        K, skip included, in float32 or wider, shape (l, d).
    """
    A, B, C, dt = system
    decay, weight = discretize_diagonal(A, B, dt[:, None], rule)
    # Bilinear decays are no exponentials of dt A, and real ones may be negative: their logarithm is complex.
    u = decay.to(torch.promote_types(decay.dtype, torch.complex64)).log() if rule == "bilinear" else dt[:, None] * A
    modes = damped_modes((C * weight).to(u.dtype), u, length)
    taps = 2 * modes.real if A.is_complex() else modes.real
    return torch.cat([taps[:1] + at_least_float32(D), taps[1:]]) if length else taps
