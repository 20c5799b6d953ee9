"""The public scan API: the operators of ssm_kernels, and what every mixer shares around them.

    selective_scan, routed_scan, linear_recurrence, causal_conv1d, fft_conv, associative_scan: see their docstrings
    Rows           `reset` and `mask` of a batch, as packed rows
    damped_modes   sum_n w_n e^{t u_n}, the kernel of a diagonal system

Rows are how resets and padding stay exact: the tokens that exist are packed into one sequence, cut wherever a state
starts anew, and every operator keeps the pieces apart (`cu_seqlens`). Nothing is multiplied by zero, so nothing leaks.
"""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from ssm_kernels import (
    associative_scan,
    causal_conv1d,
    chunked_scan,
    fft_conv,
    linear_recurrence,
    routed_scan,
    selective_scan,
)
from torch import Tensor

from . import state as states
from .array_types import Complex, Int, Mask, SegmentBounds
from .state import State

__all__ = [
    "Rows",
    "associative_scan",
    "at_least_float32",
    "causal_conv1d",
    "chunked_scan",
    "damped_modes",
    "fft_conv",
    "linear_recurrence",
    "routed_scan",
    "selective_scan",
]


@dataclass(frozen=True)
class Rows:
    """The rows of a batch: runs of existing tokens between two starts of the state, item by item.

    The packed layout is (1, tokens, ...): all rows one after the other. An item's first row goes on from the state that
    came in (it is empty when the item starts with a reset); its last row leaves the state that goes out.
    """

    shape: tuple[int, int]
    """(b, l) of the batch."""
    positions: Int[Tensor, "tokens"]
    """Flat place, item * l + time, of each packed token."""
    row: Int[Tensor, "tokens"]
    """The row that each packed token is in."""
    lengths: Int[Tensor, "r"]
    """Tokens in each row."""
    first: Int[Tensor, "b"]
    """Each item's first row."""
    last: Int[Tensor, "b"]
    """Each item's last row."""
    cu_seqlens: SegmentBounds
    """Bounds of the rows in the packed layout, shape (r + 1,), on the CPU, where every backend reads them."""

    @classmethod
    def of(cls, reset: Mask | None, mask: Mask | None) -> "Rows":
        """Find the rows.

        Args:
            reset: True where the state starts anew before a token, shape (b, l). Ignored at tokens that do not exist.
            mask: True where a token exists, shape (b, l); None when all do.
        Raises:
            ValueError: Both are None, one is not boolean (b, l), or they disagree in shape.
        """
        given = [t for t in (reset, mask) if t is not None]
        if not given or any(t.ndim != 2 or t.dtype != torch.bool or t.shape != given[0].shape for t in given):
            came = [(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in given]
            raise ValueError(f"Rows: reset and mask must be bool and both (b, l), got {came or 'neither'}")
        b, l = given[0].shape
        exists = torch.ones_like(given[0]) if mask is None else mask
        starts = torch.zeros_like(exists) if reset is None else reset & exists
        positions = exists.flatten().nonzero().squeeze(1)
        resets = starts.sum(1)
        last = (resets + 1).cumsum(0) - 1
        row = positions // max(l, 1) + starts.flatten()[positions].cumsum(0)
        lengths = torch.bincount(row, minlength=b + int(resets.sum()))
        cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).cpu()
        return cls((b, l), positions, row, lengths, last - resets, last, cu_seqlens)

    @property
    def count(self) -> int:
        """Number of rows, r."""
        return len(self.lengths)

    @functools.cached_property
    def time(self) -> Int[Tensor, "tokens"]:
        """Each packed token's place in its row, from 0."""
        starts = self.cu_seqlens[:-1].to(self.row.device)
        return torch.arange(len(self.row), device=self.row.device) - starts[self.row]

    @property
    def item(self) -> Int[Tensor, "tokens"]:
        """The batch item of each packed token."""
        return self.positions // max(self.shape[1], 1)

    def pack(self, x: Shaped[Tensor, "b l *rest"]) -> Shaped[Tensor, "1 tokens *rest"]:
        """Existing tokens of a batch, packed. Raises: IndexError: x is smaller than the batch."""
        return x.flatten(0, 1).index_select(0, self.positions)[None]

    def unpack(self, y: Shaped[Tensor, "1 tokens *rest"]) -> Shaped[Tensor, "b l *rest"]:
        """Back to the batch; tokens that do not exist get 0. Raises: IndexError: y holds other tokens."""
        b, l = self.shape
        flat = y.new_zeros(b * l, *y.shape[2:]).index_copy(0, self.positions, y[0])
        return flat.view(b, l, *y.shape[2:])

    def to_padded(self, x: Shaped[Tensor, "1 tokens *rest"]) -> Shaped[Tensor, "r longest *rest"]:
        """One row a batch item, zeros to the right. Raises: IndexError: x holds other tokens."""
        longest = int(self.lengths.max()) if self.count else 0
        return x.new_zeros(self.count, longest, *x.shape[2:]).index_put((self.row, self.time), x[0])

    def from_padded(self, y: Shaped[Tensor, "r longest *rest"]) -> Shaped[Tensor, "1 tokens *rest"]:
        """The inverse of `to_padded`. Raises: IndexError: y has fewer rows, or shorter ones."""
        return y[self.row, self.time][None]

    def reverse(self, x: Shaped[Tensor, "1 tokens *rest"]) -> Shaped[Tensor, "1 tokens *rest"]:
        """Every row from its last token to its first. Raises: IndexError: x holds other tokens."""
        return x.index_select(1, self.mirrored)

    @functools.cached_property
    def mirrored(self) -> Int[Tensor, "tokens"]:
        """Where each packed token's mirror image in its row stands."""
        bounds = self.cu_seqlens.to(self.row.device)
        return bounds[self.row] + bounds[self.row + 1] - 1 - torch.arange(len(self.row), device=self.row.device)

    def spread(self, state: State, initial: State) -> State:
        """The state before each row: what came in before an item's first row, the initial one before all others.

        Args:
            state: Tensors (b, ...).
            initial: The initial state of r items. A cache that grows has no entries there; it is then filled up with
                zeros, which its owner must not read.
        Returns:
            Tensors (r, ...).
        Raises:
            ValueError: The two do not have the same keys.
        """

        def place(came: Tensor, fresh: Tensor) -> Tensor:
            if fresh.shape[1:] != came.shape[1:]:
                fresh = came.new_zeros(self.count, *came.shape[1:])
            return fresh.to(came.dtype).index_copy(0, self.first, came)

        return states.map_state(place, state, initial)

    def leave(self, state: State) -> State:
        """The state after each item's last row: tensors (r, ...) to (b, ...). Raises: IndexError: too few rows."""
        return states.gather(state, self.last)


