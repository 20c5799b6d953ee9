"""The linear recurrence's Triton kernels in Triton's interpreter, on tiny shapes, against the float64 reference."""

import os

import pytest
import torch
from ssm_kernels.linear_recurrence import reference
from ssm_kernels.rows import Row

from tests.kernels.test_linear_recurrence import arguments, close, gradients, run

if os.environ.get("TRITON_INTERPRET") != "1":

    def test_in_the_interpreter(in_interpreter):
        in_interpreter(__file__)

else:

    def agree(tensors, rows, reverse, tolerance, **more):
        def actual_of(a, b, h0):
            return run(a, b, h0, backend="triton", reverse=reverse, **more)

        def expected_of(a, b, h0):
            return reference.linear_recurrence(a, b, h0, rows, reverse)

        for actual, expected in zip(actual_of(*tensors), expected_of(*tensors), strict=True):
            close(actual, expected, tolerance)
        for actual, expected in zip(gradients(tensors, actual_of), gradients(tensors, expected_of), strict=True):
            close(actual, expected, 10 * tolerance)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
    @pytest.mark.parametrize("constant", [False, True])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_real_and_complex(dtype, constant, reverse):
        agree(arguments(b=1, l=9, d=3, dtype=dtype, constant=constant, rows=1), None, reverse, 1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
    def test_single_precision_over_several_blocks(dtype):
        agree(arguments(b=1, l=2, d=34, dtype=dtype, rows=1), None, False, 1e-5)

    @pytest.mark.parametrize(("constant", "reverse"), [(False, True), (True, False)])
    def test_packed_and_padded(constant, reverse):
        rows, bounds = [Row(0, 0, 4), Row(0, 4, 0), Row(0, 4, 1)], torch.tensor([0, 4, 4, 5])
        tensors = arguments(b=1, l=5, d=2, constant=constant, rows=3)
        agree(tensors, rows, reverse, 1e-12, cu_seqlens=bounds)
        tensors = arguments(b=2, l=4, d=2, constant=constant)
        agree(tensors, [Row(0, 0, 3), Row(1, 0, 0)], reverse, 1e-12, lengths=torch.tensor([3, 0]))

    def test_without_a_state_and_from_the_last_state_alone():
        a, b, _ = arguments(b=1, l=3, d=2)
        close(run(a, b, backend="triton")[0], reference.linear_recurrence(a, b, None, None, False)[0], 1e-12)
        tensors = arguments(b=1, l=3, d=2, rows=1)
        actual = gradients(tensors, lambda *t: run(*t, backend="triton")[1:])
        expected = gradients(tensors, lambda *t: run(*t, backend="reference")[1:])
        for left, right in zip(actual, expected, strict=True):
            close(left, right, 1e-12)
