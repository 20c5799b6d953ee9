"""The long convolution operator: input checks, torch.library registration, choice of backend.

    y[t] = sum over j of kernel[j] x[t-j] + sum over j of kernel_back[j] x[t+j] + D x[t]

b batch, l length, d channels, k and m taps. The backend "native" is torch.fft, on every device, and for few taps the
direct sum of `causal_conv1d`; "reference" is the direct sum over lags.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import backends, rows
from ..by_rows import bounds_on_device, rows_or_none
from ..causal_conv1d import causal_conv1d
from ..checks import FLOATS, Shapes, check_choice, check_devices, check_dtype, compute_dtype
from ..derivatives import register_differentiable
from . import fourier, reference

# torch.fft is native code that torch brings for each device.
PROBES: dict[str, backends.Probe] = {"native": lambda device: None, "reference": backends.reference_probe}
# Inside the registered operator, "monarch" is a backend of its own.
TRANSFORMS = {"native": fourier.LIBRARY, "monarch": fourier.MONARCH}


def fft_conv(
    x: Float[Tensor, "b l d"],
    kernel: Float[Tensor, "k d"],
    *,
    kernel_back: Float[Tensor, "m d"] | None = None,
    back_lag: int = 0,
    D: Float[Tensor, " d"] | None = None,
    cu_seqlens: Int[Tensor, " r+1"] | None = None,
    lengths: Int[Tensor, " b"] | None = None,
    reverse: bool = False,
    algorithm: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """Convolve each channel with its own long kernel, over the past and, if wanted, over the future.

        y[t] = sum over j of kernel[j] x[t-j] + sum over j of kernel_back[j] x[t+back_lag+j] + D x[t]

    With `back_lag=0` this is fft_conv(x, kernel) + flip(fft_conv(flip(x), kernel_back)), so the present step is
    weighted by kernel[0] + kernel_back[0] + D; with `back_lag=1` by kernel[0] + D alone, as in S4. Differentiable in
    every tensor. A plain kernel has no state: to stream one that is a state-space model's, run its recurrence.

    Args:
        x: Input, shape (b, l, d), any float dtype.
        kernel: Taps for the past, kernel[0] for the present step, shape (k, d), k >= 1; taps past lag l - 1 are unused.
        kernel_back: Taps for the future, shape (m, d), m >= 1.
        back_lag: How many steps ahead kernel_back[0] looks, 0 or 1.
        D: Skip weight, shape (d,).
        cu_seqlens: Bounds of r packed sequences, rising from 0 to l, int32 or int64, shape (r + 1,); needs b = 1.
            Nothing passes from one to another.
        lengths: Valid steps of each item, int32 or int64, shape (b,); the padding to the right of them gives y = 0 and
            is seen by no step.
        reverse: Exchange past and future: flip(fft_conv(flip(x), ...)).
        algorithm: Of the backend "native": "auto", torch.fft or for few taps the direct sum; or "monarch", a transform
            of two dense matrix products.
        backend: "auto", "native" (torch.fft, on every device) or "reference".
    Returns:
        y, shape and dtype of x.
    Raises:
        ValueError: A shape, dtype, device or value disagrees; names the argument, what was expected and what came.
    Source: Gu et al. 2022, S4, sec. 3.4 and app. C (kernels by FFT); two-sided kernels as in the released code; Fu et
    al. 2024, FlashFFTConv ("monarch").
    """
    dtype = _check(x, kernel, kernel_back, back_lag, D, cu_seqlens, lengths)
    check_choice("fft_conv", "algorithm", algorithm, ("auto", "monarch"))
    chosen = backends.choose("fft_conv", backend, x.device.type, PROBES)
    if algorithm == "monarch" and chosen == "native":
        chosen = "monarch"
    kernel = kernel[: max(x.shape[1], 1)].to(dtype)
    now, past, future = kernel[:1], kernel[1:], None
    if kernel_back is not None:
        future = kernel_back[: x.shape[1] + 1].to(dtype)
        if back_lag == 0:
            now, future = now + future[:1], future[1:]
    if reverse:
        past, future = now[:0] if future is None else future, past
    wide = None if D is None else D.to(dtype)
    reach = max(past.shape[0], 0 if future is None else future.shape[0])
    if chosen == "native" and reach < few_taps(x.device.type):
        return _direct(x, now if wide is None else now + wide, past, future, cu_seqlens, lengths)
    y = torch.ops.ssm_kernels.fft_conv(x.to(dtype), torch.cat((now, past)), future, wide, cu_seqlens, lengths, chosen)
    return y.to(x.dtype)


@torch.compiler.assume_constant_result
def few_taps(device: str) -> int:
    """Below how many taps the direct sum is taken: where it beats the transform both forward and backward.

    Measured on AVX-512: the direct sum is 1.5 to 3 times faster at 128 taps, and even at 256.
    """
    return 128 if device == "cpu" and backends.native_probe(device) is None else 8


def _direct(x, now, past, future, cu_seqlens, lengths) -> Tensor:
    def filtered(taps: Tensor, reverse: bool) -> Tensor:
        y = causal_conv1d(x, taps.flip(0).t(), cu_seqlens=cu_seqlens, lengths=lengths, reverse=reverse)
        assert isinstance(y, Tensor)
        return y

    y = filtered(torch.cat((now, past)), False)
    if future is None or not future.shape[0]:
        return y
    return y + filtered(torch.cat((torch.zeros_like(now), future)), True)


def _check(x, kernel, kernel_back, back_lag, D, cu_seqlens, lengths) -> torch.dtype:
    op, shapes = "fft_conv", Shapes("fft_conv")
    shapes.check("x", x, "b l d")
    given = {"x": x, "kernel": kernel, "kernel_back": kernel_back, "D": D}
    for name, spec in (("kernel", "k d"), ("kernel_back", "m d"), ("D", "d")):
        if name == "kernel" or given[name] is not None:
            shapes.check(name, given[name], spec)
    for name, letter in (("kernel", "k"), ("kernel_back", "m")):
        if shapes.sizes.get(letter, 1) < 1:
            raise ValueError(f"{op}: {name} has shape {tuple(given[name].shape)}, expected at least one tap")
    if back_lag not in (0, 1):
        raise ValueError(f"{op}: back_lag={back_lag!r}, expected 0 or 1")
    rows.check_rows(shapes, cu_seqlens, lengths)
    for name, t in given.items():
        if t is not None:
            check_dtype(op, name, t, FLOATS)
    check_devices(op, {**given, **bounds_on_device(cu_seqlens, lengths)})
    return compute_dtype(*given.values())


def _reference(x, kernel, future, D, cu_seqlens, lengths, backend):
    return (reference.fft_conv(x, kernel, future, D, rows_or_none("fft_conv", x, cu_seqlens, lengths)),)


def _forward(x, kernel, future, D, cu_seqlens, lengths, backend):
    if backend in TRANSFORMS:
        the_rows = rows_or_none("fft_conv", x, cu_seqlens, lengths)
        return (fourier.forward(x, kernel, future, D, the_rows, TRANSFORMS[backend]),)
    return _reference(x, kernel, future, D, cu_seqlens, lengths, backend)


def _fake(x, kernel, future, D, cu_seqlens, lengths, backend):
    return (x.new_empty(x.shape),)


def _backward(cotangents, saved, inputs) -> list[Tensor] | None:
    x, kernel, future, D, cu_seqlens, lengths, backend = inputs
    if backend not in TRANSFORMS:
        return None
    the_rows = rows_or_none("fft_conv", x, cu_seqlens, lengths)
    return fourier.backward(cotangents[0], x, kernel, future, D, the_rows, TRANSFORMS[backend])


register_differentiable(
    "fft_conv",
    "Tensor x, Tensor kernel, Tensor? future, Tensor? D, Tensor? cu_seqlens, Tensor? lengths, str backend",
    "Tensor y",
    tensors=4,
    forward=_forward,
    fake=_fake,
    reference=_reference,
    backward=_backward,
)
