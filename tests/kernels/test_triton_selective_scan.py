"""The selective scan's Triton kernels in Triton's interpreter, on tiny shapes, against the float64 reference.

The interpreter takes milliseconds a step, so these are few and small; `SSM_TEST_DEVICE=cuda pytest
tests/kernels/test_selective_scan.py` runs all generated cases on the compiled kernels, and the slow test below the same
cases here.
"""

import os

import pytest
import torch
from ssm_kernels import selective_scan
from ssm_kernels.rows import Row
from ssm_kernels.selective_scan import reference, routed_scan

from tests.kernels.test_selective_scan import arguments, close, gradients, oracle, run

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def agree(tensors, actual_of, expected_of, tolerance=1e-11):
    """Outputs and gradients of two functions of the tensors."""
    for actual, expected in zip(actual_of(tensors), expected_of(tensors), strict=True):
        close(actual, expected, tolerance)
    actual, expected = gradients(tensors, actual_of), gradients(tensors, expected_of)
    for name in actual:
        close(actual[name], expected[name], 10 * tolerance)


if not INTERPRETED:

    def test_in_the_interpreter(in_interpreter):
        in_interpreter(__file__)

    @pytest.mark.slow
    def test_generated_cases_in_the_interpreter(in_interpreter):
        """The foundation's own tests of this operator, unchanged; hours of interpretation are cut to its small ones."""
        in_interpreter("tests/kernels/test_selective_scan.py", "-k", "triton and not compile and not bitwise")

    def test_refuses_cpu_tensors_and_complex_states():
        with pytest.raises(RuntimeError, match="work on GPU tensors, not on cpu"):
            run(arguments(), "triton")
        with pytest.raises(RuntimeError, match="hold real states, but A is complex"):
            selective_scan(**arguments(is_complex=True), backend="triton")


