"""The choice of backend: the best that can run, or the one that was asked for, or an error that says why not."""

import logging

import pytest
import torch
from ssm_kernels import backends, selective_scan

PROBES = {"triton": lambda device: "no GPU", "native": lambda device: None, "reference": backends.reference_probe}


def test_auto_takes_the_first_that_can_and_says_why(caplog):
    with caplog.at_level(logging.INFO, logger="ssm_kernels"):
        assert backends.choose("op_a", "auto", "cpu", PROBES) == "native"
        assert backends.choose("op_a", "auto", "cpu", PROBES) == "native"
    assert [record.getMessage() for record in caplog.records] == [
        "op_a runs on the native backend (not triton: no GPU)"
    ]


def test_named_backend_is_taken_or_refused():
    assert backends.choose("op_b", "reference", "cpu", PROBES) == "reference"
    with pytest.raises(RuntimeError, match="op_b: backend 'triton' cannot run here: no GPU"):
        backends.choose("op_b", "triton", "cpu", PROBES)
    with pytest.raises(RuntimeError, match="has no such backend"):
        backends.choose("op_b", "triton", "cpu", {"reference": backends.reference_probe})
    with pytest.raises(ValueError, match="backend='fast', expected one of"):
        backends.choose("op_b", "fast", "cpu", PROBES)


def test_environment_replaces_auto_only(monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT, "reference")
    assert backends.choose("op_c", "auto", "cpu", PROBES) == "reference"
    assert backends.choose("op_c", "native", "cpu", PROBES) == "native"
    monkeypatch.setenv(backends.ENVIRONMENT, "quick")
    with pytest.raises(ValueError, match="SSM_KERNELS_BACKEND='quick'"):
        backends.choose("op_c", "auto", "cpu", PROBES)


def test_native_is_for_the_cpu():
    assert "not on cuda" in (backends.native_probe("cuda") or "")


def test_environment_reaches_an_operator(monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT, "triton")
    x = torch.zeros(1, 2, 3)
    with pytest.raises(RuntimeError, match="selective_scan: backend 'triton' cannot run here"):
        selective_scan(x, x, -torch.ones(3, 1), torch.ones(3, 1), torch.ones(3, 1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_reference_serves_gpu_tensors():
    x = torch.rand(1, 4, 3)
    arguments = (x, x, -torch.ones(3, 1), torch.ones(3, 1), torch.ones(3, 1))
    on_gpu = selective_scan(*(t.cuda() for t in arguments))
    torch.testing.assert_close(on_gpu.cpu(), selective_scan(*arguments))
