"""The argument checks: sizes are bound by the first tensor that uses a letter, and messages say where from."""

import pytest
import torch
from ssm_kernels.checks import Shapes, check_choice, check_devices, check_dtype, compute_dtype


def test_letters_are_bound_once():
    shapes = Shapes("op")
    assert shapes.check("x", torch.zeros(2, 3), "b l") == "b l"
    assert shapes.sizes == {"b": 2, "l": 3}
    assert shapes.check("w", torch.zeros(3, 4), "b l", "l d") == "l d"
    with pytest.raises(ValueError, match=r"op: v has shape \(4, 2\), expected \(d=4 from w, l=3 from x\)"):
        shapes.check("v", torch.zeros(4, 2), "d l")


def test_a_failed_spec_binds_nothing():
    shapes = Shapes("op")
    assert shapes.check("x", torch.zeros(2, 3), "n n", "b l") == "b l"
    assert shapes.sizes == {"b": 2, "l": 3}


def test_repeated_letters_and_numbers():
    shapes = Shapes("op")
    with pytest.raises(ValueError, match=r"A has shape \(4, 2\), expected \(n, n\)"):
        shapes.check("A", torch.zeros(4, 2), "n n")
    with pytest.raises(ValueError, match=r"pair has shape \(3,\), expected \(2\)"):
        shapes.check("pair", torch.zeros(3), "2")


def test_other_checks():
    with pytest.raises(ValueError, match="op: b is on meta, but a is on cpu"):
        check_devices("op", {"none": None, "a": torch.zeros(1), "b": torch.zeros(1, device="meta")})
    with pytest.raises(ValueError, match="op: a has dtype int64, expected one of float32, float64"):
        check_dtype("op", "a", torch.zeros(1, dtype=torch.int64), (torch.float32, torch.float64))
    with pytest.raises(ValueError, match="op: rule='c', expected one of 'a', 'b'"):
        check_choice("op", "rule", "c", ("a", "b"))


def test_compute_dtype():
    half, double = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.complex128)
    assert compute_dtype(half, None) is torch.float32
    assert compute_dtype(half, double) is torch.float64
