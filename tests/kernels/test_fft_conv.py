"""The long convolution on every backend, by transform and by direct sum, against a float64 reference."""

from contextlib import nullcontext
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ssm_kernels import fft_conv
from ssm_kernels.fft_conv import fourier, op

# Each backend as it is, and "native" forced to one of its ways whatever the number of taps.
FORMS = {
    "reference": None,
    "native": None,
    "native by transform": 0,
    "native by direct sum": 1 << 30,
    "native by two factors": "monarch",
}
LENGTHS = (0, 1, 2, 31, 32, 33, 197)
TAPS = (1, 2, 5, 33, 64, 250)
NAMES = ("x", "kernel", "kernel_back", "D")


def form(name):
    """Context in which that form runs."""
    return (
        nullcontext() if not isinstance(FORMS[name], int) else patch.object(op, "few_taps", lambda device: FORMS[name])
    )


def run(tensors, backend, **options):
    with form(backend):
        return fft_conv(**tensors, backend=backend.split()[0], algorithm=algorithm(backend), **options)


def algorithm(name):
    return "monarch" if FORMS[name] == "monarch" else "auto"


def arguments(b=2, l=17, d=5, k=9, m=None, *, skip=True, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    made = (normal(b, l, d), normal(k, d), None if m is None else normal(m, d), normal(d) if skip else None)
    return dict(zip(NAMES, made, strict=True))


def oracle(tensors, back_lag=0):
    """By the Toeplitz matrix of each channel, in float64."""
    x, kernel, kernel_back, D = (None if t is None else t.double() for t in tensors.values())
    l, d = x.shape[1:]
    lag = torch.arange(l)[:, None] - torch.arange(l)

    def matrix(taps, lag):
        there = (lag >= 0) & (lag < taps.shape[0])
        return torch.where(there[..., None], taps[lag.clamp(0, taps.shape[0] - 1)], taps.new_zeros(()))

    total = matrix(kernel, lag)
    if kernel_back is not None:
        total = total + matrix(kernel_back, -lag - back_lag)
    y = torch.einsum("tsd,bsd->btd", total, x)
    return y if D is None else y + D * x


def gradients(tensors, call, seed=1):
    """Gradients of a random linear function of the output, by name."""
    leaves = {k: None if v is None else v.detach().clone().requires_grad_() for k, v in tensors.items()}
    y = call(leaves)
    y = (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).sum()
    names = [k for k, v in leaves.items() if v is not None]
    return dict(zip(names, torch.autograd.grad(y, [leaves[k] for k in names], materialize_grads=True), strict=True))


def close(actual, expected, tolerance):
    """Error relative to the largest entry."""
    assert actual.shape == expected.shape
    if expected.numel():
        error = (actual.double() - expected).abs().max().item()
        assert error <= tolerance * max(1.0, expected.abs().max().item()), f"error {error:.3g}"


def all_close(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name in actual:
        close(actual[name], expected[name], tolerance)


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@given(
    b=st.integers(1, 3), l=st.sampled_from(LENGTHS), d=st.sampled_from((1, 3, 20)), k=st.sampled_from(TAPS),
    m=st.sampled_from((None, *TAPS)), back_lag=st.sampled_from((0, 1)), skip=st.booleans(), seed=st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=15)
def test_against_oracle(backend, dtype, tolerance, b, l, d, k, m, back_lag, skip, seed):
    tensors = arguments(b, l, d, k, m, skip=skip, seed=seed, dtype=dtype)
    close(run(tensors, backend, back_lag=back_lag), oracle(tensors, back_lag), tolerance)
    actual = gradients(tensors, lambda t: run(t, backend, back_lag=back_lag))
    all_close(actual, gradients(tensors, lambda t: oracle(t, back_lag)), 10 * tolerance)


@pytest.mark.parametrize("backend", FORMS)
class TestProperties:
    @given(l=st.sampled_from(LENGTHS[:-1]), k=st.sampled_from(TAPS), m=st.sampled_from(TAPS))
    @settings(max_examples=10)
    def test_two_sided_is_forward_and_flipped_forward(self, backend, l, k, m):
        tensors = arguments(l=l, k=k, m=m, skip=False)
        x, kernel, kernel_back, _ = tensors.values()
        ahead = run({"x": x.flip(1), "kernel": kernel_back}, backend).flip(1)
        whole = run({"x": x, "kernel": kernel}, backend) + ahead
        close(run(tensors, backend), whole, 1e-12)
        now = kernel_back[0] * x
        kernel_back = torch.cat((kernel_back[1:], torch.zeros_like(kernel_back[:1])))
        close(run({**tensors, "kernel_back": kernel_back}, backend, back_lag=1), whole - now, 1e-12)

    @given(l=st.sampled_from(LENGTHS[:-1]), k=st.sampled_from(TAPS), m=st.sampled_from((None, *TAPS)))
    @settings(max_examples=10)
    def test_reverse_is_flipped(self, backend, l, k, m):
        tensors = arguments(l=l, k=k, m=m)
        flipped = run({**tensors, "x": tensors["x"].flip(1)}, backend).flip(1)
        close(run(tensors, backend, reverse=True), flipped, 1e-12)

    @given(l=st.sampled_from(LENGTHS[2:-1]), cut=st.integers(0, 33), k=st.sampled_from(TAPS))
    @settings(max_examples=10)
    def test_the_past_is_added_to(self, backend, l, cut, k):
        """Split anywhere: what the first part sends into the second is a convolution too."""
        tensors, cut = arguments(l=l, k=k), min(cut, l)
        x = tensors["x"]
        masked = [torch.where(torch.arange(l)[:, None] < cut, x, 0), torch.where(torch.arange(l)[:, None] < cut, 0, x)]
        whole = run(tensors, backend)
        close(sum(run({**tensors, "x": part}, backend) for part in masked), whole, 1e-12)
        close(run({**tensors, "x": x[:, :cut]}, backend), whole[:, :cut], 1e-12)

    @given(
        sizes=st.lists(st.sampled_from((0, 1, 2, 5, 33)), min_size=1, max_size=5), k=st.sampled_from(TAPS),
        m=st.sampled_from((None, 1, 33)), reverse=st.booleans(), index=st.sampled_from((torch.int32, torch.int64)),
    )  # fmt: skip
    @settings(max_examples=20)
    def test_packed_is_separate(self, backend, sizes, k, m, reverse, index):
        tensors = arguments(1, sum(sizes), 3, k, m)
        bounds = torch.tensor([0, *sizes]).cumsum(0)

        def packed(t):
            return run(t, backend, cu_seqlens=bounds.to(index), reverse=reverse)

        def separate(t):
            rows = [t["x"][:, p:q] for p, q in pairwise(bounds.tolist())]
            made = [oracle({**t, "x": row.flip(1) if reverse else row}) for row in rows]
            return torch.cat([y.flip(1) if reverse else y for y in made], 1)

        close(packed(tensors), separate(tensors), 1e-12)
        all_close(gradients(tensors, packed), gradients(tensors, separate), 1e-11)

    @given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3), m=st.sampled_from((None, 1, 33)))
    @settings(max_examples=20)
    def test_padding_is_never_seen(self, backend, lengths, m):
        tensors = arguments(len(lengths), 9, 3, 5, m)
        for i, n in enumerate(lengths):
            tensors["x"][i, n:] = torch.nan
        y = run(tensors, backend, lengths=torch.tensor(lengths))
        grads = gradients(tensors, lambda t: run(t, backend, lengths=torch.tensor(lengths)))
        for i, n in enumerate(lengths):
            close(y[i : i + 1, :n], oracle({**tensors, "x": tensors["x"][i : i + 1, :n]}), 1e-12)
            assert not y[i, n:].any()
            assert not grads["x"][i, n:].any()
        assert all(g.isfinite().all() for g in grads.values())

    def test_any_strides(self, backend):
        tensors = arguments(l=9, d=6, m=4)
        views = {
            "x": tensors["x"].transpose(0, 2).contiguous().transpose(0, 2),
            "kernel": tensors["kernel"].t().contiguous().t(),
            "kernel_back": torch.cat((tensors["kernel_back"],) * 2, 1)[:, 6:],
            "D": torch.stack((tensors["D"],) * 2, -1)[:, 0],
        }
        close(run(views, backend), oracle(tensors), 1e-12)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, backend, dtype):
        tensors = arguments(l=33, dtype=dtype)
        y = run(tensors, backend)
        assert y.dtype == dtype
        close(y, oracle(tensors), 0.6 * torch.finfo(dtype).eps)

    def test_bitwise_repeatable(self, backend):
        tensors = arguments(3, 65, 40, 65, 20, dtype=torch.float32)
        first, again = (gradients(tensors, lambda t: run(t, backend)) for _ in range(2))
        assert all(torch.equal(first[k], again[k]) for k in first)

    @pytest.mark.parametrize("back_lag", [0, 1])
    @pytest.mark.parametrize(
        "rows", [{}, {"reverse": True}, {"lengths": torch.tensor([2])}, {"cu_seqlens": torch.tensor([0, 2, 2, 3])}]
    )
    def test_gradcheck(self, backend, back_lag, rows):
        leaves = [t.requires_grad_() for t in arguments(1, 3, 2, 3, 2).values()]
        with form(backend):
            call = lambda *t: run(dict(zip(NAMES, t, strict=True)), backend, back_lag=back_lag, **rows)  # noqa: E731
            assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
            assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)

    def test_compiles_whole(self, backend):
        leaves = [t.requires_grad_() for t in arguments(m=4, dtype=torch.float32).values()]

        def loss(x, kernel, kernel_back, D):
            return (
                fft_conv(
                    x, kernel, kernel_back=kernel_back, D=D, backend=backend.split()[0], algorithm=algorithm(backend)
                )
                .square()
                .sum()
            )

        with form(backend):
            compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
            mine, theirs = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, loss))
        for actual, expected in zip(mine, theirs, strict=True):
            close(actual, expected.double(), 1e-5)


