"""Several selective scans over the same tokens, each in an order of its own, summed: bidirectional and 2-D scans.

    h_i[t] = a_i h_i[t-1] + w_i B_i x_i at token order[i, t];   y[order[i, t]] += (C_i . h_i[t] + D_i x_i) silu(z)

Nothing is permuted: every tensor lies in the tokens' own order, each scan looks its tokens up and adds to one output.
What a route has for itself is found under its number, on the first axis: dt[i], A[i], order[i]. Names as in op.py.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..checks import Shapes
from ..rows import check_rows
from . import op


def routed_scan(
    x: Float[Tensor, "b l d"] | Float[Tensor, "k b l d"],
    dt: Float[Tensor, "k b l d"] | Float[Tensor, "k b l q"],
    A: Shaped[Tensor, "k d n"] | Shaped[Tensor, "k d"],
    B: Shaped[Tensor, "b l n"] | Shaped[Tensor, "k b l n"],
    C: Shaped[Tensor, "b l n"] | Shaped[Tensor, "k b l n"],
    order: Int[Tensor, "k l"],
    *,
    D: Float[Tensor, "k d"] | None = None,
    z: Float[Tensor, "b l d"] | None = None,
    dt_bias: Float[Tensor, "k d"] | None = None,
    dt_weight: Float[Tensor, "k d q"] | None = None,
    dt_softplus: bool = False,
    cu_seqlens: Int[Tensor, " r+1"] | None = None,
    rule: str = "euler",
    backend: str = "auto",
) -> Float[Tensor, "b l d"]:
    """The sum of k selective scans, the i-th of which visits token order[i, t] at its step t.

    Args:
        x: Input, shared by the k routes, shape (b, l, d), or each route's own, shape (k, b, l, d); any float dtype.
        dt: Step, in samples, shape (k, b, l, d), in the order of the tokens as are x, B, C and z; with `dt_weight` its
            low-rank factor, shape (k, b, l, q).
        A: Diagonals of the state matrices, in 1/sample, shape (k, d, n); complex, or of the first state alone, shape
            (k, d), as in `selective_scan`.
        B: Input projection, shared, shape (b, l, n), or each route's own, shape (k, b, l, n).
        C: Output projection, likewise.
        order: For each route the token it visits at each step, a permutation of 0..l-1, int32 or int64, shape (k, l).
            On a GPU its values are not looked at.
        D: Skip weight, shape (k, d).
        z: Gate, shape (b, l, d); the output is multiplied by silu(z).
        dt_bias: Added to dt before softplus, shape (k, d).
        dt_weight: The step is dt_weight dt, shape (k, d, q), as in `selective_scan`.
        dt_softplus: Whether the step is softplus(dt + dt_bias).
        cu_seqlens: Bounds of packed rows, shape (r + 1,); needs b = 1. They cut the steps of every route, so each route
            must visit the tokens of one row after those of another.
        rule: Discretisation, as in `selective_scan`.
        backend: "auto", "reference", "native" or "triton".
    Returns:
        y, shape (b, l, d), dtype of x.
    Raises:
        ValueError: A shape, dtype, device or value disagrees; names the argument, what was expected and what came.
        RuntimeError: The backend that was asked for cannot run here.
    Source: Liu et al. 2024, VMamba, sec. 4.3 (cross-scan and cross-merge); Zhu et al. 2024, Vision Mamba, Alg. 1.
    """
    shapes = Shapes("routed_scan")
    if dt_weight is None:
        shapes.check("dt", dt, "k b l d")
    else:
        shapes.check("dt", dt, "k b l q")
        shapes.check("dt_weight", dt_weight, "k d q")
    shapes.check("x", x, "b l d", "k b l d")
    shapes.check("A", A, "k d n", "k d")
    for name, t, *specs in (
        ("B", B, "b l n", "k b l n"), ("C", C, "b l n", "k b l n"), ("order", order, "k l"), ("D", D, "k d"),
        ("z", z, "b l d"), ("dt_bias", dt_bias, "k d"),
    ):  # fmt: skip
        if t is not None:
            shapes.check(name, t, *specs)
    if order.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"routed_scan: order has dtype {str(order.dtype)[6:]}, expected int32 or int64")
    if order.device != x.device:
        raise ValueError(f"routed_scan: order is on {order.device}, but x is on {x.device}")
    if order.shape[0] == 0:
        raise ValueError("routed_scan: order has no route, expected shape (k, l) with k at least 1")
    if cu_seqlens is not None:
        check_rows(shapes, cu_seqlens, None)
    if dt_weight is not None:
        dt_bias = op.with_weight("routed_scan", x, dt_bias, dt_weight)
    tensors = (x, dt, A, B, C, D, z, dt_bias, None)
    return op.scan("routed_scan", tensors, cu_seqlens, None, order, dt_softplus, False, rule, backend)[0]
