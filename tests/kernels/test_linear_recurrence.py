"""The linear recurrence on every backend that this machine has, against a float64 reference; and associative scans."""

import os
from contextlib import nullcontext
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ssm_kernels import associative_scan, linear_recurrence
from ssm_kernels.associative_scan import affine
from ssm_kernels.linear_recurrence import native, op, reference

# SSM_TEST_DEVICE=cuda runs the same cases on a GPU.
DEVICE = os.environ.get("SSM_TEST_DEVICE", "cpu")
BACKENDS = [name for name, probe in op.PROBES.items() if probe(DEVICE) is None]
# The chunk-parallel form is taken where threads are idle; here it is forced, also on one thread and on short rows.
FORMS = [*BACKENDS, *["native in 3 pieces"] * ("native" in BACKENDS)]
LENGTHS = (0, 1, 2, 31, 32, 33, 197)
WIDE = {False: torch.float64, True: torch.complex128}


def form(name):
    """Context in which the backend of that form runs."""
    return patch.object(native, "pieces_of", lambda *_: 3) if name.endswith("pieces") else nullcontext()


def run(a, b, h0=None, *, backend, **rows):
    with form(backend):
        return linear_recurrence(a, b, initial_state=h0, return_last_state=True, backend=backend.split()[0], **rows)


def arguments(b=2, l=17, d=5, *, seed=0, dtype=torch.float64, constant=False, rows=2):
    """a inside the unit disc, b and the state normal."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (
            torch.complex(x, torch.randn(x.shape, generator=generator, dtype=torch.float64)) if dtype.is_complex else x
        )

    a = normal(d) if constant else normal(b, l, d)
    a = 0.98 * a / (1 + a.abs()) * 1.2
    return [t.to(DEVICE, dtype) for t in (a, normal(b, l, d), normal(rows, d))]


def oracle(a, b, h0=None, reverse=False):
    wide = WIDE[b.is_complex()]
    return reference.linear_recurrence(a.to(wide), b.to(wide), None if h0 is None else h0.to(wide), None, reverse)


def gradients(tensors, call, seed=1):
    """Gradients of a random linear function of all outputs."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64, device=DEVICE)
    for t in call(*leaves):
        t = torch.view_as_real(t) if t.is_complex() else t
        loss = loss + (t * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(DEVICE)).sum()
    return torch.autograd.grad(loss, leaves, materialize_grads=True)


def close(actual, expected, tolerance):
    """Error relative to the largest entry."""
    assert actual.shape == expected.shape
    if expected.numel():
        error = (actual.to(expected.dtype) - expected).abs().max().item()
        assert error <= tolerance * max(1.0, expected.abs().max().item()), f"error {error:.3g}"


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.complex128, 1e-12), (torch.complex64, 1e-5)],
)
class TestAgainstOracle:
    @given(
        l=st.sampled_from(LENGTHS[:-1]), d=st.sampled_from((1, 3, 16, 37, 130)), b=st.integers(1, 3),
        constant=st.booleans(), reverse=st.booleans(), seed=st.integers(0, 5),
    )  # fmt: skip
    @settings(max_examples=12)
    def test_outputs_and_gradients(self, backend, dtype, tolerance, l, d, b, constant, reverse, seed):
        tensors = arguments(b, l, d, seed=seed, dtype=dtype, constant=constant, rows=b)
        for actual, expected in zip(
            run(*tensors, backend=backend, reverse=reverse), oracle(*tensors, reverse=reverse), strict=True
        ):
            close(actual, expected, tolerance)
        with form(backend):
            actual = gradients(tensors, lambda *t: run(*t, backend=backend, reverse=reverse))
        expected = gradients(tensors, lambda *t: oracle(*t, reverse=reverse))
        for mine, theirs in zip(actual, expected, strict=True):
            close(mine, theirs, 10 * tolerance)

    def test_longest(self, backend, dtype, tolerance):
        tensors = arguments(1, 197, 20, dtype=dtype, rows=1)
        close(run(*tensors, backend=backend)[0], oracle(*tensors)[0], tolerance)


