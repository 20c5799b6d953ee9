"""Calls native.c: which parameters the series share, where F and H are zero, and the output buffers."""

import ctypes
import functools
import math
from collections.abc import Sequence
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
    ("f_row f_column h_row h_column f q h r b d m0 p0 y log_likelihood mean cov dl dmean dcov", POINTER),
    ("df dq dh dr db dd dm0 dp0 dy", POINTER),
)
RANK = {"f": 2, "q": 2, "h": 2, "r": 1, "m0": 1, "p0": 2, "b": 1, "d": 1}
"""Axes of a parameter that has none of series and steps; in the order of the operator's inputs."""


@functools.cache
def library(double: bool) -> ctypes.CDLL:
    """native.c for one element type, built on first use."""
    return native_build.load(Path(__file__).with_name("native.c"), ("-DSSM_DOUBLE",) if double else ())


def takes(observation_noise: Tensor) -> bool:
    """Whether R (*b, c, c) is diagonal, as the measurement by measurement update needs it."""
    return observation_noise.shape[-1] == 1 or not bool(_off_diagonal(observation_noise).any())


class Call(NativeCall):
    """One call's problem; `inputs` are those of the operator up to y, all of one dtype."""

    def __init__(self, inputs: Sequence[Tensor | None], moments: bool):
        *parameters, y = inputs
        assert y is not None
        self.y, (self.batch, self.length, c), n = y, y.shape, inputs[4].shape[-1]  # type: ignore[union-attr]
        sizes = {"batch": self.batch, "length": self.length, "n": n, "c": c}
        problem = Problem(**sizes, moments=moments, threads=torch.get_num_threads())
        super().__init__(problem, ())
        self.shapes = {"log_likelihood": (self.batch, self.length)}
        slots = self.length + 1 if moments else 1
        self.shapes |= {"mean": (self.batch, slots, n), "cov": (self.batch, slots, n, n)}
        self.parameters: dict[str, Tensor] = {}
        for name, value in zip(RANK, parameters, strict=True):
            if value is None:
                value = y.new_zeros(n if name == "b" else c)
            elif name == "r":
                value = value.diagonal(dim1=-2, dim2=-1)
            self._point_parameter(name, value)
        for name in ("f", "h"):
            places = _nonzeros(self.parameters[name])
            self.point_integers(f"{name}_row", accumulate(map(len, places), initial=0))
            self.point_integers(f"{name}_column", [k for row in places for k in row])
        self.point("y", y.contiguous())

    def _point_parameter(self, name: str, value: Tensor) -> None:
        self.parameters[name] = self.point(name, value.contiguous())
        per_step = math.prod(value.shape[-RANK[name] :])
        steps = value.shape[1] if value.ndim == RANK[name] + 2 else 1
        setattr(self.problem, f"{name}_batch", per_step * steps if value.ndim > RANK[name] else 0)
        if not name.endswith("0"):
            setattr(self.problem, f"{name}_step", per_step if value.ndim == RANK[name] + 2 else 0)

    @property
    def lib(self) -> ctypes.CDLL:
        return library(self.y.dtype == torch.float64)


def forward(*inputs: Tensor | None, moments: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihoods (b, l), predicted means (b, l + 1 or 1, n) and covariances (b, l + 1 or 1, n, n)."""
    call = Call(inputs, moments)
    made = {name: call.point(name, call.y.new_empty(shape)) for name, shape in call.shapes.items()}
    call.lib.kalman_forward(ctypes.byref(call.problem))
    return made["log_likelihood"], made["mean"], made["cov"]


def backward(cotangents: Sequence[Tensor | None], *inputs: Tensor | None, moments: bool) -> list[Tensor]:
    """Gradients of the inputs that are given, for one measurement a step."""
    call = Call(inputs, moments)
    for name, cotangent in zip(("dl", "dmean", "dcov"), cotangents, strict=True):
        call.point_packed(name, cotangent)
    lanes = call.lib.kalman_lanes()
    groups = -(-call.batch // lanes)
    made = {}
    for name, value in call.parameters.items():
        shared = value.ndim == RANK[name]
        made[name] = call.point(f"d{name}", value.new_empty((groups, *value.shape) if shared else value.shape))
    dy = call.point("dy", call.y.new_empty(call.y.shape))
    call.lib.kalman_backward(ctypes.byref(call.problem))
    summed = {name: d.sum(0) if call.parameters[name].ndim == RANK[name] else d for name, d in made.items()}
    summed["r"] = summed["r"][..., None]
    given = [summed[name] for name, value in zip(RANK, inputs, strict=False) if value is not None]
    return [*given, dy]


def _off_diagonal(R: Tensor) -> Tensor:
    return R - torch.diag_embed(R.diagonal(dim1=-2, dim2=-1))


def _nonzeros(matrix: Tensor) -> list[list[int]]:
    """Columns, by rows, where a matrix (*b, i, j) is not zero in every series and at every step (a NaN is not zero)."""
    used = (matrix != 0).flatten(0, -3).any(0) if matrix.ndim > 2 else matrix != 0
    return [row.nonzero().flatten().tolist() for row in used]