if INTERPRETED:

    @pytest.mark.parametrize("rule", reference.RULES)
    @pytest.mark.parametrize("reverse", [False, True])
    def test_rules_states_and_directions(rule, reverse):
        tensors = arguments(b=1, l=7, d=3, n=3, rows=1)
        flags = dict(rule=rule, reverse=reverse)
        agree(tensors, lambda t: run(t, "triton", **flags), lambda t: oracle(t, **flags))

    @pytest.mark.parametrize("constant_B", [False, True])
    @pytest.mark.parametrize("constant_C", [False, True])
    def test_constant_projections_without_options(constant_B, constant_C):
        tensors = arguments(b=1, l=5, d=2, n=1, constant_B=constant_B, constant_C=constant_C, optional=False)
        agree(tensors, lambda t: run(t, "triton"), oracle)

    def test_more_steps_than_a_boundary_and_odd_ones_left():
        tensors = arguments(b=1, l=19, d=2, n=2, rows=1)
        agree(tensors, lambda t: run(t, "triton"), oracle)

    def test_groups_over_several_blocks():
        tensors = arguments(b=1, l=2, d=66, n=2, groups=2)
        agree(tensors, lambda t: run(t, "triton"), oracle)

    @pytest.mark.parametrize("n", [16, 20, 64])
    def test_many_states(n):
        tensors = arguments(b=1, l=3, d=2, n=n, scale=3 / n)
        agree(tensors, lambda t: run(t, "triton"), oracle)

    @pytest.mark.parametrize(("sizes", "reverse"), [((0, 5, 1, 0), False), ((3, 4), True)])
    def test_packed(sizes, reverse):
        bounds = torch.tensor([0, *sizes]).cumsum(0)
        tensors = arguments(b=1, l=sum(sizes), d=2, n=2, rows=len(sizes))
        rows = [Row(0, int(a), size) for a, size in zip(bounds, sizes, strict=False)]
        agree(
            tensors,
            lambda t: run(t, "triton", cu_seqlens=bounds, reverse=reverse),
            lambda t: oracle(t, rows=rows, reverse=reverse),
        )

    def test_padding_on_the_right_is_not_read():
        tensors = arguments(b=2, l=6, d=2, n=2, rows=2)
        for name in ("x", "dt", "z", "B", "C"):
            tensors[name][0, 4:] = float("nan")
        rows = [Row(0, 0, 4), Row(1, 0, 0)]
        tensors["x"][1], lengths = float("nan"), torch.tensor([4, 0])
        y, last = run(tensors, "triton", lengths=lengths)
        expected, expected_last = oracle(tensors, rows=rows)
        close(y, expected, 1e-11)
        close(last, expected_last, 1e-11)
        assert all(
            torch.isfinite(g).all() for g in gradients(tensors, lambda t: run(t, "triton", lengths=lengths)).values()
        )

    @pytest.mark.parametrize("rule", ["euler", "bilinear"])
    def test_long_rows_are_cut(monkeypatch, rule):
        from ssm_kernels.selective_scan import triton_long

        monkeypatch.setattr(triton_long, "steps_of", lambda *_: 16)
        tensors = arguments(b=1, l=18, d=2, n=2, rows=1)
        agree(
            tensors,
            lambda t: run(t, "triton", rule=rule, reverse=rule == "euler"),
            lambda t: oracle(t, rule=rule, reverse=rule == "euler"),
        )

    def test_packed_rows_are_cut(monkeypatch):
        from ssm_kernels.selective_scan import triton_long

        monkeypatch.setattr(triton_long, "steps_of", lambda *_: 16)
        tensors = arguments(b=1, l=19, d=2, n=2, rows=3)
        rows, bounds = [Row(0, 0, 17), Row(0, 17, 0), Row(0, 17, 2)], torch.tensor([0, 17, 17, 19])
        agree(tensors, lambda t: run(t, "triton", cu_seqlens=bounds), lambda t: oracle(t, rows=rows))

    @pytest.mark.parametrize("shared", [False, True])
    def test_routes(shared):
        k, b, l, d, n = 2, 1, 5, 2, 2
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        own = () if shared else (k,)
        tensors = dict(
            x=normal(*own, b, l, d), dt=normal(k, b, l, d) - 1, A=-normal(k, d, n).exp(), B=normal(*own, b, l, n),
            C=normal(k, b, l, n), D=normal(k, d), z=normal(b, l, d), dt_bias=normal(k, d),
        )  # fmt: skip
        order = torch.stack([torch.randperm(l, generator=generator) for _ in range(k)])

        def routed(backend):
            return lambda t: (routed_scan(**t, order=order, dt_softplus=True, backend=backend),)

        agree(tensors, routed("triton"), routed("reference"))

    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
    )
    def test_dtypes(dtype, tolerance):
        tensors = arguments(b=1, l=6, d=3, n=4, rows=1, dtype=dtype)
        y, last = run(tensors, "triton")
        assert (y.dtype, last.dtype) == (dtype, torch.float32)
        expected, expected_last = oracle(tensors)
        close(y, expected, tolerance)
        close(last, expected_last, 1e-5)
        actual, wanted = gradients(tensors, lambda t: run(t, "triton")), gradients(tensors, oracle)
        for name in actual:
            assert actual[name].dtype == dtype
            close(actual[name], wanted[name], 2 * tolerance)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_one_exponential_for_all_states(reverse):
        """A of the first state: decays are powers, in forward; with a padded state."""
        tensors = arguments(b=1, l=6, d=3, n=3, rows=1)
        tensors["A"] = tensors["A"][:, 0]

        def spread(t):
            return oracle({**t, "A": t["A"][:, None] * torch.arange(1, 4).double()}, reverse=reverse)

        agree(tensors, lambda t: run(t, "triton", reverse=reverse), spread)

    @pytest.mark.parametrize("rank", [3, 33])
    def test_steps_of_low_rank(rank):
        """Of a rank that the kernel projects by itself, and of one beyond."""
        tensors = arguments(b=1, l=5, d=3, n=2, rows=1)
        generator = torch.Generator().manual_seed(7)
        low, weight = (torch.randn(*size, generator=generator).double() for size in ((1, 5, rank), (3, rank)))
        tensors |= dict(dt=low, dt_weight=weight / rank)

        def projected(t):
            rest = {k: v for k, v in t.items() if k != "dt_weight"}
            return oracle({**rest, "dt": t["dt"] @ t["dt_weight"].T})

        agree(tensors, lambda t: run(t, "triton"), projected)

    def test_small_steps_keep_their_digits():
        """softplus of -9 is 1.2e-4: log of a rounded sum would be wrong in the fourth digit of it."""
        tensors = arguments(b=1, l=3, d=2, n=2, dtype=torch.float32, optional=False)
        tensors["dt"] = torch.full_like(tensors["dt"], -9.0)
        y, _ = run(tensors, "triton")
        torch.testing.assert_close(y.double(), oracle(tensors)[0], rtol=2e-6, atol=0)

    def test_large_decay_forgets():
        tensors = arguments(b=1, l=4, d=2, n=2, scale=1e6, optional=False, dtype=torch.float32)
        tensors["dt"] = tensors["dt"].abs() + 1
        close(run(tensors, "triton")[0], oracle(tensors)[0], 1e-5)
        assert all(torch.isfinite(g).all() for g in gradients(tensors, lambda t: run(t, "triton")).values())

    def test_strides_and_empty_problems():
        tensors = arguments(b=1, l=4, d=2, n=2)
        wide = {k: torch.stack([v, v], -1)[..., 0] for k, v in tensors.items() if v is not None}
        close(run({**tensors, **wide}, "triton")[0], run(tensors, "triton")[0], 1e-15)
        y, last = run(arguments(b=1, l=0, d=2, n=2, rows=1), "triton")
        assert (y.shape, last.shape) == ((1, 0, 2), (1, 2, 2))

    def test_opcheck():
        tensors = arguments(b=1, l=3, d=2, n=2, rows=1, dtype=torch.float32)
        leaves = [v.requires_grad_() for v in tensors.values()]
        rest = (None, None, None, True, False, "euler", "triton", True)
        kinds = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.ssm_kernels.selective_scan.default, (*leaves, *rest), test_utils=kinds)

    def test_too_large_for_the_indices():
        x = torch.empty(1, 1, 2, device="meta").expand(1, 2**31, 2)
        from ssm_kernels.selective_scan.triton import Problem

        with pytest.raises(ValueError, match="beyond the Triton kernels' indices"):
            Problem.of(x, x, torch.ones(2, 1), x, x, None, None, None, None, None, True, False, "euler")
