"""The Kalman filter operator: input checks, torch.library registration, choice of backend.

    y[t] = H x[t] + d + v,  v ~ N(0, R)          x[t+1] = F x[t] + b + w,  w ~ N(0, Q)

b batch (of series), l length, n state, c measurements a step.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .. import backends
from ..checks import FLOATS, Shapes, check_devices, check_dtype, compute_dtype
from ..derivatives import register_differentiable
from . import native, reference

PROBES: dict[str, backends.Probe] = {"native": backends.native_probe, "reference": backends.reference_probe}


def kalman_filter(
    transition: Float[Tensor, "*b n n"],
    process_noise: Float[Tensor, "*b n n"],
    observation: Float[Tensor, "*b c n"],
    observation_noise: Float[Tensor, "*b c c"],
    initial_mean: Float[Tensor, "*b n"],
    initial_cov: Float[Tensor, "*b n n"],
    y: Float[Tensor, "b l c"],
    *,
    state_offset: Float[Tensor, "*b n"] | None = None,
    observation_offset: Float[Tensor, "*b c"] | None = None,
    return_moments: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact likelihoods of a linear Gaussian state-space model, and its predicted moments.

    Differentiable in every tensor. Parameters may be shared by all series, one a series, or one a series and step: a
    matrix (i, j) is then (b, i, j) or (b, l, i, j), a vector (i,) is (b, i) or (b, l, i).

    Args:
        transition: F, from step t to t + 1; (n, n), (b, n, n) or (b, l, n, n).
        process_noise: Q, symmetric positive semidefinite; shapes as F.
        observation: H; (c, n), (b, c, n) or (b, l, c, n).
        observation_noise: R, symmetric positive semidefinite; (c, c), (b, c, c) or (b, l, c, c).
        initial_mean: Of x[0] before y[0]; (n,) or (b, n).
        initial_cov: Of x[0] before y[0]; (n, n) or (b, n, n).
        y: Measurements, shape (b, l, c); NaN where one is missing: it is skipped.
        state_offset: b; (n,), (b, n) or (b, l, n); zero when None.
        observation_offset: d; (c,), (b, c) or (b, l, c); zero when None.
        return_moments: Return the moments at all steps, not the last alone.
        backend: "auto", "reference" or "native" (which leaves an R that is not diagonal, and the gradients of several
            measurements a step, to the reference).
    Returns:
        log p(y[t] | y[0..t-1]) in nats, shape (b, l), zero where nothing was measured; mean of x[t] given y[0..t-1] for
        t = 0..l, shape (b, l + 1, n), or of x[l] alone, (b, 1, n); its covariance, with one more axis of n.
    Raises:
        ValueError: A shape, dtype or device disagrees, or y is empty or infinite; names the argument.
        RuntimeError: The backend that was asked for cannot run here.
    Source: Kalman 1960; Durbin and Koopman 2012, Time Series Analysis by State Space Methods, 4.3 and 6.4.
    """
    matrices = (transition, process_noise, observation, observation_noise, initial_mean, initial_cov)
    given = (*matrices, state_offset, observation_offset, y)
    dtype = _check(*given)
    chosen = backends.choose("kalman_filter", backend, y.device.type, PROBES)
    cast = [None if t is None else t.to(dtype) for t in given]
    return torch.ops.ssm_kernels.kalman_filter(*cast, return_moments, chosen)


def _check(F, Q, H, R, mean, cov, state_offset, observation_offset, y) -> torch.dtype:
    op, shapes = "kalman_filter", Shapes("kalman_filter")
    shapes.check("y", y, "b l c")
    if not y.numel():
        raise ValueError(f"{op}: y has shape {tuple(y.shape)}, expected at least one measurement")
    forms = {"transition": (F, "n n"), "process_noise": (Q, "n n"), "observation": (H, "c n")}
    forms |= {"observation_noise": (R, "c c"), "initial_mean": (mean, "n"), "initial_cov": (cov, "n n")}
    forms |= {"state_offset": (state_offset, "n"), "observation_offset": (observation_offset, "c")}
    for name, (value, form) in forms.items():
        if value is not None:
            timed = () if name.startswith("initial") else (f"b l {form}",)
            shapes.check(name, value, form, f"b {form}", *timed)
            check_dtype(op, name, value, FLOATS)
    check_dtype(op, "y", y, FLOATS)
    given = {"y": y, **{name: value for name, (value, _) in forms.items()}}
    check_devices(op, given)
    return compute_dtype(*given.values())


def _reference(*inputs):
    return reference.kalman_filter(*inputs[:-1])


def _forward(*inputs):
    if inputs[8].isinf().any():
        raise ValueError("kalman_filter: y has infinite values; NaN marks a missing one")
    if inputs[-1] == "native" and native.takes(inputs[3]):
        return native.forward(*inputs[:9], moments=inputs[9])
    return _reference(*inputs)


def _fake(F, Q, H, R, mean, cov, state_offset, observation_offset, y, moments, backend):
    (b, l, _), n = y.shape, mean.shape[-1]
    slots = l + 1 if moments else 1
    return y.new_empty(b, l), y.new_empty(b, slots, n), y.new_empty(b, slots, n, n)


def _backward(cotangents, saved, inputs):
    if inputs[-1] == "native" and inputs[8].shape[2] == 1:
        return native.backward(cotangents, *inputs[:9], moments=inputs[9])
    return None


register_differentiable(
    "kalman_filter",
    "Tensor transition, Tensor process_noise, Tensor observation, Tensor observation_noise, Tensor initial_mean, "
    "Tensor initial_cov, Tensor? state_offset, Tensor? observation_offset, Tensor y, bool moments, str backend",
    "Tensor log_likelihood, Tensor mean, Tensor cov",
    tensors=9,
    forward=_forward,
    fake=_fake,
    reference=_reference,
    backward=_backward,
)