def at_least_float32(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """x in float32, or float64 when it is; any shape. For what must not be rounded whatever the autocast type.

    Raises:
        TypeError: x is complex.
    """
    if x.is_complex():
        raise TypeError("at_least_float32: x is complex")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def damped_modes(weights: Complex[Tensor, "d n"], u: Complex[Tensor, "d n"], length: int) -> Complex[Tensor, "l d"]:
    """sum_n w_n e^{t u_n} for t = 0 .. length - 1, the kernel of a diagonal system (a Vandermonde product).

    Time is split as t = i s + j, so that only about sqrt(length) powers of each mode are made, and a matrix product
    does the rest: memory (d, n, sqrt(l)) in place of (d, n, l).

    Args:
        weights: w, real or complex, shape (d, n).
        u: Exponent a step, real part <= 0, shape (d, n).
        length: Number of times, l.
    Returns:
        The sums, shape (l, d), dtype of w times u.
    Raises:
        ValueError: The shapes disagree or length < 0.
    """
    if weights.shape != u.shape or length < 0:
        raise ValueError(f"damped_modes: weights {tuple(weights.shape)}, u {tuple(u.shape)}, length {length}")
    side = max(1, int(length**0.5))
    coarse = torch.arange(0, length, side, device=u.device)
    fine = torch.arange(side, device=u.device)
    strides = weights[:, None] * (u[:, None] * coarse[:, None]).exp()
    sums = strides @ (u[..., None] * fine).exp()
    return sums.flatten(1)[:, :length].T
