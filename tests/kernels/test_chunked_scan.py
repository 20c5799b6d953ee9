"""The matrix-valued scan, in chunks and as a loop, against the float64 loop."""

import os
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ssm_kernels import chunked_scan
from ssm_kernels.chunked_scan import op, reference

# SSM_TEST_DEVICE=cuda runs the same cases on a GPU.
DEVICE = os.environ.get("SSM_TEST_DEVICE", "cpu")
BACKENDS = [name for name, probe in op.PROBES.items() if probe(DEVICE) is None]
LENGTHS = (0, 1, 2, 3, 15, 16, 17, 33, 70)
STEPS = ("q", "k", "v", "log_decay", "beta")
KINDS = [(decay, delta) for decay in (None, "scalar", "vector") for delta in (False, True)]


def arguments(b=2, l=17, h=4, g=2, n=3, p=2, *, decay="vector", delta=True, rows=None, strength=0.3, seed=0,
              dtype=torch.float64):  # fmt: skip
    """Unit keys, and decays of about exp(-strength); `rows` is the batch size of the initial state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = {None: None, "scalar": (b, l, h), "vector": (b, l, h, n)}[decay]
    made = dict(
        q=normal(b, l, g, n),
        k=F.normalize(normal(b, l, g, n), dim=-1),
        v=normal(b, l, h, p),
        log_decay=None if shape is None else -strength * normal(*shape).abs(),
        beta=2 * torch.rand(b, l, h, generator=generator, dtype=torch.float64) if delta else None,
        initial_state=None if rows is None else normal(rows, h, n, p),
    )
    return {name: t if t is None else t.to(DEVICE, dtype) for name, t in made.items()}


def run(tensors, backend, chunk=8, **flags):
    if backend == "triton" and op._probes(DEVICE, tensors["log_decay"], tensors["beta"])["triton"](DEVICE):
        backend = "native"  # what "auto" falls to: the kernels have one decay a head and no delta rule
    return chunked_scan(**tensors, return_last_state=True, chunk=chunk, backend=backend, **flags)


def oracle(tensors, reverse=False):
    wide = {name: t if t is None else t.double() for name, t in tensors.items()}
    wide["initial_state"] = wide.get("initial_state")
    return reference.chunked_scan(**wide, rows=None, reverse=reverse)


def gradients(tensors, outputs_of, seed=1):
    """Gradients of a random linear function of the outputs, by name."""
    leaves = {name: t if t is None else t.detach().clone().requires_grad_() for name, t in tensors.items()}
    generator = torch.Generator().manual_seed(seed)
    outputs = outputs_of(leaves)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(DEVICE)).sum() for t in outputs)
    names = [name for name, t in leaves.items() if t is not None]
    loss = loss + sum(0 * leaves[name].sum() for name in names)  # of no steps, the oracle has no graph
    grads = torch.autograd.grad(loss, [leaves[name] for name in names])
    return dict(zip(names, grads, strict=True))


def close(actual, expected, tolerance):
    """Error relative to the largest entry, for sums of many terms."""
    assert actual.shape == expected.shape
    if expected.numel():
        assert torch.isfinite(actual).all()
        error = (actual.to(expected.dtype) - expected).abs().max().item()
        assert error <= tolerance * max(1.0, expected.abs().max().item()), f"error {error:.3g}"


def all_close(actual, expected, tolerance):
    if isinstance(actual, dict):
        assert actual.keys() == expected.keys()
        actual, expected = actual.values(), expected.values()
    for a, b in zip(actual, expected, strict=True):
        close(a, b, tolerance)


def cut(tensors, steps, item=slice(None)):
    """The same arguments at some steps of some items."""
    return {name: t[item, steps] if t is not None and name in STEPS else t for name, t in tensors.items()}


cases = st.fixed_dictionaries(
    dict(
        b=st.integers(1, 2),
        l=st.sampled_from(LENGTHS),
        heads=st.sampled_from(((1, 1), (2, 1), (3, 3), (4, 2))),
        n=st.sampled_from((1, 3, 8)),
        p=st.sampled_from((1, 2, 5)),
        decay=st.sampled_from((None, "scalar", "vector")),
        delta=st.booleans(),
        strength=st.sampled_from((0.01, 0.3, 30.0)),
        with_state=st.booleans(),
        reverse=st.booleans(),
        chunk=st.sampled_from((1, 2, 8, 64)),
        seed=st.integers(0, 5),
    )
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@given(case=cases)
@settings(max_examples=60)
def test_outputs_and_gradients(backend, dtype, tolerance, case):
    case = dict(case)
    flags = dict(reverse=case.pop("reverse"))
    chunk, (h, g) = case.pop("chunk"), case.pop("heads")
    rows = case["b"] if case.pop("with_state") else None
    tensors = arguments(**case, h=h, g=g, rows=rows, dtype=dtype)
    all_close(run(tensors, backend, chunk, **flags), oracle(tensors, **flags), tolerance)
    actual = gradients(tensors, lambda t: run(t, backend, chunk, **flags))
    all_close(actual, gradients(tensors, lambda t: oracle(t, **flags)), 10 * tolerance)


@pytest.mark.parametrize(("decay", "delta"), KINDS)
def test_long_sequences_stay_accurate(decay, delta):
    tensors = arguments(b=1, l=1025, h=2, g=1, n=16, p=8, decay=decay, delta=delta, strength=0.01, dtype=torch.float32)
    all_close(run(tensors, "native", 64), oracle(tensors), 2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("decay", "delta"), KINDS)
class TestProperties:
    @given(l=st.sampled_from(LENGTHS), at=st.integers(0, 70), reverse=st.booleans())
    @settings(max_examples=15)
    def test_split_anywhere_is_whole(self, backend, decay, delta, l, at, reverse):
        at = min(at, l)
        tensors = arguments(l=l, decay=decay, delta=delta, rows=2)
        whole, last = run(tensors, backend, reverse=reverse)
        parts = [cut(tensors, slice(0, at)), cut(tensors, slice(at, l))]
        pieces, state = [], tensors["initial_state"]
        for part in parts[::-1] if reverse else parts:
            o, state = run({**part, "initial_state": state}, backend, reverse=reverse)
            pieces.append(o)
        close(torch.cat(pieces[::-1] if reverse else pieces, 1), whole, 1e-12)
        close(state, last, 1e-12)

    def test_step_by_step_is_the_scan(self, backend, decay, delta):
        tensors = arguments(l=17, decay=decay, delta=delta, rows=2)
        whole, last = run(tensors, backend)
        state = tensors["initial_state"]
        for t in range(17):
            o, state = run({**cut(tensors, slice(t, t + 1)), "initial_state": state}, backend)
            close(o[:, 0], whole[:, t], 1e-12)
        close(state, last, 1e-12)

    @given(l=st.sampled_from(LENGTHS))
    @settings(max_examples=6)
    def test_reverse_is_flip_of_scan_of_flip(self, backend, decay, delta, l):
        tensors = arguments(l=l, decay=decay, delta=delta, rows=2)
        flipped = {name: t.flip(1) if t is not None and name in STEPS else t for name, t in tensors.items()}
        o, last = run(flipped, backend)
        all_close(run(tensors, backend, reverse=True), (o.flip(1), last), 1e-13)

    @given(
        # 8 is a chunk: bounds on it and beside it, at the first and at the last step, and next to each other.
        sizes=st.lists(st.sampled_from((0, 1, 1, 2, 7, 8, 9, 30)), min_size=1, max_size=6),
        reverse=st.booleans(),
        wide=st.booleans(),
    )
    @example(sizes=[0, 1, 0, 17, 0], reverse=False, wide=True)
    @example(sizes=[0, 0], reverse=True, wide=False)
    @example(sizes=[1, 1, 1, 12, 1], reverse=False, wide=True)
    @settings(max_examples=12)
    def test_packed_is_separate(self, backend, decay, delta, sizes, reverse, wide):
        bounds = torch.tensor([0, *sizes]).cumsum(0)
        tensors = arguments(b=1, l=sum(sizes), decay=decay, delta=delta, rows=len(sizes))

        def packed(t):
            return run(t, backend, cu_seqlens=bounds if wide else bounds.int(), reverse=reverse)

        def separate(t):
            runs = [
                run({**cut(t, slice(a, b)), "initial_state": t["initial_state"][i : i + 1]}, backend, reverse=reverse)
                for i, (a, b) in enumerate(pairwise(bounds.tolist()))
            ]
            return torch.cat([o for o, _ in runs], 1), torch.cat([state for _, state in runs])

        all_close(packed(tensors), separate(tensors), 1e-12)
        all_close(gradients(tensors, packed), gradients(tensors, separate), 1e-11)

    @given(lengths=st.lists(st.integers(0, 20), min_size=2, max_size=2), reverse=st.booleans())
    @settings(max_examples=8)
    def test_padding_leaves_the_last_state_alone(self, backend, decay, delta, lengths, reverse):
        tensors = arguments(l=20, decay=decay, delta=delta, rows=2)
        garbage = {name: t if t is None else t.clone() for name, t in tensors.items()}
        for i, m in enumerate(lengths):
            for name in STEPS:
                if garbage[name] is not None:
                    garbage[name][i, m:] = float("nan")
        o, last = run(garbage, backend, lengths=torch.tensor(lengths), reverse=reverse)
        for i, m in enumerate(lengths):
            row = cut(tensors, slice(0, m), slice(i, i + 1))
            row["initial_state"] = tensors["initial_state"][i : i + 1]
            all_close((o[i : i + 1, :m], last[i : i + 1]), run(row, backend, reverse=reverse), 1e-12)
            assert (o[i, m:] == 0).all()

    def test_the_chunk_does_not_matter(self, backend, decay, delta):
        tensors = arguments(l=37, decay=decay, delta=delta, rows=2)
        want = run(tensors, backend, 1)
        for chunk in (2, 4, 16, 64, 128):
            all_close(run(tensors, backend, chunk), want, 1e-12)

    def test_non_contiguous_inputs(self, backend, decay, delta):
        tensors = arguments(decay=decay, delta=delta, rows=2)
        odd = {  # every second entry of a wider tensor, and batch stored last
            name: t if t is None else torch.stack([t, t], -1)[..., 0].transpose(0, -1).contiguous().transpose(0, -1)
            for name, t in tensors.items()
        }
        all_close(run(odd, backend), run(tensors, backend), 1e-13)
        all_close(gradients(odd, lambda t: run(t, backend)), gradients(tensors, lambda t: run(t, backend)), 1e-12)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
    def test_half_precision(self, backend, decay, delta, dtype, tolerance):
        """State arithmetic stays in float32, under autocast too: the only errors are those of rounding the output."""
        tensors = arguments(l=70, n=8, p=4, decay=decay, delta=delta, dtype=dtype)
        if delta:  # rounded keys are no unit vectors, and 2 would be the border of stability
            tensors["beta"] /= 2
        expected, expected_last = oracle(tensors)
        with torch.autocast(DEVICE, torch.bfloat16):
            o, last = run(tensors, backend)
        assert o.dtype == dtype
        assert last.dtype == torch.float32
        close(o.double(), expected, tolerance)
        close(last, expected_last, 1e-5)

    def test_runs_are_bitwise_equal(self, backend, decay, delta):
        tensors = arguments(l=33, decay=decay, delta=delta, rows=2, dtype=torch.float32)
        first, again = (
            [*run(tensors, backend), *gradients(tensors, lambda t: run(t, backend)).values()] for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_gradcheck(self, backend, decay, delta):
        tensors = arguments(b=1, l=5, h=2, g=1, n=2, p=2, decay=decay, delta=delta, rows=1)
        names = [name for name, t in tensors.items() if t is not None]

        def outputs(*values):
            return run({**tensors, **dict(zip(names, values, strict=True))}, backend, 4)

        leaves = tuple(tensors[name].requires_grad_() for name in names)
        assert torch.autograd.gradcheck(outputs, leaves)
        assert torch.autograd.gradgradcheck(outputs, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("decay", "delta"), [KINDS[0], KINDS[-1]])
def test_opcheck(backend, decay, delta):
    if backend == "triton" and delta:
        pytest.skip("its kernels have no delta rule")
    tensors = arguments(b=1, l=5, rows=1, decay=decay, delta=delta, dtype=torch.float32)
    leaves = [t if t is None else t.requires_grad_() for t in tensors.values()]
    options = (False, 4, backend)
    packed = (*leaves[:-1], None, torch.tensor([0, 2, 5]), None, *options)
    torch.library.opcheck(torch.ops.ssm_kernels.chunked_scan.default, packed)
    plain = (*leaves, None, None, *options)
    torch.library.opcheck(torch.ops.ssm_kernels.chunked_scan.default, plain)
    made = torch.ops.ssm_kernels.chunked_scan(*plain)
    cotangents = [torch.randn_like(t) for t in made]
    torch.library.opcheck(torch.ops.ssm_kernels.chunked_scan_backward.default, (*cotangents, *plain))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("decay", "delta"), [KINDS[0], KINDS[-1]])
def test_compile_without_graph_break(backend, decay, delta):
    tensors = arguments(rows=2, decay=decay, delta=delta, dtype=torch.float32)
    torch.compiler.reset()  # one compilation for each kind would pass torch's limit
    compiled = torch.compile(lambda t: run(t, backend), fullgraph=True, backend="aot_eager")
    all_close(compiled(tensors), run(tensors, backend), 1e-6)
    all_close(gradients(tensors, compiled), gradients(tensors, lambda t: run(t, backend)), 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", ["scalar", "vector"])
@pytest.mark.parametrize("size", [30.0, 1e4, 1e6, float("inf")])
def test_strong_decay_forgets_and_nothing_else_suffers(backend, decay, size):
    """One step that wipes the state must not cost the following steps their accuracy, nor give nan."""
    tensors = arguments(l=40, decay=decay, delta=False, dtype=torch.float32)
    tensors["log_decay"][:, 11] = -size
    all_close(run(tensors, backend, 64), oracle(tensors), 1e-6)
    for name, grad in gradients(tensors, lambda t: run(t, backend, 64)).items():
        assert torch.isfinite(grad).all(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_last_state_alone(backend):
    tensors = arguments(rows=2)
    actual = gradients(tensors, lambda t: run(t, backend)[1:])
    all_close(actual, gradients(tensors, lambda t: oracle(t)[1:]), 1e-12)
    assert (actual["q"] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_orthonormal_keys_are_overwritten_and_recalled(backend):
    """Without decay and at beta = 1 the state is a memory of as many cells as there are keys."""
    if backend == "triton":
        pytest.skip("its kernels have no delta rule")
    keys = torch.eye(4, dtype=torch.float64, device=DEVICE).repeat(3, 1)[None, :, None]
    v, ones = torch.randn(1, 12, 1, 5, dtype=torch.float64).to(DEVICE), torch.ones(1, 12, 1).double().to(DEVICE)
    o, last = chunked_scan(keys, keys, v, beta=ones, chunk=8, return_last_state=True, backend=backend)
    close(o, v, 1e-15)
    close(last[0, 0], v[0, 8:, 0], 1e-15)


class TestBadInput:
    def check(self, message, **changes):
        tensors = {**arguments(dtype=torch.float32), **changes}
        with pytest.raises(ValueError, match=message):
            chunked_scan(**tensors)

    def test_shapes(self):
        self.check(r"k has shape \(2, 17, 2, 4\), expected \(b=2 from q, l=17 from q, g=2", k=torch.zeros(2, 17, 2, 4))
        self.check(r"v has shape \(2, 17, 4\), expected", v=torch.zeros(2, 17, 4))
        self.check(r"log_decay has shape \(2, 17, 2\), expected .* or ", log_decay=torch.zeros(2, 17, 2))
        self.check(r"beta has shape \(2, 17, 4, 3\)", beta=torch.zeros(2, 17, 4, 3))
        self.check(r"initial_state has shape \(1, 4, 3, 2\), expected \(r=2", initial_state=torch.zeros(1, 4, 3, 2))
        three = torch.zeros(2, 17, 3, 2)
        self.check(r"h=3 heads \(from v\) cannot share g=2 groups", v=three, log_decay=None, beta=None)

    def test_dtypes_and_devices(self):
        self.check("q has dtype int64", q=torch.zeros(2, 17, 2, 3, dtype=torch.int64))
        self.check("v must be a torch.Tensor, got list", v=[1.0])
        self.check("beta is on meta, but q is on cpu", beta=torch.zeros(2, 17, 4, device="meta"))

    @pytest.mark.parametrize("chunk", [0, -2, 24, 2.0, True])
    def test_chunk(self, chunk):
        self.check("chunk=.* expected a power of two", chunk=chunk)

    def test_rows(self):
        packed = {name: t for name, t in arguments(b=1, l=17).items() if t is not None}
        for bounds, message in (([0, 5, 16], "end at l=17"), ([0, 9, 5, 17], "must not fall"), ([0], "two entries")):
            with pytest.raises(ValueError, match=message):
                chunked_scan(**packed, cu_seqlens=torch.tensor(bounds))
        self.check("needs batch size 1", cu_seqlens=torch.tensor([0, 17]))
        self.check(r"lengths\[1\]=18", lengths=torch.tensor([3, 18]))

    def test_backend(self):
        self.check("backend='cuda'", backend="cuda")
        for vector in (dict(delta=False), dict(decay="scalar")):
            with pytest.raises(
                RuntimeError, match="'triton' cannot run here: its kernels (have one decay|write without)"
            ):
                chunked_scan(**arguments(**vector), backend="triton")
