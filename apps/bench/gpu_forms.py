"""One small problem of each form of each Triton kernel, against the reference; what compute-sanitizer watches.

Usage: python apps/bench/gpu_forms.py [DEVICE]; on "cpu" with TRITON_INTERPRET=1 it is interpreted. Exits with 1 if a
form is further from the reference than rounding allows.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from ssm_kernels import causal_conv1d, chunked_scan, linear_recurrence, routed_scan, selective_scan
from torch import Tensor

Form = tuple[Callable[..., Any], dict[str, Tensor]]


def forms(device: str) -> dict[str, Form]:
    """Each form as a function of its tensors, by name."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    def scan(b: int, l: int, d: int, n: int, routes: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        own = (routes,) if routes else ()
        return dict(
            x=normal(b, l, d, dtype=dtype), dt=normal(*own, b, l, d, dtype=dtype) - 1, A=-normal(*own, d, n).exp(),
            B=normal(*own, b, l, n), C=normal(*own, b, l, n), D=normal(*own, d), z=normal(b, l, d, dtype=dtype),
        )  # fmt: skip

    order = torch.stack([torch.arange(5), torch.arange(5).flip(0)]).to(device)
    packed = torch.tensor([0, 4, 4, 6])
    matrices = dict(q=normal(1, 18, 1, 4), k=normal(1, 18, 1, 4), v=normal(1, 18, 2, 3))
    matrices["log_decay"] = -normal(1, 18, 2).abs()
    numbers = dict(a=normal(1, 9, 3).tanh(), b=normal(1, 9, 3), initial_state=normal(1, 3))
    step = partial(selective_scan, dt_softplus=True)
    low_rank = {**scan(1, 5, 3, 4), "dt": normal(1, 5, 2), "dt_weight": normal(3, 2)}
    return {
        "scan": (step, scan(1, 19, 3, 16)),
        "scan, bfloat16, reverse": (partial(step, reverse=True), scan(1, 5, 3, 4, dtype=torch.bfloat16)),
        "scan, packed": (partial(step, cu_seqlens=packed), scan(1, 6, 3, 4)),
        "scan, rows in pieces": (in_pieces(step), scan(1, 18, 2, 4)),
        "scan, one exponential": (step, {**(given := scan(1, 5, 3, 4)), "A": given["A"][:, 0].contiguous()}),
        "scan, steps of low rank": (step, low_rank),
        "routes": (partial(routed_scan, order=order, dt_softplus=True), scan(1, 5, 3, 4, routes=2)),
        "recurrence": (linear_recurrence, numbers),
        "recurrence, complex": (linear_recurrence, {k: torch.complex(t, t.flip(-1) / 2) for k, t in numbers.items()}),
        "convolution": (partial(causal_conv1d, activation="silu"), dict(x=normal(1, 19, 3), weight=normal(3, 4))),
        "chunks": (partial(chunked_scan, chunk=16), matrices),
    }


def in_pieces(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The scan with its rows cut as long ones are."""

    def cut(**given: Any) -> Tensor:
        from ssm_kernels.selective_scan import triton_long

        with mock.patch.object(triton_long, "steps_of", return_value=16):
            return run(**given)

    return cut


def outputs_and_gradients(run: Callable[..., Tensor], given: dict[str, Tensor], backend: str) -> list[Tensor]:
    """y and the gradients of its sum of squares."""
    leaves = {name: t.detach().requires_grad_() for name, t in given.items()}
    y = run(**leaves, backend=backend)
    return [y.detach(), *torch.autograd.grad(y.abs().float().square().sum(), list(leaves.values()))]


def main(device: str = "cuda") -> int:
    """Run all forms; returns the exit status."""
    status = 0
    for name, (run, given) in forms(device).items():
        pairs = zip(*(outputs_and_gradients(run, given, backend) for backend in ("triton", "reference")), strict=True)
        error = max(float((a - e).abs().max() / e.abs().max().clamp(min=1)) for a, e in pairs)
        right = error <= (0.02 if given.get("x", next(iter(given.values()))).dtype == torch.bfloat16 else 2e-5)
        status |= not right
        print(f"{name}: {'right' if right else 'WRONG'}, error {error:.1e}", flush=True)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
