"""The compiled Triton kernels on a GPU: dtypes, repeatability, long rows, routes (`apps/bench/gpu_proof.sh`)."""

import pytest
import torch
from ssm_kernels import selective_scan
from ssm_kernels.selective_scan import routed_scan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)]


def arguments(b, l, d, n, dtype, routes=0):
    generator = torch.Generator("cuda").manual_seed(0)
    own = (routes,) if routes else ()

    def normal(*shape, to=dtype):
        return torch.randn(*shape, generator=generator, device="cuda").to(to)

    A = -(0.05 + torch.rand(*own, d, n, generator=generator, device="cuda"))
    given = dict(
        x=normal(b, l, d), dt=normal(*own, b, l, d) - 2, A=A, B=normal(*own, b, l, n), C=normal(*own, b, l, n),
        D=normal(*own, d, to=torch.float32), z=normal(b, l, d), dt_bias=normal(*own, d, to=torch.float32),
    )  # fmt: skip
    return {name: t.requires_grad_() for name, t in given.items()}


def outputs_and_gradients(run, given):
    y = run(**given, dt_softplus=True)
    weight = torch.randn(y.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, list(given.values()), weight)]


def agree(actual, expected, tolerance):
    for name, a, e in zip(("y", "x", "dt", "A", "B", "C", "D", "z", "dt_bias"), actual, expected, strict=True):
        error = (a.double() - e.double()).abs().max() / e.double().abs().max().clamp(min=1)
        assert error <= tolerance, f"{name}: {error:.3g}"


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(2, 197, 96, 16), (3, 64, 40, 1), (1, 100, 33, 64), (2, 33, 64, 20)])
def test_against_the_reference_in_float64(shape, dtype, tolerance):
    given = arguments(*shape, dtype)
    wide = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    actual = outputs_and_gradients(lambda **t: selective_scan(**t, backend="triton"), given)
    expected = outputs_and_gradients(lambda **t: selective_scan(**t, backend="reference"), wide)
    agree(actual, expected, 4 * tolerance)


@pytest.mark.parametrize(("dtype", "_"), DTYPES)
@pytest.mark.parametrize("shape", [(4, 300, 200, 16), (1, 5000, 64, 16)])
def test_runs_are_bitwise_equal(shape, dtype, _):
    given = arguments(*shape, dtype)
    first = outputs_and_gradients(lambda **t: selective_scan(**t, backend="triton"), given)
    for _ in range(3):
        again = outputs_and_gradients(lambda **t: selective_scan(**t, backend="triton"), given)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("reverse", [False, True])
def test_long_rows_in_pieces(monkeypatch, reverse):
    from ssm_kernels.selective_scan import triton_long

    given = arguments(1, 3001, 64, 16, torch.float32)

    def scan(**t):
        return selective_scan(**t, backend="triton", reverse=reverse)

    cut = outputs_and_gradients(scan, given)
    monkeypatch.setattr(triton_long, "steps_of", lambda *_: 1 << 20)
    agree(cut, outputs_and_gradients(scan, given), 2e-5)


def test_routes():
    given = arguments(2, 49, 40, 16, torch.float32, routes=4)
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(49, generator=generator) for _ in range(4)]).cuda()
    actual = outputs_and_gradients(lambda **t: routed_scan(**t, order=order, backend="triton"), given)
    expected = outputs_and_gradients(lambda **t: routed_scan(**t, order=order, backend="reference"), given)
    agree(actual, expected, 1e-4)


def test_more_entries_than_32_bits_count():
    """x has 2^31 + entries: the last channels of the last item must come out as they do alone."""
    b, l, d = 2, 16400, 65536
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("needs 30 GB of GPU memory")
    x = torch.randn(b, l, d, device="cuda", dtype=torch.bfloat16)
    A = -torch.rand(d, 1, device="cuda")
    B = torch.ones(b, l, 1, device="cuda")
    with torch.no_grad():
        y = selective_scan(x, x, A, B, B, dt_softplus=True, backend="triton")
        tail = x[1:, :, -32:].contiguous()
        alone = selective_scan(tail, tail, A[-32:], B[1:], B[1:], dt_softplus=True, backend="triton")
    assert torch.equal(y[1:, :, -32:], alone)