@pytest.mark.parametrize("backend", FORMS)
class TestProperties:
    @given(l=st.sampled_from(LENGTHS), cut=st.integers(0, 200), reverse=st.booleans(), seed=st.integers(0, 9))
    def test_split_anywhere_is_whole(self, backend, l, cut, reverse, seed):
        a, b, h0 = arguments(l=l, seed=seed)
        cut = min(cut, l)
        whole, last = run(a, b, h0, backend=backend, reverse=reverse)
        parts = [slice(0, cut), slice(cut, l)]
        pieces, state = {}, h0
        for i in (1, 0) if reverse else (0, 1):
            pieces[i], state = run(a[:, parts[i]], b[:, parts[i]], state, backend=backend, reverse=reverse)
        close(torch.cat((pieces[0], pieces[1]), 1), whole, 1e-13)
        close(state, last, 1e-13)

    @given(l=st.integers(0, 9), seed=st.integers(0, 9))
    @settings(max_examples=8)
    def test_step_by_step_is_whole(self, backend, l, seed):
        a, b, state = arguments(l=l, seed=seed)
        whole, last = run(a, b, state, backend=backend)
        for t in range(l):
            h, state = run(a[:, t : t + 1], b[:, t : t + 1], state, backend=backend)
            close(h[:, 0], whole[:, t], 1e-13)
        close(state, last, 1e-13)

    @given(l=st.sampled_from(LENGTHS), seed=st.integers(0, 9))
    @settings(max_examples=10)
    def test_reverse_is_flipped(self, backend, l, seed):
        a, b, h0 = arguments(l=l, seed=seed)
        h, last = run(a, b, h0, backend=backend, reverse=True)
        flipped, end = run(a.flip(1), b.flip(1), h0, backend=backend)
        close(h, flipped.flip(1), 1e-13)
        close(last, end, 1e-13)

    @given(
        sizes=st.lists(st.sampled_from((0, 1, 2, 5, 33)), min_size=1, max_size=5), reverse=st.booleans(),
        constant=st.booleans(), is_complex=st.booleans(), index=st.sampled_from((torch.int32, torch.int64)),
    )  # fmt: skip
    def test_packed_is_separate(self, backend, sizes, reverse, constant, is_complex, index):
        tensors = arguments(1, sum(sizes), 7, dtype=WIDE[is_complex], constant=constant, rows=len(sizes))
        bounds = torch.tensor([0, *sizes]).cumsum(0)

        def packed(a, b, h0):
            return run(a, b, h0, backend=backend, cu_seqlens=bounds.to(index), reverse=reverse)

        def separate(a, b, h0):
            made = [
                oracle(a if constant else a[:, p:q], b[:, p:q], h0[i : i + 1], reverse=reverse)
                for i, (p, q) in enumerate(pairwise(bounds.tolist()))
            ]
            return torch.cat([h for h, _ in made], 1), torch.cat([last for _, last in made])

        for actual, expected in zip(packed(*tensors), separate(*tensors), strict=True):
            close(actual, expected, 1e-12)
        with form(backend):
            actual = gradients(tensors, packed)
        for mine, theirs in zip(actual, gradients(tensors, separate), strict=True):
            close(mine, theirs, 1e-11)

    @given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3), reverse=st.booleans(), constant=st.booleans())
    def test_padding_is_never_seen(self, backend, lengths, reverse, constant):
        batch = len(lengths)
        a, b, h0 = arguments(batch, 9, 7, constant=constant, rows=batch)
        for i, n in enumerate(lengths):
            b[i, n:] = torch.nan

        def padded(a, b, h0):
            return run(a, b, h0, backend=backend, lengths=torch.tensor(lengths), reverse=reverse)

        h, last = padded(a, b, h0)
        with form(backend):
            grads = gradients((a, b, h0), padded)
        for i, n in enumerate(lengths):
            at = slice(i, i + 1)
            alone, end = oracle(a if constant else a[at, :n], b[at, :n], h0[at], reverse=reverse)
            close(h[at, :n], alone, 1e-12)
            close(last[at], end, 1e-12)
            assert not h[i, n:].any()
            assert not grads[1][i, n:].any()
            assert constant or not grads[0][i, n:].any()
        assert all(g.isfinite().all() for g in grads)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
    def test_any_strides(self, backend, dtype):
        a, b, h0 = arguments(2, 9, 6, dtype=dtype)
        views = [
            a.transpose(0, 1).contiguous().transpose(0, 1),
            torch.stack((b, b), -1)[..., 0],
            h0.t().contiguous().t(),
        ]
        for actual, expected in zip(run(*views, backend=backend), oracle(a, b, h0), strict=True):
            close(actual, expected, 1e-12)
        row = a[:1, :1].expand(2, 9, 6)
        close(run(row, b, backend=backend)[0], oracle(row, b)[0], 1e-12)
        with form(backend):
            for mine, theirs in zip(
                gradients(views, lambda *t: run(*t, backend=backend)), gradients((a, b, h0), oracle), strict=True
            ):
                close(mine, theirs, 1e-11)

    def test_lazily_conjugated(self, backend):
        a, b, h0 = arguments(dtype=torch.complex128)
        expected = oracle(a.conj().resolve_conj(), b, h0)[0]
        close(run(a.conj(), b, h0, backend=backend)[0], expected, 1e-12)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, backend, dtype):
        a, b, h0 = arguments(l=33, dtype=dtype)
        h, last = run(a, b, h0, backend=backend)
        assert h.dtype == dtype
        assert last.dtype == torch.float32
        expected, end = oracle(a, b, h0)
        close(last, end, 1e-5)
        close(h, expected, 0.6 * torch.finfo(dtype).eps)

    def test_dtypes_of_outputs(self, backend):
        b = torch.randn(1, 4, 2)
        a = torch.rand(2, dtype=torch.complex64)
        h, last = run(a, b, backend=backend)
        assert h.dtype == last.dtype == torch.complex64
        close(h, oracle(a, b.to(torch.complex64))[0], 1e-6)
        assert run(a.real.double(), b, backend=backend)[1].dtype == torch.float64

    def test_bitwise_repeatable(self, backend):
        tensors = arguments(3, 65, 40, dtype=torch.float32, rows=3, constant=True)
        with form(backend):
            first, again = (gradients(tensors, lambda *t: run(*t, backend=backend)) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
    @pytest.mark.parametrize("constant", [False, True])
    @pytest.mark.parametrize(
        "rows", [{}, {"reverse": True}, {"lengths": torch.tensor([2])}, {"cu_seqlens": torch.tensor([0, 2, 2, 3])}]
    )
    def test_gradcheck(self, backend, dtype, constant, rows):
        r = 3 if "cu_seqlens" in rows else 1
        tensors = [t.requires_grad_() for t in arguments(1, 3, 2, dtype=dtype, constant=constant, rows=r)]
        with form(backend):
            call = lambda *t: run(*t, backend=backend, **rows)  # noqa: E731
            assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
            assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
class TestRegistration:
    @pytest.mark.parametrize("constant", [False, True])
    def test_opcheck(self, backend, constant):
        a, b, h0 = (t.requires_grad_() for t in arguments(1, 5, 3, dtype=torch.float32, constant=constant, rows=1))
        call = torch.ops.ssm_kernels.linear_recurrence.default
        torch.library.opcheck(call, (a, b, h0, None, None, False, backend))
        torch.library.opcheck(
            call, (a, b.transpose(0, 1).contiguous().transpose(0, 1), None, None, torch.tensor([3]), True, backend)
        )

    def test_compiles_whole(self, backend):
        def loss(a, b, h0):
            h, last = linear_recurrence(a, b, initial_state=h0, return_last_state=True, backend=backend)
            return h.square().sum() + last.sum()

        tensors = [t.requires_grad_() for t in arguments(dtype=torch.float32)]
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        for mine, theirs in zip(
            torch.autograd.grad(compiled(*tensors), tensors), torch.autograd.grad(loss(*tensors), tensors), strict=True
        ):
            close(mine, theirs, 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(b=torch.ones(2, 3)), r"b has shape \(2, 3\), expected \(b, l, d\)"),
        (
            dict(a=torch.ones(2, 4, 4)),
            r"a has shape \(2, 4, 4\), expected \(b=2 from b, l=4 from b, d=3 from b\) or \(d=3",
        ),
        (dict(a=[1.0]), "a must be a torch.Tensor, got list"),
        (dict(a=torch.ones(3, dtype=torch.int64)), "a has dtype int64, expected one of float16"),
        (dict(b=torch.ones(2, 4, 3, dtype=torch.bool)), "b has dtype bool"),
        (dict(initial_state=torch.ones(3, 3)), r"initial_state has shape \(3, 3\), expected \(r=2"),
        (dict(lengths=torch.tensor([4, 5])), r"lengths\[1\]=5, expected 0..4"),
        (dict(lengths=torch.tensor([4.0, 4.0])), "lengths has dtype float32, expected int32 or int64"),
        (dict(cu_seqlens=torch.tensor([0, 4])), r"packed input \(cu_seqlens\) needs batch size 1, got 2"),
        (dict(cu_seqlens=torch.tensor([0, 4]), lengths=torch.tensor([4, 4])), "not both"),
        (dict(backend="cuda"), "backend='cuda', expected one of"),
        (dict(a=torch.ones(3, device="meta")), "a is on meta, but b is on cpu"),
    ],
)
def test_refusals(change, message):
    given = dict(a=torch.ones(2, 4, 3), b=torch.ones(2, 4, 3)) | change
    with pytest.raises(ValueError, match=message):
        linear_recurrence(given.pop("a"), given.pop("b"), **given)


