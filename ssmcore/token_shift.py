"""The token before each token, across pieces of a sequence and never across rows: RWKV's shift, in two functions."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from .functional import at_least_float32
from .mixer import Context


def previous(
    x: Shaped[Tensor, "b l *rest"], before: Shaped[Tensor, "r *rest"] | None, ctx: Context
) -> Shaped[Tensor, "b l *rest"]:
    """x[t - 1] in the place of x[t].

    Args:
        x: Tokens, shape (b, l, *rest) or packed.
        before: What stood before each item's or row's first token, shape (b, *rest) or (r, *rest); zeros when None.
        ctx: The rows of packed tokens.
    Returns:
        Shape and dtype of x.
    """
    first = torch.zeros_like(x[:, :1]) if before is None or ctx.rows is not None else before[:, None].to(x.dtype)
    shifted = torch.cat([first, x[:, :-1]], 1)
    if ctx.rows is None:
        return shifted
    starts = (ctx.rows.time == 0).view(1, -1, *[1] * (x.ndim - 2))
    return torch.where(starts, 0 if before is None else before[ctx.rows.row][None].to(x.dtype), shifted)


def last_token(
    x: Shaped[Tensor, "b l *rest"], before: Shaped[Tensor, "r *rest"] | None, ctx: Context
) -> Shaped[Tensor, "r *rest"]:
    """The last token of each item or row, in float32 or wider; of an empty row, what stood before it.

    Args:
        x, before, ctx: As in `previous`.
    Returns:
        Shape (b, *rest) or (r, *rest).
    """
    if ctx.rows is None:
        return at_least_float32(x[:, -1])
    lengths = ctx.rows.lengths
    at = (ctx.rows.cu_seqlens[1:].to(x.device) - 1).clamp(min=0)
    found = at_least_float32(x[0, at])
    there = (lengths > 0).view(-1, *[1] * (x.ndim - 2))
    return torch.where(there, found, 0 if before is None else before.to(found.dtype))
