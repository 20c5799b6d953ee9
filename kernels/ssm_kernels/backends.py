"""Which implementation of an operator runs: the fastest that can, or exactly the one that was asked for.

Every operator takes `backend="auto" | "reference" | "native" | "triton"`; the environment variable SSM_KERNELS_BACKEND
replaces "auto". A backend that was named and cannot run raises; "auto" falls through to the next one, and one log line
(logger "ssm_kernels", level INFO) says which was taken and why.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping

import torch

from . import native_build
from .checks import check_choice

ENVIRONMENT = "SSM_KERNELS_BACKEND"
NAMES = ("reference", "native", "triton")

log = logging.getLogger("ssm_kernels")
_told: set[tuple[str, str, str]] = set()

# A probe says why a backend cannot run on a device type, or None when it can.
Probe = Callable[[str], str | None]


def reference_probe(device: str) -> str | None:
    """Pure PyTorch runs everywhere."""
    return None


def native_probe(device: str) -> str | None:
    """Native code needs CPU tensors and a C compiler."""
    if device != "cpu":
        return f"native code works on CPU tensors, not on {device}"
    return native_build.why_unavailable()


def triton_probe(device: str) -> str | None:
    """Triton needs GPU tensors, or its interpreter (TRITON_INTERPRET=1), which runs on CPU tensors and is slow."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device in ("cuda", "xpu") or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"Triton kernels work on GPU tensors, not on {device} (but TRITON_INTERPRET=1 interprets them, slowly)"


@torch.compiler.assume_constant_result
def choose(op: str, requested: str, device: str, probes: Mapping[str, Probe]) -> str:
    """The name of the backend to run.

    Args:
        op: Operator name, for messages.
        requested: What the caller asked for, "auto" for the best.
        device: Device type of the inputs, e.g. "cpu" or "cuda".
        probes: The operator's backends, best first.
    Raises:
        ValueError: `requested` (or the environment variable) is no backend name.
        RuntimeError: The backend asked for cannot run here; says why.
    """
    where = "backend"
    if requested == "auto" and os.environ.get(ENVIRONMENT, "auto") != "auto":
        requested, where = os.environ[ENVIRONMENT], ENVIRONMENT
    check_choice(op, where, requested, ("auto", *NAMES))
    if requested != "auto":
        reason = probes[requested](device) if requested in probes else "this operator has no such backend"
        if reason is not None:
            raise RuntimeError(f"{op}: backend {requested!r} cannot run here: {reason}")
        _tell(op, requested, f"asked for by {where}")
        return requested
    skipped = []
    for name, probe in probes.items():
        reason = probe(device)
        if reason is None:
            _tell(op, name, "; ".join(skipped) or f"the fastest for {device}")
            return name
        skipped.append(f"not {name}: {reason}")
    raise RuntimeError(f"{op}: no backend can run on {device}: " + "; ".join(skipped))


def _tell(op: str, name: str, why: str) -> None:
    if (op, name, why) not in _told:
        _told.add((op, name, why))
        log.info("%s runs on the %s backend (%s)", op, name, why)
