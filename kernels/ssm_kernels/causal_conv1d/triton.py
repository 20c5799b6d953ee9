"""Launches the Triton kernels of the causal convolution: a program for some steps and channels of a row."""

from typing import Any

import triton
from torch import Tensor

from ..rows import Row
from ..triton_common import Pieces, launch, output
from .triton_kernels import backward_kernel, forward_kernel

BLOCK_T, BLOCK_D = 16, 64


class Call:
    """What the launches of one call share."""

    def __init__(self, x: Tensor, weight: Tensor, initial_state: Tensor | None, rows: list[Row] | None, reverse: bool):
        b, l, d = x.shape
        self.x, self.rows = (x if x.stride(2) == 1 else x.contiguous()), rows
        self.pieces = Pieces.cut((b, l), rows, max(l, 1), 1, reverse, x.device)
        longest = l if rows is None else max((row.length for row in rows), default=0)
        self.blocks = triton.cdiv(d, BLOCK_D)
        self.t_blocks = triton.cdiv(longest + weight.shape[1] - 1, BLOCK_T)
        h0 = None if initial_state is None else initial_state.contiguous()
        self.named: dict[str, Any] = dict(
            x=self.x, weight=weight.t().contiguous(), h0=h0, d=d, width=weight.shape[1], blocks=self.blocks,
            t_blocks=self.t_blocks, x_b=self.x.stride(0), x_t=self.x.stride(1), REVERSE=reverse, BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D, **self.pieces.named,
        )  # fmt: skip

    def launch(self, kernel: Any, **more: Any) -> None:
        """Run a kernel on every row, block of steps and block of channels."""
        programs = self.pieces.count * self.t_blocks * self.blocks
        launch("causal_conv1d", kernel, programs, 4, **self.named, **more)

    def filter(self, bias: Tensor | None, silu: bool, dy: Tensor | None, last: Tensor | None) -> Tensor:
        """y, or with dy its gradient before the activation, wide, shape (b, l, d); fills in the last state."""
        y = output(self.x, self.rows, None if dy is None else self.named["weight"].dtype)
        dy = dy if dy is None or dy.stride(2) == 1 else dy.contiguous()
        self.launch(
            forward_kernel, bias=None if bias is None else bias.contiguous(), dy=dy, y=y, last=last, SILU=silu,
            dy_b=0 if dy is None else dy.stride(0), dy_t=0 if dy is None else dy.stride(1),
            y_b=y.stride(0), y_t=y.stride(1),
        )  # fmt: skip
        return y


def forward(x, weight, bias, initial_state, rows: list[Row] | None, silu: bool, reverse: bool) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last state (rows, w - 1, d)."""
    call = Call(x, weight, initial_state, rows, reverse)
    last = weight.new_empty(call.pieces.count, weight.shape[1] - 1, x.shape[2])
    return call.filter(bias, silu, None, last), last


def backward(dy, dlast, x, weight, bias, initial_state, rows, silu: bool, reverse: bool) -> list[Tensor]:
    """Gradients dx, dweight, dbias and dinitial_state; the last two where the input is given."""
    call = Call(x, weight, initial_state, rows, reverse)
    (d, w), count = weight.shape, call.pieces.count
    dpre = weight.new_zeros(x.shape) if dy is None else call.filter(bias, silu, dy, None)
    dx = output(call.x, rows)
    dweight, dbias = weight.new_empty(count * call.t_blocks, w, d), weight.new_empty(count * call.t_blocks, d)
    dh0 = None if initial_state is None else weight.new_empty(initial_state.shape)
    call.launch(
        backward_kernel, dpre=dpre, dlast=None if dlast is None else dlast.contiguous(), dx=dx, dh0=dh0,
        dweight=dweight, dbias=dbias, dx_b=dx.stride(0), dx_t=dx.stride(1),
    )  # fmt: skip
    grads = (dx, dweight.sum(0).t().contiguous(), None if bias is None else dbias.sum(0), dh0)
    return [g for g in grads if g is not None]
