"""What the native scan is measured against. Each row computes this from the same inputs, unless it says otherwise:

    (x, dt, A, B, C, D, z, bias) -> y,   y[t] = (C[t] . h[t] + D x[t]) silu(z[t]),   dt through softplus(dt + bias)

all float32. forward: y without gradients. forward_backward: y and the gradients of all eight inputs.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from ssm_kernels import selective_scan
from ssm_kernels.selective_scan import reference
from torch import Tensor, nn

from .cases import CASES, Case


@dataclass(frozen=True)
class Job:
    """A function, the tensors that it takes and is differentiated by, and the gradient that comes to its outputs."""

    function: Callable
    inputs: tuple[Tensor, ...]
    upstream: tuple[Tensor, ...]

    def forward(self):
        """The outputs, without gradients."""
        with torch.no_grad():
            return self.function(*self.inputs)

    def forward_backward(self):
        """The outputs and the gradients of all inputs."""
        outputs = self.function(*self.inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return outputs, torch.autograd.grad(outputs, self.inputs, self.upstream)


def scan_inputs(case: Case, seed: int = 0) -> tuple[Tensor, ...]:
    """x, dt, A, B, C, D, z, bias as a fresh Mamba layer makes them: steps log-uniform in 1e-3..1e-1, A = -(1..n)."""
    g = torch.Generator().manual_seed(seed)
    b, l, d, n = case.batch, case.length, case.d, case.n
    x, z = (torch.randn(b, l, d, generator=g) for _ in range(2))
    B, C = (torch.randn(b, l, n, generator=g) for _ in range(2))
    step = 10 ** (torch.rand(b, l, d, generator=g) * 2 - 3)
    bias = torch.rand(d, generator=g) * 4 - 6
    dt = step.expm1().log() - bias  # softplus(dt + bias) = step
    A = -torch.arange(1.0, n + 1).repeat(d, 1)
    D = torch.ones(d)
    return tuple(t.requires_grad_() for t in (x, dt, A, B, C, D, z, bias))


def upstream(*shape: int) -> Tensor:
    """A gradient for an output of this shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@functools.lru_cache(maxsize=1)
def _shared(case: Case) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The rows of a case share their inputs."""
    return scan_inputs(case), (upstream(case.batch, case.length, case.d),)


def _scan_job(function: Callable) -> Callable[[Case], Job]:
    return lambda case: Job(function, *_shared(case))


def _operator(backend: str) -> Callable:
    def run(x, dt, A, B, C, D, z, bias):
        return selective_scan(x, dt, A, B, C, D=D, z=z, dt_bias=bias, dt_softplus=True, backend=backend)

    return run


def loop(x, dt, A, B, C, D, z, bias):
    """The sequential loop that unbinds time first, through plain autograd: its backward is linear in the length."""
    return reference.selective_scan(x, dt, A, B, C, D, z, bias, None, None, True, False, "euler")[0]


def loop_indexed(x, dt, A, B, C, D, z, bias):
    """The sequential loop as it is mostly written: a and b of all steps at once, then indexed step by step.

    Autograd's backward of every `a[:, i]` fills a tensor of the full size: quadratic in the length.
    """
    dt = F.softplus(dt + bias)
    a = torch.exp(dt[..., None] * A)
    b = (dt * x)[..., None] * B[:, :, None]
    h, outputs = torch.zeros_like(a[:, 0]), []
    for i in range(x.shape[1]):
        h = a[:, i] * h + b[:, i]
        outputs.append((h @ C[:, i, :, None])[..., 0])
    return (torch.stack(outputs, 1) + D * x) * F.silu(z)


def mambapy_scan(x, dt, A, B, C, D, z, bias):
    """mambapy's Blelloch scan (`mambapy.pscan`) between the same prologue and epilogue."""
    from mambapy.pscan import pscan

    dt = F.softplus(dt + bias)
    states = pscan(torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None])
    return ((states @ C[..., None])[..., 0] + D * x) * F.silu(z)


