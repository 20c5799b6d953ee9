"""The selective scan on every backend that this machine has, against the float64 reference."""

import os
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ssm_kernels import selective_scan
from ssm_kernels.selective_scan import native, op, reference
from torch.utils.checkpoint import checkpoint

# SSM_TEST_DEVICE=cuda runs the same cases on a GPU.
DEVICE = os.environ.get("SSM_TEST_DEVICE", "cpu")
BACKENDS = [name for name, probe in op.PROBES.items() if probe(DEVICE) is None]
DIFFERENTIABLE = op.TENSORS
LENGTHS = (0, 1, 2, 15, 16, 17, 31, 32, 33, 197)


def arguments(b=2, l=17, d=5, n=3, *, seed=0, dtype=torch.float64, is_complex=False, groups=None, constant_B=False,
              constant_C=False, optional=True, rows=None, scale=1.0):  # fmt: skip
    """Well-scaled random arguments; `rows` is the batch size of the initial state, None for no initial state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def projection(constant):
        shape = (d, n) if constant else (b, l, n) if groups is None else (b, l, groups, n)
        return torch.complex(normal(*shape), normal(*shape)) if is_complex else normal(*shape)

    A = -scale * (0.2 + torch.rand(d, n, generator=generator, dtype=torch.float64)) * torch.arange(1, n + 1)
    state = None if rows is None else normal(rows, d, n)
    given = dict(
        x=normal(b, l, d),
        dt=normal(b, l, d) * 0.5 - 1,
        A=torch.complex(A, 3 * normal(d, n)) if is_complex else A,
        B=projection(constant_B),
        C=projection(constant_C),
        D=normal(d) if optional else None,
        z=normal(b, l, d) if optional else None,
        dt_bias=0.3 * normal(d) if optional else None,
        initial_state=torch.complex(state, normal(rows, d, n)) if is_complex and rows is not None else state,
    )
    narrow = {torch.float32: torch.complex64, torch.float64: torch.complex128}.get(dtype, torch.complex64)
    return {k: v if v is None else v.to(DEVICE, narrow if v.is_complex() else dtype) for k, v in given.items()}


def run(tensors, backend, **flags):
    if backend == "triton" and tensors["A"].is_complex():
        backend = "reference"  # what "auto" falls to: the kernels hold real states
    return selective_scan(**tensors, dt_softplus=True, return_last_state=True, backend=backend, **flags)


def oracle(tensors, rows=None, reverse=False, rule="euler"):
    wide = {
        k: v if v is None else v.to(torch.complex128 if v.is_complex() else torch.float64) for k, v in tensors.items()
    }
    return reference.selective_scan(**wide, rows=rows, dt_softplus=True, reverse=reverse, rule=rule)


def gradients(tensors, outputs_of, seed=1):
    """Gradients of a random linear function of the outputs, by name."""
    leaves = {k: v if v is None else v.detach().clone().requires_grad_() for k, v in tensors.items()}
    outputs = outputs_of(leaves)
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (
            t.abs() ** 2
            if t.is_complex()
            else t * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device)
        ).sum()
        for t in outputs
    )
    names = [k for k, v in leaves.items() if v is not None]
    return dict(zip(names, torch.autograd.grad(loss, [leaves[k] for k in names], materialize_grads=True), strict=True))


def close(actual, expected, tolerance):
    """Error relative to the largest entry, for sums of many terms."""
    assert actual.shape == expected.shape
    if expected.numel():
        assert torch.isfinite(torch.view_as_real(actual) if actual.is_complex() else actual).all()
        error = (actual.to(expected.dtype) - expected).abs().max().item()
        assert error <= tolerance * max(1.0, expected.abs().max().item()), f"error {error:.3g}"


cases = st.fixed_dictionaries(
    dict(
        b=st.integers(1, 3),
        l=st.sampled_from(LENGTHS),
        d=st.sampled_from((1, 3, 16, 37, 64)),
        n=st.sampled_from((1, 2, 3, 16, 20)),
        seed=st.integers(0, 5),
        is_complex=st.booleans(),
        constant_B=st.booleans(),
        constant_C=st.booleans(),
        optional=st.booleans(),
        with_state=st.booleans(),
        reverse=st.booleans(),
        rule=st.sampled_from(reference.RULES),
    )
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
class TestAgainstOracle:
    @given(case=cases)
    @settings(max_examples=40)
    def test_outputs_and_gradients(self, backend, dtype, tolerance, case):
        case = dict(case)
        flags = dict(reverse=case.pop("reverse"), rule=case.pop("rule"))
        rows = case["b"] if case.pop("with_state") else None
        tensors = arguments(**case, rows=rows, dtype=dtype)
        for actual, expected in zip(run(tensors, backend, **flags), oracle(tensors, **flags), strict=True):
            close(actual, expected, tolerance)
        actual = gradients(tensors, lambda t: run(t, backend, **flags))
        expected = gradients(tensors, lambda t: oracle(t, **flags))
        for name in actual:
            close(actual[name], expected[name], 10 * tolerance)

    @pytest.mark.parametrize("groups", [1, 2, 6])
    @pytest.mark.parametrize("d", [6, 72])
    def test_groups(self, backend, dtype, tolerance, groups, d):
        tensors = arguments(d=d, groups=groups, dtype=dtype)
        spread = {k: v[:, :, 0] for k, v in tensors.items() if k in "BC"} if groups == 1 else {}
        close(run(tensors, backend)[0], oracle({**tensors, **spread})[0], tolerance)
        actual, expected = gradients(tensors, lambda t: run(t, backend)), gradients(tensors, oracle)
        for name in actual:
            close(actual[name], expected[name], 10 * tolerance)

    @pytest.mark.parametrize("n", [1, 3, 16, 64, 100])
    def test_state_sizes(self, backend, dtype, tolerance, n):
        tensors = arguments(n=n, d=20, scale=3 / n, dtype=dtype)
        close(run(tensors, backend)[0], oracle(tensors)[0], tolerance)

    @pytest.mark.parametrize("l", [1, 3, 16, 37])
    @pytest.mark.parametrize("gated", [False, True])
    def test_steps_as_they_are(self, backend, dtype, tolerance, l, gated):
        """Without softplus: the step of every token, and the gradient of each."""
        tensors = arguments(l=l, d=21, dtype=dtype) | {"dt_bias": None}
        tensors = {**tensors, "dt": tensors["dt"].abs(), "z": tensors["z"] if gated else None}

        def wide(t):
            return reference.selective_scan(
                **{k: None if v is None else v.double() for k, v in t.items()},
                rows=None,
                dt_softplus=False,
                reverse=False,
                rule="euler",
            )

        def narrow(t):
            return selective_scan(**t, return_last_state=True, backend=backend)

        close(narrow(tensors)[0], wide(tensors)[0], tolerance)
        actual, expected = gradients(tensors, narrow), gradients(tensors, wide)
        for name in actual:
            close(actual[name], expected[name], 10 * tolerance)

    def test_long(self, backend, dtype, tolerance):
        tensors = arguments(b=1, l=1025, d=9, n=4, scale=0.01, dtype=dtype)
        close(run(tensors, backend)[0], oracle(tensors)[0], tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
class TestProperties:
    @given(l=st.sampled_from(LENGTHS), cut=st.integers(0, 200), reverse=st.booleans(), seed=st.integers(0, 9))
    def test_split_anywhere_is_whole(self, backend, l, cut, reverse, seed):
        cut = min(cut, l)
        tensors = arguments(l=l, rows=2, seed=seed)
        whole, last = run(tensors, backend, reverse=reverse)
        parts = [
            {k: v[:, s] if v is not None and v.ndim == 3 and k != "initial_state" else v for k, v in tensors.items()}
            for s in (slice(0, cut), slice(cut, l))
        ]
        pieces, state = [], tensors["initial_state"]
        for part in parts[::-1] if reverse else parts:
            y, state = run({**part, "initial_state": state}, backend, reverse=reverse)
            pieces.append(y)
        close(torch.cat(pieces[::-1] if reverse else pieces, 1), whole, 1e-12)
        close(state, last, 1e-12)

    @given(l=st.sampled_from((1, 2, 17)), is_complex=st.booleans(), rule=st.sampled_from(reference.RULES))
    def test_step_by_step_is_the_scan(self, backend, l, is_complex, rule):
        tensors = arguments(l=l, rows=2, is_complex=is_complex)
        whole, last = run(tensors, backend, rule=rule)
        state = tensors["initial_state"]
        for t in range(l):
            step = {
                k: v[:, t : t + 1] if v is not None and k in ("x", "dt", "z", "B", "C") else v
                for k, v in tensors.items()
            }
            y, state = run({**step, "initial_state": state}, backend, rule=rule)
            close(y[:, 0], whole[:, t], 1e-12)
        close(state, last, 1e-12)

    @given(l=st.sampled_from(LENGTHS))
    def test_reverse_is_flip_of_scan_of_flip(self, backend, l):
        tensors = arguments(l=l, rows=2)
        flipped = {k: v.flip(1) if v is not None and k in ("x", "dt", "z", "B", "C") else v for k, v in tensors.items()}
        y, last = run(tensors, backend, reverse=True)
        y2, last2 = run(flipped, backend)
        close(y, y2.flip(1), 1e-13)
        close(last, last2, 1e-13)

    @given(
        sizes=st.lists(st.sampled_from((0, 1, 2, 16, 17, 40)), min_size=1, max_size=5),
        reverse=st.booleans(),
        is_complex=st.booleans(),
        wide=st.booleans(),
    )
    @example(sizes=[0, 1, 0, 17, 0], reverse=False, is_complex=False, wide=True)
    def test_packed_is_separate(self, backend, sizes, reverse, is_complex, wide):
        bounds = torch.tensor([0, *sizes]).cumsum(0)
        tensors = arguments(b=1, l=sum(sizes), rows=len(sizes), is_complex=is_complex)

        def packed(t):
            return run(t, backend, cu_seqlens=bounds if wide else bounds.int(), reverse=reverse)

        def separate(t):
            ys, states = [], []
            for i, (a, b) in enumerate(pairwise(bounds)):
                part = {k: v[:, a:b] if v is not None and k in ("x", "dt", "z", "B", "C") else v for k, v in t.items()}
                y, state = run({**part, "initial_state": t["initial_state"][i : i + 1]}, backend, reverse=reverse)
                ys.append(y), states.append(state)
            return torch.cat(ys, 1), torch.cat(states)

        for actual, expected in zip(packed(tensors), separate(tensors), strict=True):
            close(actual, expected, 1e-13)
        actual, expected = gradients(tensors, packed), gradients(tensors, separate)
        for name in actual:
            close(actual[name], expected[name], 1e-12)

    @given(lengths=st.lists(st.integers(0, 33), min_size=2, max_size=2), reverse=st.booleans())
    def test_padding_leaves_the_last_state_alone(self, backend, lengths, reverse):
        tensors = arguments(l=33, rows=2)
        garbage = {k: v.clone() if v is not None else v for k, v in tensors.items()}
        for i, m in enumerate(lengths):
            for name in ("x", "dt", "z", "B", "C"):
                garbage[name][i, m:] = float("nan")
        y, last = run(garbage, backend, lengths=torch.tensor(lengths), reverse=reverse)
        for i, m in enumerate(lengths):
            row = {
                k: v[i : i + 1, :m] if v is not None and k in ("x", "dt", "z", "B", "C") else v
                for k, v in tensors.items()
            }
            y_row, last_row = run(
                {**row, "initial_state": tensors["initial_state"][i : i + 1]}, backend, reverse=reverse
            )
            close(y[i : i + 1, :m], y_row, 1e-13)
            close(last[i : i + 1], last_row, 1e-13)
            assert (y[i, m:] == 0).all()

    @given(extra=st.integers(1, 5), is_complex=st.booleans())
    def test_zero_states_change_nothing(self, backend, extra, is_complex):
        tensors = arguments(rows=2, is_complex=is_complex)
        padded = {
            k: torch.nn.functional.pad(v, (0, extra)) if v is not None and k in ("A", "B", "C", "initial_state") else v
            for k, v in tensors.items()
        }
        close(run(padded, backend)[0], run(tensors, backend)[0], 1e-13)

    @pytest.mark.parametrize("is_complex", [False, True])
    @pytest.mark.parametrize("rule", reference.RULES)
    def test_a_first_state_stands_for_its_multiples(self, backend, rule, is_complex):
        tensors = arguments(n=3, rows=2, is_complex=is_complex)
        tensors["A"] = tensors["A"][:, 0]
        multiples = torch.arange(1, 4, device=DEVICE).double()

        def spread(t):
            return oracle({**t, "A": t["A"][:, None] * multiples}, rule=rule)

        for actual, expected in zip(run(tensors, backend, rule=rule), spread(tensors), strict=True):
            close(actual, expected, 1e-12)
        actual, expected = gradients(tensors, lambda t: run(t, backend, rule=rule)), gradients(tensors, spread)
        for name in actual:
            close(actual[name], expected[name], 1e-11)

    @pytest.mark.parametrize("bias", [False, True])
    def test_steps_of_low_rank(self, backend, bias):
        tensors = arguments(d=5, rows=2)
        generator = torch.Generator().manual_seed(7)
        weight, low = (torch.randn(*size, generator=generator).double().to(DEVICE) for size in ((5, 3), (2, 17, 3)))
        tensors |= dict(dt=low, dt_weight=weight, dt_bias=tensors["dt_bias"] if bias else None)

        def projected(t):
            rest = {k: v for k, v in t.items() if k != "dt_weight"}
            return oracle({**rest, "dt": t["dt"] @ t["dt_weight"].T}, reverse=True)

        for actual, expected in zip(run(tensors, backend, reverse=True), projected(tensors), strict=True):
            close(actual, expected, 1e-12)
        single = {k: v if v is None else v.float() for k, v in tensors.items()}
        with torch.autocast(DEVICE, torch.bfloat16):  # the projection keeps its digits
            narrow = run(single, backend, reverse=True)[0]
        close(narrow, projected(single)[0], 1e-5)
        actual = gradients(tensors, lambda t: run(t, backend, reverse=True))
        for name, expected in gradients(tensors, projected).items():
            close(actual[name], expected, 1e-11)

    def test_zero_step_keeps_the_state(self, backend):
        tensors = arguments(rows=2)
        del tensors["dt_bias"]
        for rule in reference.RULES:
            still = {**tensors, "dt": torch.zeros_like(tensors["dt"])}
            _, last = selective_scan(**still, return_last_state=True, rule=rule, backend=backend)
            close(last, tensors["initial_state"], 1e-15)

    @given(seed=st.integers(0, 3))
    def test_non_contiguous_inputs(self, backend, seed):
        tensors = arguments(d=6, rows=2, seed=seed)
        odd = {}
        for name, t in tensors.items():
            if t is None:
                odd[name] = None
            elif t.ndim >= 2:  # every second entry of a wider tensor, and batch stored last
                odd[name] = torch.stack([t, t], -1)[..., 0].transpose(0, -1).contiguous().transpose(0, -1)
            else:
                odd[name] = torch.stack([t, t], -1)[..., 0]
        close(run(odd, backend)[0], run(tensors, backend)[0], 1e-15)
        actual, expected = gradients(odd, lambda t: run(t, backend)), gradients(tensors, lambda t: run(t, backend))
        for name in actual:
            close(actual[name], expected[name], 1e-13)

    def test_slices_of_a_projection(self, backend):
        """x and z are usually halves of one projection: row strides, contiguous channels."""
        tensors = arguments(d=6)
        both = torch.cat([tensors["x"], tensors["z"]], -1)
        halves = dict(zip(("x", "z"), both.chunk(2, -1), strict=True))
        close(run({**tensors, **halves}, backend)[0], run(tensors, backend)[0], 1e-15)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("size", [30.0, 1e3, 1e6])
    def test_large_decay_forgets(self, backend, dtype, size):
        """|dt A| far beyond the range of exp: the state is the last input, nothing is inf or nan."""
        tensors = arguments(l=20, d=20, dtype=dtype, scale=size, optional=False)
        tensors["dt"] = tensors["dt"].abs() + 1
        y, last = run(tensors, backend)
        close(y, oracle(tensors)[0], 1e-5)
        for name, g in gradients(tensors, lambda t: run(t, backend)).items():
            assert torch.isfinite(g).all(), name

    def test_nan_stays_visible(self, backend):
        for name in ("x", "dt", "B"):
            tensors = arguments(l=20, d=20, dtype=torch.float32, optional=False)
            tensors[name][1, 10] = float("nan")
            y, _ = run(tensors, backend)
            assert torch.isfinite(y[0]).all()
            assert torch.isfinite(y[1, :10]).all()
            assert y[1, 10].isnan().all()

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
    def test_half_precision(self, backend, dtype, tolerance):
        """State arithmetic stays in float32: the only errors are those of rounding inputs and output."""
        tensors = arguments(l=197, d=20, n=16, scale=0.1, dtype=dtype)
        y, last = run(tensors, backend)
        assert y.dtype == dtype
        assert last.dtype == torch.float32
        expected, expected_last = oracle(tensors)
        close(y.double(), expected, tolerance)
        close(last, expected_last, 1e-5)

    def test_runs_are_bitwise_equal(self, backend):
        tensors = arguments(b=3, l=197, d=70, n=16, rows=3, dtype=torch.float32)
        first = [*run(tensors, backend), *gradients(tensors, lambda t: run(t, backend)).values()]
        for _ in range(3):
            again = [*run(tensors, backend), *gradients(tensors, lambda t: run(t, backend)).values()]
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    @pytest.mark.parametrize("is_complex", [False, True])
    def test_gradcheck(self, backend, is_complex):
        tensors = arguments(b=1, l=4, d=2, n=2, rows=1, is_complex=is_complex)
        leaves = tuple(v.requires_grad_() for v in tensors.values())

        def outputs(*values):
            return run(dict(zip(tensors, values, strict=True)), backend)

        assert torch.autograd.gradcheck(outputs, leaves)
        assert torch.autograd.gradgradcheck(outputs, leaves)

    def test_gradient_of_the_last_state_alone(self, backend):
        tensors = arguments(rows=2)
        actual = gradients(tensors, lambda t: run(t, backend)[1:])
        expected = gradients(tensors, lambda t: oracle(t)[1:])
        for name in ("x", "dt", "A", "B", "initial_state"):
            close(actual[name], expected[name], 1e-12)

    def test_opcheck(self, backend):
        tensors = arguments(l=3, rows=2, dtype=torch.float32)
        leaves = [v.requires_grad_() for v in tensors.values()]
        arguments_ = (*leaves, None, None, None, True, False, "euler", backend)
        torch.library.opcheck(torch.ops.ssm_kernels.selective_scan.default, (*arguments_, True))
        y, last, boundaries = torch.ops.ssm_kernels.selective_scan(*arguments_, True)
        given = torch.randn_like(y), torch.randn_like(last), None, boundaries.detach()
        torch.library.opcheck(torch.ops.ssm_kernels.selective_scan_backward.default, (*given, *arguments_, True))

    def test_opcheck_packed(self, backend):
        tensors = arguments(b=1, l=9, rows=2, dtype=torch.float32)
        leaves = [v.requires_grad_() for v in tensors.values()]
        rest = (torch.tensor([0, 4, 9]), None, None, True, False, "euler", backend, True)
        torch.library.opcheck(torch.ops.ssm_kernels.selective_scan.default, (*leaves, *rest))

    def test_activation_checkpointing(self, backend):
        tensors = arguments(rows=2)
        actual = gradients(tensors, lambda t: checkpoint(lambda: run(t, backend), use_reentrant=False))
        expected = gradients(tensors, lambda t: run(t, backend))
        assert all(torch.equal(actual[name], expected[name]) for name in actual)

    @pytest.mark.parametrize("is_complex", [False, True])
    def test_compile_without_graph_break(self, backend, is_complex):
        tensors = arguments(rows=2, dtype=torch.float32, is_complex=is_complex)
        compiled = torch.compile(lambda t: run(t, backend), fullgraph=True, backend="aot_eager")
        for actual, expected in zip(compiled(tensors), run(tensors, backend), strict=True):
            close(actual, expected, 1e-6)
        actual, expected = gradients(tensors, compiled), gradients(tensors, lambda t: run(t, backend))
        for name in actual:
            close(actual[name], expected[name], 1e-6)


@pytest.mark.skipif("native" not in BACKENDS, reason="no C compiler")
class TestNative:
    def test_channels_beyond_65535(self):
        tensors = arguments(b=1, l=3, d=70_000, n=1, dtype=torch.float32)
        close(run(tensors, "native")[0], oracle(tensors)[0], 1e-5)

    def test_threads_do_not_change_the_output(self):
        tensors = arguments(b=1, l=100, d=200, n=4, dtype=torch.float32)
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append([*run(tensors, "native"), *gradients(tensors, lambda t: run(t, "native")).values()])
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                close(a, b, 1e-5)

    def test_memory_has_no_state_per_step(self):
        """What forward keeps for backward is at most one float for every d_state of the (b, l, d, n) states."""
        tensors = arguments(b=1, l=512, d=64, n=16, dtype=torch.float32)
        x = tensors["x"].requires_grad_()
        _, _, boundaries = torch.ops.ssm_kernels.selective_scan(
            x, *list(tensors.values())[1:], None, None, None, True, False, "euler", "native", True
        )
        assert boundaries.numel() <= x.numel() * 16 / native.library(False, False).scan_chunk() * 1.1
