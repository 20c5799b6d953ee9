"""What the mixers with one full state matrix a channel share (S4, LSSL, HiPPO): the recurrence in blocks of time.

    h[t] = A h[t-1] + B x[t],   y[t] = C . h[t] + D x[t]          for each channel, A of shape (n, n), all real

A whole sequence that comes alone is convolved with the kernel K[t] = C A^t B. One with a state, resets or padding runs
in blocks of T steps, by the powers of A up to T, which doubling makes from log2 T products:

    y in a block = K * x + (C A^(t+1)) h_before,   h_after = A^T h_before + sum_s A^(T-1-s) B x[s]

Shapes: x, y (b, l, d); A (d, n, n); B, C, h (d, n); D (d,); k powers.
Source: Gu et al. 2021, LSSL, sec. 3; Gu et al. 2022, S4, sec. 3.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..array_types import Float, Int, Tokens
from ..functional import at_least_float32, fft_conv
from ..mixer import Context, Mixer
from ..state import State

BLOCK = 32
"""Steps T that are computed at once."""


class Discrete(NamedTuple):
    """One discrete system a channel."""

    A: Float[Tensor, "d n n"]
    B: Float[Tensor, "d n"]
    C: Float[Tensor, "d n"]


class ChannelLti(Mixer):
    """A linear time-invariant system a channel, (b, l, d) to (b, l, d). State: ssm (b, d, n), real.

    Raises nothing of its own.
    """

    lti = True
    d_state: int
    """State size of a channel n."""
    channels: int
    """Systems, d."""
    D: Tensor

    def discrete(self) -> Discrete:
        """The sampled systems, in float32 or wider. Raises nothing."""
        raise NotImplementedError

    def activate(self, y: Tokens) -> Tokens:
        """What follows the core, shape (b, l, d). Raises nothing."""
        raise NotImplementedError

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: ssm (b, d, n). Raises Unsupported if two-sided."""
        if not self.recurrent:
            self._refuse("has no state: it looks ahead")
        return {"ssm": self._zeros(batch, self.channels, self.d_state, device=device, dtype=dtype)}

    def mix(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """Core and output map on x, (b, l, d) or packed; see Mixer.mix. Raises nothing of its own."""
        y, state = self.core(x, state, ctx)
        return self.activate(y), state

    def core(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """The linear map: x and state to y and state, shapes as in `mix`. Raises nothing of its own."""
        with torch.autocast(x.device.type, enabled=False):
            if state is None and not ctx.return_state:
                longest = x.shape[1] if ctx.rows is None else int(ctx.rows.lengths.max())
                back = self.kernel_back(longest)
                kernel = self.kernel(longest)
                return fft_conv(x, kernel, kernel_back=back, back_lag=1, cu_seqlens=ctx.cu_seqlens), None
            u = at_least_float32(x)
            D = at_least_float32(self.D)
            u = u.to(torch.promote_types(u.dtype, D.dtype))
            if ctx.rows is None:
                padded, lengths = u, torch.full_like(u[:, 0, 0], u.shape[1], dtype=torch.int64)
            else:
                padded, lengths = ctx.rows.to_padded(u), ctx.rows.lengths
            h = (
                padded.new_zeros(len(lengths), self.channels, self.d_state)
                if state is None
                else state["ssm"].to(u.dtype)
            )
            if padded.shape[1] == 1:
                y, after = self.advance(padded[:, 0], h)
                y, h = y[:, None], torch.where((lengths > 0)[:, None, None], after, h)
            else:
                y, h = run_in_blocks(self.discrete(), padded, lengths, h)
            y = (y if ctx.rows is None else ctx.rows.from_padded(y)) + D * u
        return y.to(x.dtype), {"ssm": h}

    def kernel_back(self, length: int) -> Float[Tensor, "l d"] | None:
        """Weights of the tokens ahead, the next one first, shape (l, d); None in a causal layer. Raises nothing."""
        return None

    def advance(
        self, u: Float[Tensor, "r d"], h: Float[Tensor, "r d n"]
    ) -> tuple[Float[Tensor, "r d"], Float[Tensor, "r d n"]]:
        """One step without the skip: y (r, d) and the new state (r, d, n). Raises nothing."""
        A, B, C = self.discrete()
        h = torch.einsum("dnm,rdm->rdn", A, h) + u[..., None] * B
        return (h * C).sum(-1), h

    def kernel(self, length: int) -> Float[Tensor, "l d"]:
        """The core's answer to a single one at time 0.

        Args:
            length: Number of steps, l.
        Returns:
            The impulse response, skip included, in float32 or wider, shape (l, d).
        Raises:
            ValueError: length < 0.
        """
        if length < 0:
            raise ValueError(f"kernel: length={length}, expected at least 0")
        A, B, C = self.discrete()
        side = 1 << ((max(length - 1, 1)).bit_length() + 1) // 2
        fine, leap = krylov(A, B, side)  # A^j B for j < side, and A^side
        coarse, _ = krylov(leap.mT, C, -(-length // side))
        taps = torch.einsum("dik,djk->dij", coarse, fine).flatten(1)[:, :length].T
        return torch.cat([taps[:1] + at_least_float32(self.D), taps[1:]]) if length else taps


def krylov(
    A: Float[Tensor, "d n n"], B: Float[Tensor, "d n"], count: int
) -> tuple[Float[Tensor, "d k n"], Float[Tensor, "d n n"]]:
    """B, A B, .. A^(count-1) B by doubling, shape (d, count, n); and A^k for the power of two k >= count.

    Raises nothing.
    Source: Keller-Gehrig 1985, as in Gu et al. 2021, LSSL, appendix.
    """
    vectors, power = B[:, None], A
    while vectors.shape[1] < count:
        vectors = torch.cat([vectors, vectors @ power.mT], 1)
        power = power @ power
    return vectors[:, :count], power


def run_in_blocks(
    system: Discrete, u: Float[Tensor, "r l d"], lengths: Int[Tensor, "r"], h: Float[Tensor, "r d n"]
) -> tuple[Float[Tensor, "r l d"], Float[Tensor, "r d n"]]:
    """The recurrence over right-padded rows, without the skip.

    Args:
        system: One a channel.
        u: Inputs, zero beyond each row's length, shape (r, l, d).
        lengths: Steps of each row, shape (r,).
        h: States before the rows, shape (r, d, n).
    Returns:
        y, shape (r, l, d), undefined beyond the lengths; and the states after the rows, shape (r, d, n).
    """
    A, B, C = system
    l = u.shape[1]
    T = min(BLOCK, 1 << (l - 1).bit_length())
    writes, leap = krylov(A, B, T)  # (d, T, n), A^T
    reads, _ = krylov(A.mT, torch.einsum("dnm,dn->dm", A, C), T)  # C A^(t+1)
    taps = (writes * C[:, None]).sum(-1).T
    blocks = F.pad(u, (0, 0, 0, -l % T)).unflatten(1, (-1, T))
    local = fft_conv(blocks.flatten(0, 1), taps).view_as(blocks)
    entering = torch.einsum("rctd,dtn->crdn", blocks, writes.flip(1))
    before = []
    for i, entered in enumerate(entering.unbind(0)):
        before.append(h)
        after = torch.einsum("dnm,rdm->rdn", leap, h) + entered
        h = torch.where((lengths >= (i + 1) * T)[:, None, None], after, h)
    y = local + torch.einsum("rcdn,dtn->rctd", torch.stack(before, 1), reads)
    return y.flatten(1, 2)[:, :l], _finish(system, u, lengths, h, writes)


def _finish(system: Discrete, u: Tensor, lengths: Tensor, h: Tensor, writes: Float[Tensor, "d k n"]) -> Tensor:
    """The states after the last, incomplete block of each row: A^m h for the m steps left, and what they write."""
    T = writes.shape[1]
    left = lengths % T
    power = system.A
    for bit in range(T.bit_length() - 1):
        h = torch.where((left >> bit & 1).bool()[:, None, None], torch.einsum("dnm,rdm->rdn", power, h), h)
        power = power @ power
    age = torch.arange(T, device=u.device)
    at = (lengths[:, None] - 1 - age).clamp(min=0)
    newest = u.gather(1, at[..., None].expand(-1, -1, u.shape[2]))  # the newest first
    newest = torch.where((age < left[:, None])[..., None], newest, 0)
    return h + torch.einsum("rtd,dtn->rdn", newest, writes)
