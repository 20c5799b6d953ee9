"""Long convolution in plain PyTorch: the oracle, a direct sum over lags that no transform rounds."""

import torch
from torch import Tensor

from ..by_rows import by_rows
from ..rows import Row


def fft_conv(x: Tensor, kernel: Tensor, future: Tensor | None, D: Tensor | None, rows: list[Row] | None) -> Tensor:
    """y[t] = sum over j of kernel[j] x[t-j] + sum over j of future[j] x[t+1+j] + D x[t]. Differentiable.

    Args:
        x: Shape (b, l, d), in one compute dtype with the others.
        kernel: Taps from lag 0 back in time, shape (k, d), k >= 1.
        future: Taps from one step ahead, shape (f, d), or None.
        D: Skip weight, shape (d,), or None.
        rows: None for a plain batch; else steps outside every row give y = 0.
    """
    if rows is not None:
        # A convolution has no state: an empty one stands in for it.
        return by_rows(lambda x, _: (fft_conv(x, kernel, future, D, None), x[:, :0]), (x,), None, rows)[0]
    l = x.shape[1]
    y = x * (kernel[0] if D is None else kernel[0] + D)
    for j in range(1, min(kernel.shape[0], l)):
        y = y + kernel[j] * _shifted(x, j)
    if future is not None:
        for j in range(1, min(future.shape[0] + 1, l)):
            y = y + future[j - 1] * _shifted(x, -j)
    return y.contiguous()


def _shifted(x: Tensor, lag: int) -> Tensor:
    """x[t - lag], zero outside."""
    if lag > 0:
        return torch.cat((torch.zeros_like(x[:, :lag]), x[:, :-lag]), 1)
    return torch.cat((x[:, -lag:], torch.zeros_like(x[:, :-lag])), 1)
