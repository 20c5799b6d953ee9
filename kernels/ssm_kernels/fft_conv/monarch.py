"""The Fourier transform as two small dense products (Monarch form), for hardware that multiplies matrices best.

With n = n1 n2, input index j = j1 n2 + j2 and output index k = k1 + n1 k2,

    X[k1 + n1 k2] = sum over j2 of e^(-2 pi i j2 k2 / n2) T[k1, j2] Y[k1, j2]
    Y[k1, j2]     = sum over j1 of e^(-2 pi i j1 k1 / n1) x[j1 n2 + j2]

with T = e^(-2 pi i k1 j2 / n): a matrix product, a product with T, another matrix product, and the outputs transposed.
Source: Dao et al. 2022, Monarch, sec. 3; Fu et al. 2023, Simple hardware-efficient long convolutions (FlashButterfly);
Fu et al. 2024, FlashFFTConv, sec. 3.
"""

import functools
import math

import torch
from torch import Tensor


class MonarchTransform(torch.nn.Module):
    """The transform of n numbers as two factors; with `learn` they are parameters that start at the Fourier transform.

    Args:
        n: Size.
        first: n1, a divisor of n; None is the one nearest to the root of n.
        learn: Train both factors and the twist (the learned butterfly of FlashButterfly).
    Raises:
        ValueError: n < 1, or `first` does not divide it.
    """

    left: Tensor
    right: Tensor
    twist: Tensor

    def __init__(self, n: int, first: int | None = None, *, learn: bool = False):
        super().__init__()
        if n < 1 or (first is not None and (first < 1 or n % first)):
            raise ValueError(f"MonarchTransform: n={n}, first={first}, expected at least 1 and a divisor of n")
        n1 = first or split(n)
        factors = {"left": fourier_matrix(n1), "right": fourier_matrix(n // n1), "twist": twist(n1, n // n1)}
        for name, factor in factors.items():
            # Re and Im side by side, so that a cast of the module reaches them.
            if learn:
                self.register_parameter(name, torch.nn.Parameter(torch.view_as_real(factor).float()))
            else:
                self.register_buffer(name, torch.view_as_real(factor), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The transform over the last axis, (..., n) real or complex to (..., n) complex. Raises nothing."""
        dtype = torch.promote_types(x.dtype, torch.complex64)
        left, right, turn = (torch.view_as_complex(t).to(dtype) for t in (self.left, self.right, self.twist))
        return _factored(x.to(dtype), left, right, turn)


def monarch_fft(x: Tensor, inverse: bool = False) -> Tensor:
    """The Fourier transform over the last axis through two dense factors.

    Args:
        x: Real or complex, shape (..., n).
        inverse: The inverse transform, 1 / n included.
    Returns:
        Complex, shape (..., n): torch.fft.fft(x), or ifft.
    """
    n = x.shape[-1]
    dtype = torch.promote_types(x.dtype, torch.complex64)
    left, right, turn = (t.to(device=x.device, dtype=dtype) for t in _factors(n))
    if inverse:
        return _factored(x.to(dtype), *(t.conj_physical() for t in (left, right, turn))) / n
    return _factored(x.to(dtype), left, right, turn)


def monarch_rfft(x: Tensor, n: int) -> Tensor:
    """torch.fft.rfft(x, n), (..., l) real with l <= n to (..., n / 2 + 1), through two dense factors."""
    return monarch_fft(torch.nn.functional.pad(x, (0, n - x.shape[-1])))[..., : n // 2 + 1].contiguous()


def monarch_irfft(spectrum: Tensor, n: int) -> Tensor:
    """torch.fft.irfft(spectrum, n), (..., n / 2 + 1) to (..., n) real, through two dense factors."""
    mirrored = spectrum[..., 1 : (n + 1) // 2].conj_physical().flip(-1)
    return monarch_fft(torch.cat([spectrum, mirrored], -1), inverse=True).real


@functools.lru_cache(maxsize=64)
def _factors(n: int) -> tuple[Tensor, Tensor, Tensor]:
    n1 = split(n)
    return fourier_matrix(n1), fourier_matrix(n // n1), twist(n1, n // n1)


def _factored(x: Tensor, left: Tensor, right: Tensor, turn: Tensor) -> Tensor:
    inner = left @ x.unflatten(-1, turn.shape)
    return ((inner * turn) @ right).transpose(-2, -1).flatten(-2)


def split(n: int) -> int:
    """The divisor of n nearest below or at its root. Takes no arrays, raises nothing."""
    return max(i for i in range(1, math.isqrt(n) + 1) if n % i == 0)


def fourier_matrix(n: int) -> Tensor:
    """e^(-2 pi i j k / n), shape (n, n), complex128. Raises nothing."""
    return _turns(torch.arange(n), torch.arange(n), n)


def twist(n1: int, n2: int) -> Tensor:
    """e^(-2 pi i k1 j2 / (n1 n2)), shape (n1, n2), complex128. Raises nothing."""
    return _turns(torch.arange(n1), torch.arange(n2), n1 * n2)


def _turns(a: Tensor, b: Tensor, n: int) -> Tensor:
    angle = (torch.outer(a, b) % n).double() * (-2 * math.pi / n)  # whole numbers are reduced exactly
    return torch.polar(torch.ones_like(angle), angle)
