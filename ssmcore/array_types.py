"""The legend of shape letters, and the array types that signatures are written in.

A signature such as `dt: Float[Tensor, "b l d"]` is read with this legend, and a letter means the same in every file:

    b   batch                                   l   length: time steps or tokens
    d   channels (the model width inside a mixer, d_model outside)
    n   state size of a channel, or of a whole dense system
    g   groups of channels that share B and C   h   heads
    p   head width; in a dense system (lti)     k   kernel taps; in a rectangle, a window's side
        the number of outputs                   r   rows: packed segments, or batch items
    m   inputs of a dense system                c   classes, or waveform channels
    i   height of a token grid                  j   width of a token grid

`*b` is any number of leading batch axes, `...` any axes at all. Channels come last; states are (b, d, n).
Capitals A, B, C, D are the papers' matrices; Lambda, P, V belong to a diagonal-plus-low-rank form.
The annotations are documentation: nothing checks them at run time unless a test job switches jaxtyping's hook on.
"""

from jaxtyping import Bool, Complex, Float, Inexact, Int
from torch import Tensor

__all__ = [
    "Bool",
    "Complex",
    "Diagonal",
    "Float",
    "HeadTokens",
    "Inexact",
    "Int",
    "Lengths",
    "Mask",
    "Matrix",
    "Order",
    "SegmentBounds",
    "State",
    "TimeSteps",
    "Tokens",
]

Tokens = Float[Tensor, "b l d"]
"""A sequence of feature vectors."""

HeadTokens = Float[Tensor, "b l h p"]
"""A sequence of feature vectors, split into heads."""

TimeSteps = Float[Tensor, "b l"]
"""Time between a token and the one before it, in samples."""

Mask = Bool[Tensor, "b l"]
"""One truth value a token: it exists (`mask`), or the state starts afresh before it (`reset`)."""

Lengths = Int[Tensor, "b"]
"""Valid leading steps of each right-padded batch item."""

SegmentBounds = Int[Tensor, "bounds"]
"""cu_seqlens: where packed segments start, with the total length at the end; shape (r + 1,)."""

State = Inexact[Tensor, "b d n"]
"""State of a diagonal recurrence; real or complex."""

Diagonal = Inexact[Tensor, "*d n"]
"""Diagonal state matrices; real or complex."""

Matrix = Inexact[Tensor, "*b n n"]
"""Dense state matrices; real or complex."""

Order = Int[Tensor, "l"]
"""A token order: order[t] is the token that is visited at step t. A permutation of 0..l-1, int64."""
