"""The matrix-valued scan's Triton kernels in Triton's interpreter, on tiny shapes, against the float64 reference.

`SSM_TEST_DEVICE=cuda pytest tests/kernels/test_chunked_scan.py -k triton` runs all generated cases on the compiled
kernels, and the slow test below the same cases here.
"""

import os

import pytest
import torch
from ssm_kernels import chunked_scan

from tests.kernels.test_chunked_scan import all_close, arguments, cut, gradients, oracle

if os.environ.get("TRITON_INTERPRET") != "1":

    def test_in_the_interpreter(in_interpreter):
        in_interpreter(__file__)

    @pytest.mark.slow
    def test_generated_cases_in_the_interpreter(in_interpreter):
        in_interpreter("tests/kernels/test_chunked_scan.py", "-k", "triton and not compile and not bitwise")

    def test_refuses_cpu_tensors():
        with pytest.raises(RuntimeError, match="work on GPU tensors, not on cpu"):
            chunked_scan(**arguments(decay="scalar", delta=False), backend="triton")

else:

    def run(tensors, chunk=16, **flags):
        return chunked_scan(**tensors, return_last_state=True, chunk=chunk, backend="triton", **flags)

    def small(l=5, **more):
        return arguments(**dict(b=1, l=l, h=2, g=1, n=3, p=2, decay="scalar", delta=False) | more)

    def agree(tensors, actual_of, expected_of, tolerance=1e-12):
        all_close(actual_of(tensors), expected_of(tensors), tolerance)
        all_close(gradients(tensors, actual_of), gradients(tensors, expected_of), 10 * tolerance)

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("decay", [None, "scalar"])
    def test_chunks_states_and_directions(decay, reverse):
        """19 steps: a whole chunk and a part of one; with an initial state and the last one's gradient."""
        tensors = small(19, decay=decay, rows=1)
        agree(tensors, lambda t: run(t, reverse=reverse), lambda t: oracle(t, reverse=reverse))

    def test_groups():
        agree(small(3, b=2, h=4, g=2), run, oracle)

    def test_more_keys_and_values_than_a_tile():
        agree(small(18, h=1, n=70, p=66, rows=1), run, oracle)

    def test_shares_of_the_heads_of_a_group(monkeypatch):
        from ssm_kernels.chunked_scan import triton

        monkeypatch.setattr(triton.Call, "splits", 2)
        agree(small(3, h=3), run, oracle)

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("decay", [None, "scalar"])
    def test_gradients_of_a_part_of_the_steps_at_a_time(decay, reverse, monkeypatch):
        """Two parts of 8 in a chunk, values in parts too, two blocks of keys, several heads of a group."""
        from ssm_kernels.chunked_scan import triton

        monkeypatch.setattr(triton, "AT_A_TIME", 8)
        monkeypatch.setattr(triton, "MOST_KEYS", 16)
        tensors = small(19, h=2, g=1, n=17, p=9, decay=decay, rows=1)
        agree(tensors, lambda t: run(t, reverse=reverse), lambda t: oracle(t, reverse=reverse))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_packed(reverse):
        tensors, bounds = small(20, rows=4), torch.tensor([0, 0, 17, 18, 20])

        def separate(t):
            runs = [
                oracle({**cut(t, slice(a, b)), "initial_state": t["initial_state"][i : i + 1]}, reverse=reverse)
                for i, (a, b) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
            ]
            return torch.cat([o for o, _ in runs], 1), torch.cat([state for _, state in runs])

        agree(tensors, lambda t: run(t, cu_seqlens=bounds, reverse=reverse), separate)

    def test_padding_is_not_read():
        tensors, lengths = small(5, b=2), torch.tensor([3, 0])
        garbage = {k: v if v is None else v.clone() for k, v in tensors.items()}
        for name in ("q", "k", "v", "log_decay"):
            garbage[name][0, 3:], garbage[name][1] = float("nan"), float("nan")
        o, last = run(garbage, lengths=lengths)
        expected, state = oracle(cut(tensors, slice(0, 3), slice(0, 1)))
        all_close((o[:1, :3], last[:1]), (expected, state), 1e-12)
        assert (o[0, 3:] == 0).all()
        assert (o[1] == 0).all()
        assert (last[1] == 0).all()
        for grad in gradients(garbage, lambda t: run(t, lengths=lengths)).values():
            assert torch.isfinite(grad).all()
            assert (grad[1] == 0).all()

    @pytest.mark.parametrize("size", [30.0, 1e6, float("inf")])
    def test_strong_decay_costs_its_neighbours_no_digits(size):
        tensors = small(12, dtype=torch.float32)
        tensors["log_decay"][:, 5] = -size
        all_close(run(tensors), oracle(tensors), 1e-6)
        actual, expected = gradients(tensors, run), gradients(tensors, oracle)
        all_close(actual, expected, 1e-5)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
    def test_half_precision(dtype, tolerance):
        tensors = small(18, dtype=dtype)
        o, last = run(tensors)
        assert (o.dtype, last.dtype) == (dtype, torch.float32)
        expected, state = oracle(tensors)
        all_close((o.double(),), (expected,), tolerance)
        all_close((last,), (state,), 1e-5)
        actual, wanted = gradients(tensors, run), gradients(tensors, oracle)
        assert {g.dtype for g in actual.values()} == {dtype}
        all_close(actual, wanted, 2 * tolerance)

    def test_mixed_dtypes_and_strides():
        tensors = small(6)
        odd = {k: v if v is None else torch.stack([v, v], -1)[..., 0] for k, v in tensors.items()}
        all_close(run(odd), run(tensors), 1e-15)
        mixed = {**tensors, "q": tensors["q"].bfloat16(), "v": tensors["v"].float()}
        all_close(run(mixed), oracle(mixed), 1e-6)
        assert {k: g.dtype for k, g in gradients(mixed, run).items()} == {
            k: v.dtype for k, v in mixed.items() if v is not None
        }

    def test_empty():
        o, last = run(small(0, rows=1))
        assert (o.shape, last.shape) == ((1, 0, 2, 2), (1, 2, 3, 2))

    def test_opcheck():
        leaves = [t if t is None else t.requires_grad_() for t in small(3, rows=1, dtype=torch.float32).values()]
        kinds = ("test_schema", "test_autograd_registration", "test_faketensor")
        op = torch.ops.ssm_kernels.chunked_scan.default
        torch.library.opcheck(op, (*leaves, None, None, False, 16, "triton"), test_utils=kinds)
