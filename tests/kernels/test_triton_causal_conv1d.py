"""The causal convolution's Triton kernels in Triton's interpreter, on tiny shapes, against the float64 reference."""

import os

import pytest
import torch
from ssm_kernels import causal_conv1d

if os.environ.get("TRITON_INTERPRET") != "1":

    def test_in_the_interpreter(in_interpreter):
        in_interpreter(__file__)

else:

    def both(l, d, w, *, b=2, rows=2, seed=0, dtype=torch.float64, silu=True, bias=True, state=True, **more):
        """Outputs and gradients on Triton and on the reference."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

        given = [normal(b, l, d), normal(d, w), normal(d) if bias else None, normal(rows, w - 1, d) if state else None]
        leaves = [t for t in given if t is not None]
        weights = torch.randn(b, l, d, generator=generator), torch.randn(rows, w - 1, d, generator=generator)
        results = []
        for backend in ("triton", "reference"):
            x, weight, shift, h0 = given
            made = causal_conv1d(
                x, weight, shift, initial_state=h0, activation="silu" if silu else None, return_last_state=True,
                backend=backend, **more,
            )  # fmt: skip
            loss = sum((y * v).sum() for y, v in zip(made, weights, strict=True))
            results.append([*made, *torch.autograd.grad(loss, leaves, materialize_grads=True)])
        return results

    def agree(*arguments, tolerance=1e-12, **more):
        for actual, expected in zip(*both(*arguments, **more), strict=True):
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("w", [1, 2, 4, 7])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_widths_and_directions(w, reverse):
        agree(5, 3, w, reverse=reverse)

    def test_more_steps_and_channels_than_a_program():
        agree(19, 66, 3, b=1, rows=1)

    def test_without_anything_optional():
        agree(3, 2, 4, silu=False, bias=False, state=False)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_packed_and_padded(reverse):
        agree(6, 2, 4, b=1, rows=3, reverse=reverse, cu_seqlens=torch.tensor([0, 4, 4, 6]))
        agree(5, 2, 3, reverse=reverse, lengths=torch.tensor([4, 0]))

    def test_single_precision():
        agree(5, 3, 4, dtype=torch.float32, tolerance=1e-5)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_half_precision_is_read_and_written_as_it_is(dtype, tolerance, reverse):
        results = both(19, 3, 4, b=1, rows=1, dtype=dtype, reverse=reverse)
        for actual, expected in zip(*results, strict=True):
            assert actual.dtype == expected.dtype
            torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)
        assert [t.dtype for t in results[0]] == [dtype, torch.float32, dtype, dtype, dtype, dtype]
