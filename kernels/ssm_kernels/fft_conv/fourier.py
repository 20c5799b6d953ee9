"""Long convolution through torch.fft (MKL or pocketfft on a CPU, cuFFT on a GPU), forward and backward.

Rows of similar length are padded to one length and transformed together; the transform is at least as long as a row and
the kernel's reach, so nothing wraps around and nothing passes from one row to another.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..native_call import covers
from ..rows import Row
from .monarch import monarch_irfft, monarch_rfft


class Transform(NamedTuple):
    """How real steps become a spectrum, rfft(x, n), and back, irfft(X, n), over the last axis."""

    rfft: Callable[[Tensor, int], Tensor]
    irfft: Callable[[Tensor, int], Tensor]


LIBRARY = Transform(torch.fft.rfft, torch.fft.irfft)
MONARCH = Transform(monarch_rfft, monarch_irfft)


@functools.lru_cache(maxsize=4096)
def fast_size(n: int) -> int:
    """The smallest even 2^a 3^b 5^c >= n: FFT libraries are several times slower at sizes with large prime factors."""
    best = 1 << max(n - 1, 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            size = 2 * three << max(0, (-(-n // (2 * three)) - 1).bit_length())
            best = min(best, size)
            three *= 3
        five *= 5
    return best


class Plan:
    """The transform of one set of rows of at most `length` steps: its size, and the kernel's spectrum.

    Time runs along the last dimension there, which is what FFT libraries lay out anyway.
    """

    def __init__(self, length: int, kernel: Tensor, future: Tensor | None, transform: Transform):
        self.length, self.transform = length, transform
        self.k = min(kernel.shape[0], length)
        self.f = 0 if future is None else min(future.shape[0], length - 1)
        self.n = fast_size(length + max(self.k - 1, self.f))
        taps = kernel.new_zeros(kernel.shape[1], self.n)
        taps[:, : self.k] = kernel[: self.k].t()
        if future is not None and self.f:
            taps[:, self.n - self.f :] = future[: self.f].flip(0).t()
        self.spectrum = transform.rfft(taps, self.n)

    def analyse(self, x: Tensor) -> Tensor:
        """Spectrum (g, d, n/2 + 1) of steps (g, length, d)."""
        return self.transform.rfft(x.transpose(1, 2), self.n)

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """Steps (g, length, d) of a spectrum."""
        return self.transform.irfft(spectrum, self.n)[..., : self.length].transpose(1, 2)

    def add_tap_gradients(self, spectrum: Tensor, dkernel: Tensor, dfuture: Tensor | None) -> None:
        """Add the gradients of the taps from the gradient's spectrum (d, n/2 + 1)."""
        taps = self.transform.irfft(spectrum, self.n).t()
        dkernel[: self.k] += taps[: self.k]
        if dfuture is not None and self.f:
            dfuture[: self.f] += taps[self.n - self.f :].flip(0)


def _alike(rows: list[Row]) -> Iterator[tuple[int, list[Row]]]:
    """Sets of rows whose lengths differ by less than a factor of two, with their largest length."""
    sets: dict[int, list[Row]] = {}
    for row in rows:
        if row.length:
            sets.setdefault(row.length.bit_length(), []).append(row)
    for some in sets.values():
        yield max(row.length for row in some), some


def _gather(x: Tensor, rows: list[Row], length: int) -> Tensor:
    """The rows of x (b, l, d), padded with zeros: (len(rows), length, d)."""
    out = x.new_zeros(len(rows), length, x.shape[2])
    for i, row in enumerate(rows):
        out[i, : row.length] = x[row.batch, row.start : row.start + row.length]
    return out


def _scatter(padded: Tensor, rows: list[Row], out: Tensor) -> None:
    for i, row in enumerate(rows):
        out[row.batch, row.start : row.start + row.length] = padded[i, : row.length]


def forward(
    x: Tensor,
    kernel: Tensor,
    future: Tensor | None,
    D: Tensor | None,
    rows: list[Row] | None,
    transform: Transform = LIBRARY,
) -> Tensor:
    """y (b, l, d); arguments as in reference.py."""
    if rows is None:
        if x.numel() == 0:
            return x.new_zeros(x.shape)
        plan = Plan(x.shape[1], kernel, future, transform)
        y = plan.synthesise(plan.analyse(x).mul_(plan.spectrum))
        return y.contiguous() if D is None else torch.addcmul(y, x, D).contiguous()
    y = x.new_empty(x.shape) if covers(rows, x.shape[0], x.shape[1]) else x.new_zeros(x.shape)
    for length, some in _alike(rows):
        _scatter(forward(_gather(x, some, length), kernel, future, D, None, transform), some, y)
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    kernel: Tensor,
    future: Tensor | None,
    D: Tensor | None,
    rows: list[Row] | None,
    transform: Transform = LIBRARY,
) -> list[Tensor]:
    """Gradients dx, dkernel, dfuture and dD; the last two where the input is given."""
    dx = x.new_empty(x.shape) if rows is None or covers(rows, x.shape[0], x.shape[1]) else x.new_zeros(x.shape)
    dkernel, dfuture = torch.zeros_like(kernel), None if future is None else torch.zeros_like(future)
    dD = None if D is None else torch.zeros_like(D)
    whole = [(x.shape[1], None)] if x.numel() else []
    for length, some in whole if rows is None else _alike(rows):
        x_here, dy_here = (x, dy) if some is None else (_gather(x, some, length), _gather(dy, some, length))
        plan = Plan(length, kernel, future, transform)
        spectrum = plan.analyse(dy_here)
        plan.add_tap_gradients(plan.analyse(x_here).conj_physical_().mul_(spectrum).sum(0), dkernel, dfuture)
        dx_here = plan.synthesise(spectrum.mul_(plan.spectrum.conj_physical_()))
        if D is not None and dD is not None:
            dx_here = torch.addcmul(dx_here, dy_here, D)
            dD += (x_here * dy_here).sum((0, 1))
        if some is None:
            dx = dx_here.contiguous()
        else:
            _scatter(dx_here, some, dx)
    return [t for t in (dx, dkernel, dfuture, dD) if t is not None]