@pytest.mark.parametrize("backend", ["reference", "native", "monarch"])
def test_opcheck(backend):
    x, kernel, kernel_back, D = (t.requires_grad_() for t in arguments(1, 5, 3, 4, 2, dtype=torch.float32).values())
    call = torch.ops.ssm_kernels.fft_conv.default
    torch.library.opcheck(call, (x, kernel, kernel_back, D, None, None, backend))
    torch.library.opcheck(call, (x, kernel, None, None, torch.tensor([0, 3, 5]), None, backend))


def test_fast_sizes_are_the_next_even_ones():
    def smooth(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    sizes = [n for n in range(2, 5000, 2) if smooth(n)]
    for n in range(1, 4000):
        assert fourier.fast_size(n) == next(size for size in sizes if size >= n)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.ones(2, 3)), r"x has shape \(2, 3\), expected \(b, l, d\)"),
        (dict(kernel=torch.ones(4, 4)), r"kernel has shape \(4, 4\), expected \(k, d=3 from x\)"),
        (dict(kernel=torch.ones(0, 3)), r"kernel has shape \(0, 3\), expected at least one tap"),
        (dict(kernel_back=torch.ones(0, 3)), "kernel_back has shape .* expected at least one tap"),
        (dict(kernel_back=torch.ones(3)), r"kernel_back has shape \(3,\), expected \(m, d=3 from x\)"),
        (dict(D=torch.ones(4)), r"D has shape \(4,\), expected \(d=3 from x\)"),
        (dict(D=2.0), "D must be a torch.Tensor, got float"),
        (dict(back_lag=2), "back_lag=2, expected 0 or 1"),
        (dict(x=torch.ones(2, 4, 3, dtype=torch.complex64)), "x has dtype complex64"),
        (dict(lengths=torch.tensor([4, 9])), r"lengths\[1\]=9, expected 0..4"),
        (dict(cu_seqlens=torch.tensor([0, 4])), "needs batch size 1, got 2"),
        (dict(cu_seqlens=torch.tensor([0, 4]), lengths=torch.tensor([4, 4])), "not both"),
        (dict(backend="fft"), "backend='fft', expected one of"),
        (dict(algorithm="butterfly"), "algorithm='butterfly', expected one of"),
        (dict(kernel=torch.ones(3, 3, device="meta")), "kernel is on meta, but x is on cpu"),
    ],
)
def test_refusals(change, message):
    given = dict(x=torch.ones(2, 4, 3), kernel=torch.ones(3, 3)) | change
    with pytest.raises(ValueError, match=message):
        fft_conv(**given)