def transformers_mixer(case: Case) -> Job:
    """Hugging Face's whole MambaMixer of d_model = D/2 on the path it takes without CUDA kernels, with the gradients of
    its input and weights: more than the scan (projections and convolution), as its users run it."""
    os.environ["USE_HUB_KERNELS"] = "NO"
    import transformers
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    width = case.d // 2
    mixer = MambaMixer(
        MambaConfig(hidden_size=width, state_size=case.n, intermediate_size=case.d, num_hidden_layers=1), 0
    )
    hidden = upstream(case.batch, case.length, width).requires_grad_()
    return Job(lambda h, *_: mixer(h), (hidden, *mixer.parameters()), (upstream(*hidden.shape),))


def projections(case: Case) -> Job:
    """The two Linear layers around the scan in its Mamba block, and nothing else: in_proj (D/2 -> 2D) and out_proj
    (D -> D/2), no biases, gradients of inputs and weights. The block's x_proj and dt_proj are left out, so this is the
    stricter thing to be cheaper than; `projections_all` has them."""
    b, l, d = case.batch, case.length, case.d
    wide, narrow = nn.Linear(d // 2, 2 * d, bias=False).weight, nn.Linear(d, d // 2, bias=False).weight
    inputs = (upstream(b, l, d // 2).requires_grad_(), upstream(b, l, d).requires_grad_(), wide, narrow)
    return Job(
        lambda u, y, w_in, w_out: (F.linear(u, w_in), F.linear(y, w_out)),
        inputs,
        (upstream(b, l, 2 * d), upstream(b, l, d // 2)),
    )


def projections_all(case: Case) -> Job:
    """All four Linear layers of the block: in_proj, x_proj (D -> R + 2N), dt_proj (R -> D), out_proj; R = D/32."""
    b, l, d, n = case.batch, case.length, case.d, case.n
    rank = max(1, d // 32)
    shapes = ((d // 2, 2 * d), (d, rank + 2 * n), (rank, d), (d, d // 2))
    weights = tuple(nn.Linear(a, c, bias=False).weight for a, c in shapes)
    inputs = tuple(upstream(b, l, a).requires_grad_() for a, _ in shapes)
    return Job(
        lambda *t: tuple(F.linear(u, w) for u, w in zip(t[:4], t[4:], strict=True)),
        (*inputs, *weights),
        tuple(upstream(b, l, c) for _, c in shapes),
    )


@dataclass(frozen=True)
class Peer:
    """A row of the table.

    make: The job of a case.
    package: What has to be installed for it, besides torch.
    quadratic: Backward grows with length squared; it is run up to LONGEST_QUADRATIC steps only.
    only: The cases that it is run at; all when empty.
    """

    make: Callable[[Case], Job]
    package: str | None = None
    quadratic: bool = False
    only: tuple[str, ...] = ()


LONGEST_QUADRATIC = 512

PEERS: dict[str, Peer] = {
    "native": Peer(_scan_job(_operator("native"))),
    "reference": Peer(_scan_job(_operator("reference"))),
    "loop": Peer(_scan_job(loop)),
    "loop_indexed": Peer(_scan_job(loop_indexed), quadratic=True, only=("vision",)),
    "mambapy": Peer(_scan_job(mambapy_scan), package="mambapy"),
    "transformers": Peer(transformers_mixer, package="transformers", quadratic=True),
    "projections": Peer(projections),
    "projections_all": Peer(projections_all),
}


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def why_skipped(impl: str, case: Case, which_pass: str) -> str | None:
    """Why a row is not measured, or None when it is."""
    peer = PEERS[impl]
    if peer.only and case.name in CASES and case.name not in peer.only:
        return f"measured at {', '.join(peer.only)} only"
    if peer.package and not installed(peer.package):
        return f"{peer.package} is not installed (pip install '.[peers]')"
    if peer.quadratic and which_pass == "forward_backward" and case.length > LONGEST_QUADRATIC:
        return f"its backward is quadratic in the length: minutes to hours at {case.length} steps"
    if impl == "native":
        from ssm_kernels.backends import native_probe

        return native_probe("cpu")
    return None
