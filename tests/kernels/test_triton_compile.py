"""The Triton kernels compiled for Hopper without a GPU: what the machine code must and must not have."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# Compiled to see that they do: here registers do not always suffice.
RARE = ("zoh, packed, reverse, in pieces", "bilinear, constant B and C, in pieces", "four routes", "float64",
        "vision forward, steps of low rank", "chunked scan", "chunked scan, float32",
        "chunked scan, small, float64")  # fmt: skip
SHARED = 227 * 1024  # bytes that a program can have on Hopper


def compiled(*cases: str) -> list[dict]:
    """What `python -m ssm_kernels.offline` says, in a process where kernels are compiled and not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    words = [sys.executable, "-m", "ssm_kernels.offline", "--json", *(["--case", *cases] if cases else [])]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check(made: dict) -> None:
    assert made["spills"] == 0, made
    assert made["exp2_slow"] == 0, made
    assert made["registers"] <= 255
    if made["kernel"] in ("forward_kernel", "summary_kernel") and made["warps"] == 1:
        assert made["shuffles"] == 0, made
        assert made["shared_bytes"] == 0, made


def test_language_shape():
    forward, backward = compiled("language forward", "language backward")
    for made in (forward, backward):
        check(made)
    assert forward["registers"] <= 128
    assert forward["loop"] <= 4 * 190  # instructions for four steps of sixteen states, softplus included
    assert backward["shuffles"] <= 2 * 48  # of two steps: three sums over states, two over channels


@pytest.mark.slow
def test_every_case():
    made = compiled()
    assert {m["kernel"] for m in made} >= {"forward_kernel", "backward_kernel", "summary_kernel", "carry_kernel"}
    for one in made:
        assert one["shared_bytes"] <= SHARED, one
        if one["case"] not in RARE:
            check(one)


def test_unknown_case_is_named():
    with pytest.raises(AssertionError, match="no case"):
        compiled("nothing")