@pytest.mark.parametrize(
    ("bounds", "message"), [([1, 4], "start at 0"), ([0, 3], "end at l=4"), ([0, 3, 2, 4], "must not fall")]
)
def test_refuses_bad_bounds(bounds, message):
    with pytest.raises(ValueError, match=message):
        linear_recurrence(torch.ones(3), torch.ones(1, 4, 3), cu_seqlens=torch.tensor(bounds))


def test_cuts_rows_only_where_threads_are_idle():
    assert native.pieces_of(tasks=1, length=10_000, threads=2) == 3
    assert native.pieces_of(tasks=2, length=10_000, threads=2) == 1
    assert native.pieces_of(tasks=2, length=10_000, threads=16) == 9
    assert native.pieces_of(tasks=1, length=100, threads=16) == 1
    assert native.pieces_of(tasks=0, length=0, threads=2) == 1


class TestAssociativeScan:
    @given(l=st.integers(0, 40), reverse=st.booleans())
    def test_affine_maps_are_the_recurrence(self, l, reverse):
        a, b, h0 = arguments(l=l)
        product, offset = associative_scan(affine, (a, b), dim=1, reverse=reverse)
        close(product * h0[:, None] + offset, oracle(a, b, h0, reverse=reverse)[0], 1e-13)

    @pytest.mark.parametrize("dim", [0, 1])
    def test_matrices_do_not_commute(self, dim):
        m = torch.randn(6, 6, 2, 2, dtype=torch.float64) / 2
        made = associative_scan(lambda x, y: {"m": x["m"] @ y["m"]}, {"m": m}, dim=dim)["m"]
        total = m.select(dim, 0)
        for t in range(1, 6):
            total = total @ m.select(dim, t)
            close(made.select(dim, t), total, 1e-13)

    def test_differentiable_twice(self):
        a, b, _ = (t.requires_grad_() for t in arguments(1, 5, 1))
        assert torch.autograd.gradcheck(lambda *t: associative_scan(affine, t)[1], (a, b), fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda *t: associative_scan(affine, t)[1], (a, b), fast_mode=True)

    @pytest.mark.parametrize(
        ("elements", "message"),
        [
            ((), "a pytree of tensors"),
            ((torch.ones(2, 3), torch.ones(2, 4)), "tensor 1 of elements has size 4 along dim, not 3"),
            ((torch.ones(2),), "tensor 0 of elements has 1 dimensions, none is dim=1"),
        ],
    )
    def test_refusals(self, elements, message):
        with pytest.raises(ValueError, match=message):
            associative_scan(affine, elements)
