"""Calls native.c: which parameters the series share, where F and H are zero, and the output buffers."""

import ctypes
import functools
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from .. import native_build
from ..native_call import INTEGER, POINTER, NativeCall, structure

Problem = structure(
    ("batch length n c moments threads", INTEGER),
    ("f_batch f_step q_batch q_step h_batch h_step r_batch r_step b_batch b_step d_batch d_step", INTEGER),
    ("m0_batch p0_batch", INTEGER),
    ("f_row f_column h_row h_column f q h r b d m0 p0 y log_likelihood mean cov", POINTER),
)


@functools.cache
def library(double: bool) -> ctypes.CDLL:
    """native.c for one element type, built on first use."""
    return native_build.load(Path(__file__).with_name("native.c"), ("-DSSM_DOUBLE",) if double else ())


def takes(observation_noise: Tensor) -> bool:
    """Whether R (*b, c, c) is diagonal, as the measurement by measurement update needs it."""
    return observation_noise.shape[-1] == 1 or not bool(_off_diagonal(observation_noise).any())


def forward(
    transition: Tensor,
    process_noise: Tensor,
    observation: Tensor,
    observation_noise: Tensor,
    initial_mean: Tensor,
    initial_cov: Tensor,
    state_offset: Tensor | None,
    observation_offset: Tensor | None,
    y: Tensor,
    moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihoods (b, l), predicted means (b, l + 1 or 1, n) and covariances (b, l + 1 or 1, n, n)."""
    (batch, length, c), n = y.shape, initial_mean.shape[-1]
    problem = Problem(batch=batch, length=length, n=n, c=c, moments=moments, threads=torch.get_num_threads())
    call = NativeCall(problem, ())
    nil = y.new_zeros(max(n, c))
    variances = observation_noise.diagonal(dim1=-2, dim2=-1)
    matrices = {"f": transition, "q": process_noise, "h": observation}
    vectors = {"r": variances, "b": state_offset, "d": observation_offset}
    for name, value, rank in [(k, v, 2) for k, v in matrices.items()] + [(k, v, 1) for k, v in vectors.items()]:
        value = call.point(name, nil if value is None else value.contiguous())
        setattr(problem, f"{name}_batch", value.stride(0) if value.ndim > rank else 0)
        setattr(problem, f"{name}_step", value.stride(1) if value.ndim > rank + 1 else 0)
    for name, value, rank in (("m0", initial_mean, 1), ("p0", initial_cov, 2)):
        value = call.point(name, value.contiguous())
        setattr(problem, f"{name}_batch", value.stride(0) if value.ndim > rank else 0)
    for name, matrix in (("f", transition), ("h", observation)):
        places = _nonzeros(matrix)
        call.point_integers(f"{name}_row", accumulate(map(len, places), initial=0))
        call.point_integers(f"{name}_column", [k for row in places for k in row])
    call.point("y", y.contiguous())
    slots = length + 1 if moments else 1
    shapes = {"log_likelihood": (batch, length), "mean": (batch, slots, n), "cov": (batch, slots, n, n)}
    made = [call.point(name, y.new_empty(shape)) for name, shape in shapes.items()]
    library(y.dtype == torch.float64).kalman_forward(ctypes.byref(problem))
    return made[0], made[1], made[2]


def _off_diagonal(R: Tensor) -> Tensor:
    return R - torch.diag_embed(R.diagonal(dim1=-2, dim2=-1))


def _nonzeros(matrix: Tensor) -> list[list[int]]:
    """Columns, by rows, where a matrix (*b, i, j) is not zero in every series and at every step (a NaN is not zero)."""
    used = (matrix != 0).flatten(0, -3).any(0) if matrix.ndim > 2 else matrix != 0
    return [row.nonzero().flatten().tolist() for row in used]
