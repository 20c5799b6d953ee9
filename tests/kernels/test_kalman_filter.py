"""The Kalman filter on every backend that this machine has, against the textbook form in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ssm_kernels import kalman_filter
from ssm_kernels.kalman_filter import native, op, reference
from torch.autograd import gradcheck

BACKENDS = [name for name, probe in op.PROBES.items() if probe("cpu") is None]
NAMES = ("transition", "process_noise", "observation", "observation_noise", "initial_mean", "initial_cov")
F64 = torch.float64


def arguments(b=3, l=6, n=3, c=2, *, seed=0, axes="", dense=False, offsets=True, missing=True, dtype=F64):
    """Positional arguments and the two offsets; `axes` is "" (shared), "b" or "bl"."""
    g = torch.Generator().manual_seed(seed)
    lead = {"": (), "b": (b,), "bl": (b, l)}[axes]

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=F64)

    def spd(*shape):
        root = normal(*shape, shape[-1])
        return root @ root.mT / shape[-1] + 0.1 * torch.eye(shape[-1], dtype=F64)

    F = normal(*lead, n, n) * (torch.rand(n, n, generator=g, dtype=F64) < 0.6) / math.sqrt(n)
    R = spd(*lead, c) if dense else torch.diag_embed(0.1 + torch.rand(*lead, c, generator=g, dtype=F64))
    start = (b,) if axes else ()
    y = normal(b, l, c)
    if missing:
        y[torch.rand(b, l, c, generator=g, dtype=F64) < 0.2] = math.nan
    args = [F, spd(*lead, n), normal(*lead, c, n), R, normal(*start, n), spd(*start, n), y]
    extra = {"state_offset": normal(*lead, n), "observation_offset": normal(*lead, c)} if offsets else {}
    return [t.to(dtype) for t in args], {name: t.to(dtype) for name, t in extra.items()}


def oracle(args, extra, moments=True):
    offsets = (extra.get("state_offset"), extra.get("observation_offset"))
    wide = [None if t is None else t.to(F64) for t in (*args[:6], *offsets, args[6])]
    return reference.kalman_filter(*wide, moments)


def close(actual, expected, tolerance):
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert ((one.to(F64) - other).abs() <= tolerance * (1 + other.abs().max())).all()


@pytest.mark.parametrize("backend", BACKENDS)
class TestAgainstOracle:
    @settings(deadline=None, max_examples=40)
    @given(
        b=st.sampled_from((1, 2, 7, 8, 9, 17)), l=st.sampled_from((1, 2, 9)), n=st.sampled_from((1, 2, 5, 13)),
        c=st.integers(1, 3), axes=st.sampled_from(("", "b", "bl")), dense=st.booleans(), offsets=st.booleans(),
        missing=st.booleans(), moments=st.booleans(), seed=st.integers(0, 5),
    )  # fmt: skip
    def test_any_shape(self, backend, b, l, n, c, axes, dense, offsets, missing, moments, seed):
        args, extra = arguments(b, l, n, c, seed=seed, axes=axes, dense=dense, offsets=offsets, missing=missing)
        made = kalman_filter(*args, **extra, return_moments=moments, backend=backend)
        close(made, oracle(args, extra, moments), 1e-10)

    def test_float32(self, backend):
        args, extra = arguments(b=9, l=40, n=4, axes="b", dtype=torch.float32)
        made = kalman_filter(*args, **extra, backend=backend)
        assert made[0].dtype == torch.float32
        close(made, oracle(args, extra, False), 1e-4)

    def test_strided_parameters(self, backend):
        args, extra = arguments(b=5, l=4, axes="bl")
        strided = [torch.stack((t, t), -1)[..., 0] for t in args]
        close(kalman_filter(*strided, **extra, backend=backend), oracle(args, extra, False), 1e-10)

    def test_series_do_not_meet(self, backend):
        """A series with a NaN in its own parameters spoils itself only."""
        args, extra = arguments(b=9, axes="b")
        clean = kalman_filter(*args, **extra, return_moments=True, backend=backend)
        args[0][4, 0, 0] = math.nan
        for one, other in zip(clean, kalman_filter(*args, **extra, return_moments=True, backend=backend), strict=True):
            keep = [i for i in range(9) if i != 4]
            assert torch.equal(one[keep], other[keep])
            assert one is clean[0] or other[4].isnan().any()

    @pytest.mark.parametrize("c", [1, 2])
    @pytest.mark.parametrize("axes", ["", "b", "bl"])
    @pytest.mark.parametrize("moments", [False, True])
    def test_gradients(self, backend, c, axes, moments):
        args, extra = arguments(b=2, l=3, n=2, c=c, axes=axes)

        def run(F, Q, H, R, mean, cov, y, b, d):
            Q, R, cov = ((t + t.mT) / 2 for t in (Q, R, cov))  # an element of these cannot be moved alone
            return kalman_filter(
                F, Q, H, torch.diag_embed(R.diagonal(dim1=-2, dim2=-1)), mean, cov, y,
                state_offset=b, observation_offset=d, return_moments=moments, backend=backend,
            )  # fmt: skip

        leaves = [t.clone().requires_grad_() for t in (*args, *extra.values())]
        assert gradcheck(run, leaves)

    @settings(deadline=None, max_examples=25)
    @given(
        b=st.sampled_from((1, 7, 9, 17)), l=st.sampled_from((1, 9)), n=st.sampled_from((1, 2, 5)),
        axes=st.sampled_from(("", "b", "bl")), offsets=st.booleans(), moments=st.booleans(), seed=st.integers(0, 5),
    )  # fmt: skip
    def test_gradients_against_the_oracle(self, backend, b, l, n, axes, offsets, moments, seed):
        args, extra = arguments(b, l, n, 1, seed=seed, axes=axes, offsets=offsets)
        found = []
        for name in (backend, "reference"):
            leaves = [t.clone().requires_grad_() for t in (*args, *extra.values())]
            keywords = dict(zip(extra, leaves[7:], strict=True))
            made = kalman_filter(*leaves[:7], **keywords, return_moments=moments, backend=name)
            g = torch.Generator().manual_seed(seed)
            loss = sum((t * torch.randn(t.shape, generator=g, dtype=F64)).sum() for t in made)
            found.append(torch.autograd.grad(loss, leaves))
        close(found[0], found[1], 1e-9)

    def test_opcheck(self, backend):
        args, extra = arguments(b=2, l=2)
        given = [t.requires_grad_() for t in args[:6]]
        inputs = (*given, extra["state_offset"], None, args[6], True, backend)
        torch.library.opcheck(torch.ops.ssm_kernels.kalman_filter.default, inputs)

    def test_compiles_without_a_break(self, backend):
        args, extra = arguments(b=2)
        compiled = torch.compile(kalman_filter, fullgraph=True, backend="aot_eager")
        close(compiled(*args, **extra, backend=backend), kalman_filter(*args, **extra, backend=backend), 1e-12)


@pytest.mark.skipif("native" not in BACKENDS, reason="no C compiler")
def test_thread_counts_do_not_change_a_bit():
    args, extra = arguments(b=64, l=30, n=5)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kalman_filter(*args, **extra, return_moments=True, backend="native"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_only_a_diagonal_noise_is_native():
    assert native.takes(torch.eye(3).expand(2, 3, 3))
    assert not native.takes(torch.ones(3, 3))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (6, torch.zeros(2, 3), "kalman_filter: y has shape"),
        (6, torch.zeros(3, 0, 2), "at least one measurement"),
        (6, torch.full((3, 6, 2), math.inf), "infinite"),
        (0, torch.zeros(3, 4), "transition has shape"),
        (0, torch.zeros(3, 3, dtype=torch.int64), "transition has dtype int64"),
        (3, torch.eye(3), "observation_noise has shape"),
        (4, torch.zeros(3, 6, 3), "initial_mean has shape"),
        (2, torch.zeros(2, 3, device="meta"), "observation is on meta"),
    ],
)
def test_bad_input_gets_a_sentence(position, value, message):
    args, extra = arguments()
    args[position] = value
    with pytest.raises(ValueError, match=message):
        kalman_filter(*args, **extra)
