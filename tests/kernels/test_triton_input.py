"""What the Triton kernels cannot take is a sentence, and every layout of memory that PyTorch has is taken."""

import os

import pytest
import torch
from ssm_kernels import causal_conv1d, chunked_scan, linear_recurrence, selective_scan
from ssm_kernels.triton_common import MOST, launch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scan_arguments():
    steps = dict(x=normal(2, 3, 4), dt=normal(2, 3, 4, seed=1))
    return steps | dict(A=-normal(4, 2).abs(), B=normal(2, 3, 2), C=normal(2, 3, 2, seed=1))


def chunk_arguments():
    steps = dict(q=normal(2, 3, 1, 4), k=normal(2, 3, 1, 4, seed=1), v=normal(2, 3, 2, 4))
    return steps | dict(log_decay=-normal(2, 3, 2).abs())


OPERATORS = {
    "selective_scan": (selective_scan, scan_arguments),
    "linear_recurrence": (linear_recurrence, lambda: dict(a=normal(2, 3, 4).tanh(), b=normal(2, 3, 4, seed=1))),
    "causal_conv1d": (causal_conv1d, lambda: dict(x=normal(2, 3, 4), weight=normal(4, 3))),
    "chunked_scan": (chunked_scan, chunk_arguments),
}
"""Each operator with arguments; the first one is the input."""

if not INTERPRETED:

    def test_in_the_interpreter(in_interpreter):
        in_interpreter(__file__)

    @pytest.mark.parametrize("name", OPERATORS)
    @pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fn])
    def test_dtypes_that_no_kernel_has(name, dtype):
        operator, arguments = OPERATORS[name]
        given = arguments()
        for key in given:
            with pytest.raises(ValueError, match=f"{name}: {key} has dtype {str(dtype)[6:]}, expected one of float16"):
                operator(**{**given, key: given[key].to(dtype)}, backend="triton")

    @pytest.mark.parametrize("name", OPERATORS)
    def test_two_devices(name):
        operator, arguments = OPERATORS[name]
        given = arguments()
        last = list(given)[-1]
        with pytest.raises(ValueError, match=f"{name}: .* is on (meta, but .* is on cpu|cpu, but .* is on meta)"):
            operator(**{**given, last: given[last].to("meta")}, backend="triton")

    @pytest.mark.parametrize("name", ["linear_recurrence", "causal_conv1d", "chunked_scan"])
    def test_more_steps_than_32_bits_count(name):
        """Tensors without memory, whose rows are that long: asked of the launchers, which see what the device would."""
        from ssm_kernels.causal_conv1d import triton as conv
        from ssm_kernels.chunked_scan import triton as chunks
        from ssm_kernels.linear_recurrence import triton as recurrence

        def meta(*shape):
            return torch.empty(1, 1, *shape, device="meta").expand(1, MOST + 1, *shape)

        launchers = {
            "linear_recurrence": lambda: recurrence.forward(meta(2), meta(2), None, None, False),
            "causal_conv1d": lambda: conv.forward(meta(2), torch.ones(2, 4), None, None, None, False, False),
            "chunked_scan": lambda: chunks.forward(meta(1, 2), meta(1, 2), meta(1, 2), None, None, None, False, 64),
        }
        with pytest.raises(ValueError, match=f"{name}: .* has {MOST + 1} steps, .* count up to {MOST}"):
            launchers[name]()

    def test_more_programs_than_a_launch_has():
        with pytest.raises(ValueError, match="conv: the problem needs 2147483648 Triton programs in one launch"):
            launch("conv", None, MOST + 1, 4)


if INTERPRETED:

    def spread(t):
        """The same values with a stride of two in every dimension."""
        wide = t.new_zeros([2 * size for size in t.shape])
        view = wide[tuple(slice(None, None, 2) for _ in t.shape)]
        view.copy_(t)
        return view

    LAYOUTS = {
        "every second entry": spread,
        "last dimension first": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
        "negated lazily": lambda t: torch.imag(torch.complex(t, -t).conj()),
        "an offset": lambda t: torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape),
    }

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("name", OPERATORS)
    def test_layouts(name, layout):
        operator, arguments = OPERATORS[name]
        given = arguments()
        strange = {key: LAYOUTS[layout](t) for key, t in given.items()}
        assert all(torch.equal(strange[key], t) for key, t in given.items())
        torch.testing.assert_close(operator(**strange, backend="triton"), operator(**given, backend="reference"))

    @pytest.mark.parametrize("name", OPERATORS)
    def test_expanded_inputs_and_cotangents(name):
        """Strides of zero: one row for all items, and the gradient of a sum."""
        operator, arguments = OPERATORS[name]
        given = arguments()
        one = {key: t[:1].expand_as(t) if t.shape[0] == 2 else t for key, t in given.items()}
        results = []
        for backend in ("triton", "reference"):
            leaves = {key: t.detach().requires_grad_() for key, t in one.items()}
            y = operator(**leaves, backend=backend)
            results.append([y, *torch.autograd.grad(y.sum(), list(leaves.values()))])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected)

    def test_conjugated_lazily():
        a, b = torch.complex(normal(1, 3, 2), normal(1, 3, 2, seed=1)), torch.complex(normal(1, 3, 2), normal(1, 3, 2))
        actual = linear_recurrence(a.conj(), b.conj(), backend="triton")
        torch.testing.assert_close(actual, linear_recurrence(a.conj(), b.conj(), backend="reference"))
