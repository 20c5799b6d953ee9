"""Several scans over the same tokens in one call are the same scans one by one over permuted copies."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ssm_kernels import routed_scan, selective_scan
from ssm_kernels.selective_scan import op

# SSM_TEST_DEVICE=cuda runs the same cases on a GPU.
DEVICE = os.environ.get("SSM_TEST_DEVICE", "cpu")
BACKENDS = [name for name, probe in op.PROBES.items() if probe(DEVICE) is None]


def arguments(b=2, l=17, d=5, n=3, k=4, *, shared_x=True, shared_B=False, shared_C=False, optional=True,
              is_complex=False, seed=0, dtype=torch.float64):  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def projection(shared):
        shape = (b, l, n) if shared else (k, b, l, n)
        return torch.complex(normal(*shape), normal(*shape)) if is_complex else normal(*shape)

    A = -(0.2 + normal(k, d, n).abs())
    given = dict(
        x=normal(b, l, d) if shared_x else normal(k, b, l, d),
        dt=normal(k, b, l, d) * 0.5 - 1,
        A=torch.complex(A, normal(k, d, n)) if is_complex else A,
        B=projection(shared_B),
        C=projection(shared_C),
        D=normal(k, d) if optional else None,
        z=normal(b, l, d) if optional else None,
        dt_bias=0.3 * normal(k, d) if optional else None,
    )
    given = {name: t if t is None else (t if is_complex else t.to(dtype)).to(DEVICE) for name, t in given.items()}
    order = torch.stack([torch.randperm(l, generator=generator) for _ in range(k)]).to(DEVICE)
    return given, order


def run(tensors, order, backend, **more):
    if backend == "triton" and tensors["A"].is_complex():
        backend = "reference"  # what "auto" falls to: the kernels hold real states
    return routed_scan(**tensors, order=order, dt_softplus=True, backend=backend, **more)


def one_by_one(tensors, order, **more):
    """Each route over gathered copies by the plain operator, scattered back and summed."""
    total = 0
    for i, there in enumerate(order.long()):

        def steps(name, axis=None):
            t = tensors[name]
            if t is None:
                return None
            return (t if t.ndim == 3 else t[i])[:, there]

        own = {name: None if tensors[name] is None else tensors[name][i] for name in ("A", "D", "dt_bias")}
        y = selective_scan(**{name: steps(name) for name in ("x", "dt", "B", "C", "z")}, **own, dt_softplus=True,
                           backend="reference", **more)  # fmt: skip
        total = total + y[:, there.argsort()]
    return total


def gradients(tensors, run):
    leaves = {k: t if t is None else t.detach().clone().requires_grad_() for k, t in tensors.items()}
    y = run(leaves)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(DEVICE)
    names = [k for k, t in leaves.items() if t is not None]
    return y, dict(zip(names, torch.autograd.grad((y * weight).sum(), [leaves[k] for k in names]), strict=True))


def check(tensors, order, backend, tolerance, **more):
    y, actual = gradients(tensors, lambda t: run(t, order, backend, **more))
    expected_y, expected = gradients(tensors, lambda t: one_by_one(t, order, **more))
    torch.testing.assert_close(y, expected_y, rtol=tolerance, atol=tolerance)
    for name in actual:
        scale = max(1.0, expected[name].abs().max().item())
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=10 * tolerance * scale, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
class TestRoutes:
    @given(
        case=st.fixed_dictionaries(
            dict(
                b=st.integers(1, 3), l=st.sampled_from((1, 2, 16, 17, 33, 70)), d=st.sampled_from((1, 5, 16, 37)),
                n=st.sampled_from((1, 2, 3, 16)), k=st.sampled_from((1, 2, 4)), shared_x=st.booleans(),
                shared_B=st.booleans(), shared_C=st.booleans(), optional=st.booleans(), is_complex=st.booleans(),
                seed=st.integers(0, 5),
            )
        )
    )  # fmt: skip
    @settings(max_examples=25)
    def test_outputs_and_gradients(self, backend, case):
        check(*arguments(**case), backend, 1e-12)

    @pytest.mark.parametrize("is_complex", [False, True])
    def test_a_first_state_stands_for_its_multiples(self, backend, is_complex):
        tensors, order = arguments(l=5, k=2, is_complex=is_complex)
        tensors["A"] = tensors["A"][..., 0]
        check(tensors, order, backend, 1e-12)

    def test_steps_of_low_rank(self, backend):
        tensors, order = arguments(l=5, k=2)
        weight, low = torch.randn(2, 5, 3).double().to(DEVICE), torch.randn(2, 2, 5, 3).double().to(DEVICE)

        def both(t):
            y, grads = gradients(t, lambda t: run(t, order, backend))
            return [y, *grads.values()]

        def projected(t):
            return run({**t, "dt": t["dt"] @ t["dt_weight"][:, None].mT, "dt_weight": None}, order, "reference")

        low_rank = {**tensors, "dt": low, "dt_weight": weight}
        y, expected = gradients(low_rank, projected)
        for actual, wanted in zip(both(low_rank), [y, *expected.values()], strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)

    def test_float32(self, backend):
        check(*arguments(d=37, n=16, l=70, dtype=torch.float32), backend, 2e-5)

    @pytest.mark.parametrize("rule", ["zoh", "bilinear"])
    def test_rules(self, backend, rule):
        check(*arguments(), backend, 1e-12, rule=rule)

    def test_packed(self, backend):
        tensors, _ = arguments(b=1)
        bounds = torch.tensor([0, 6, 6, 17])
        ahead = torch.arange(17)
        back = torch.cat([torch.arange(a, b).flip(0) for a, b in ((0, 6), (6, 17))])
        order = torch.stack([ahead, back, back, ahead]).to(DEVICE)
        check(tensors, order, backend, 1e-12, cu_seqlens=bounds)

    def test_both_ways_is_a_scan_and_its_reverse(self, backend):
        tensors, _ = arguments(k=2)
        order = torch.stack([torch.arange(17), torch.arange(17).flip(0)]).to(DEVICE, torch.int32)
        ways = [
            selective_scan(
                tensors["x"], tensors["dt"][i], tensors["A"][i], tensors["B"][i], tensors["C"][i],
                D=tensors["D"][i], z=tensors["z"], dt_bias=tensors["dt_bias"][i], dt_softplus=True, reverse=bool(i),
            )
            for i in range(2)
        ]  # fmt: skip
        torch.testing.assert_close(run(tensors, order, backend), ways[0] + ways[1])

    def test_no_gradient_of_what_is_not_asked(self, backend):
        tensors, order = arguments()
        x = tensors.pop("x").requires_grad_()
        run({"x": x, **tensors}, order, backend).sum().backward()
        assert x.grad is not None

    @pytest.mark.parametrize("shared_x", [True, False])
    def test_gradcheck(self, backend, shared_x):
        tensors, order = arguments(b=1, l=3, d=2, n=2, k=2, shared_x=shared_x)
        leaves = tuple(t.requires_grad_() for t in tensors.values())

        def outputs(*values):
            return run(dict(zip(tensors, values, strict=True)), order, backend)

        assert torch.autograd.gradcheck(outputs, leaves)
        assert torch.autograd.gradgradcheck(outputs, leaves)

    def test_opcheck(self, backend):
        t, order = arguments(l=2, k=2, d=2, dtype=torch.float32)
        leaves = [*t.values(), torch.randn(2, 2, 2, 3).to(DEVICE)]
        rest = ([v.requires_grad_() for v in leaves], None, None, order, True, False, "euler", backend, True)
        arguments_ = (*rest[0], *rest[1:])
        torch.library.opcheck(torch.ops.ssm_kernels.selective_scan.default, arguments_)
        y, last, saved = torch.ops.ssm_kernels.selective_scan(*arguments_)
        cotangents = torch.randn_like(y), torch.randn_like(last), None, saved.detach()
        torch.library.opcheck(torch.ops.ssm_kernels.selective_scan_backward.default, (*cotangents, *arguments_))

    def test_compile_without_graph_break(self, backend):
        tensors, order = arguments(dtype=torch.float32)
        compiled = torch.compile(lambda t: run(t, order, backend), fullgraph=True, backend="aot_eager")
        y, actual = gradients(tensors, compiled)
        expected_y, expected = gradients(tensors, lambda t: run(t, order, backend))
        torch.testing.assert_close(y, expected_y)
        for name in actual:
            torch.testing.assert_close(actual[name], expected[name])

    def test_half_precision(self, backend):
        tensors, order = arguments(d=20, n=16, dtype=torch.bfloat16)
        y = run(tensors, order, backend)
        assert y.dtype == torch.bfloat16
        exact = one_by_one({k: t.double() for k, t in tensors.items()}, order)
        torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=2e-2 * exact.abs().max().item())

    def test_bad_input(self, backend):
        tensors, order = arguments()

        def message(text, order=order, **changes):
            with pytest.raises(ValueError, match=text):
                run({**tensors, **changes}, order, backend)

        message(r"order has shape \(4, 16\), expected \(k=4 from dt, l=17 from dt\)", order[:, 1:])
        message("order has dtype float32", order.float())
        message("order has no route", order[:0], dt=torch.zeros(0, 2, 17, 5), A=torch.zeros(0, 5, 3),
                B=torch.zeros(2, 17, 3), C=torch.zeros(2, 17, 3), D=None, dt_bias=None)  # fmt: skip
        message(r"A has shape \(4, 6, 3\), expected \(k=4 from dt, d=5 from dt, n\)", A=torch.zeros(4, 6, 3))
        message(r"x has shape \(2, 17, 6\)", x=torch.zeros(2, 17, 6))
        message("z is on meta, but x is on cpu", z=torch.zeros(2, 17, 5, device="meta"))
        twice = order.clone()
        twice[2, 3] = twice[2, 4]
        message(r"order\[2, 0:17\] is not a permutation of 0..16", twice)
        for wrong in (-1, 17, 2**40):
            outside = order.clone()
            outside[1, 0] = wrong
            message(r"order\[1, 0:17\] is not a permutation", outside)
        packed, _ = arguments(b=1)
        with pytest.raises(ValueError, match=r"order\[0, 0:6\] is not a permutation of 0..5"):
            run(packed, torch.arange(17).flip(0).expand(4, 17), backend, cu_seqlens=torch.tensor([0, 6, 17]))


@pytest.mark.skipif("native" not in BACKENDS, reason="no C compiler")
def test_threads_and_repetition():
    tensors, order = arguments(b=2, l=70, d=150, n=4, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            y, grads = gradients(tensors, lambda t: run(t, order, "native"))
            results.append([y, *grads.values()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    for other in results[2:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
