"""transformers' own small models give the same with our functions in their place as with their own PyTorch code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="5")
ROOT, PROGRAM = Path(__file__).parents[3], Path(__file__).with_name("run_transformers.py")
FAMILIES = ("falcon_mamba", "jamba", "bamba", "zamba2")


def both(names, folder) -> dict:
    """The program's results without and with our functions, each in a process of its own, both at once."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    jobs = {}
    for which in ("theirs", "ours"):
        words = [sys.executable, str(PROGRAM), which, *names, str(folder / which)]
        jobs[which] = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    errors = {which: job.communicate()[1] for which, job in jobs.items()}
    assert all(job.returncode == 0 for job in jobs.values()), errors
    assert "is falling back to its reference PyTorch implementation" in errors["theirs"]
    assert "is falling back" not in errors["ours"], "a function was not found by transformers"
    return {which: torch.load(folder / which) for which in jobs}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    names = [f"{kind}-{dtype}" for kind in ("mamba", "mamba2") for dtype in ("float32", "bfloat16")]
    return both(names, tmp_path_factory.mktemp("transformers"))


def error(actual, expected) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max())


def check(results, name, tolerance, tolerance_of_gradients, training=True):
    theirs, ours = results["theirs"][name], results["ours"][name]
    assert error(ours["logits"], theirs["logits"]) < tolerance
    assert torch.equal(ours["tokens"], theirs["tokens"])
    if training:
        assert error(ours["train_logits"], theirs["train_logits"]) < tolerance
        assert ours["gradients"].keys() == theirs["gradients"].keys()
        for key, gradient in theirs["gradients"].items():
            assert error(ours["gradients"][key], gradient) < tolerance_of_gradients, key


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_float32(results, kind):
    check(results, f"{kind}-float32", 1e-6, 1e-5)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_bfloat16(results, kind):
    """Ours is about as far from the float32 model as theirs is."""
    exact, theirs, ours = (results[which][f"{kind}-{dtype}"] for which, dtype in
                           (("theirs", "float32"), ("theirs", "bfloat16"), ("ours", "bfloat16")))  # fmt: skip
    for key in ("logits", "train_logits"):
        assert error(ours[key], exact[key]) < 1.5 * error(theirs[key], exact[key])
    apart = {w: [error(r["gradients"][k], g) for k, g in exact["gradients"].items()] for w, r in
             (("theirs", theirs), ("ours", ours))}  # fmt: skip
    assert sum(apart["ours"]) < 1.5 * sum(apart["theirs"])


@pytest.mark.slow
def test_other_families(tmp_path):
    found = both([f"{kind}-float32" for kind in FAMILIES], tmp_path)
    for kind in FAMILIES:
        # In training mamba_inner_fn normalises FalconMamba's steps after their projection, as upstream does and
        # transformers' own code does not.
        check(found, f"{kind}-float32", 1e-5, 1e-4, training=kind != "falcon_mamba")
