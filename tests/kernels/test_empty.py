"""Operators with no batch, step, channel or state: empty outputs, states passed through, gradients all the same."""

import pytest
import torch
from ssm_kernels import causal_conv1d, chunked_scan, linear_recurrence, routed_scan, selective_scan

from tests.kernels.test_selective_scan import BACKENDS

SIZES = ((0, 5, 4, 3), (2, 0, 4, 3), (2, 5, 0, 3), (2, 5, 4, 0), (0, 0, 0, 0))
"""b, l, d, n."""


def check(operator, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs, after their backward pass has given every input a gradient of its shape."""
    for t in tensors:
        t.requires_grad_(True)
    made = operator(*tensors)
    made = [made] if isinstance(made, torch.Tensor) else list(made)
    sum(t.sum() for t in made).backward()
    for t in tensors:
        assert t.grad is not None
        assert t.grad.shape == t.shape
    return [t.detach() for t in made]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_selective_scan(size, backend):
    b, l, d, n = size
    x, dt, z, state = torch.randn(b, l, d), torch.rand(b, l, d), torch.randn(b, l, d), torch.randn(b, d, n)
    A, B, C, D = -torch.rand(d, n), torch.randn(b, l, n), torch.randn(b, l, n), torch.randn(d)

    def scan(x, dt, A, B, C, D, z, state, backend=backend):
        options = dict(initial_state=state, return_last_state=True, backend=backend)
        return selective_scan(x, dt, A, B, C, D=D, z=z, **options)

    tensors = [x, dt, A, B, C, D, z, state]
    y, last = check(scan, tensors)
    expected = scan(*tensors, backend="reference")
    torch.testing.assert_close((y, last), tuple(t.detach() for t in expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_routed_scan(size, backend):
    b, l, d, n = size
    x, dt, A = torch.randn(b, l, d), torch.rand(2, b, l, d), -torch.rand(2, d, n)
    B, C = torch.randn(2, b, l, n), torch.randn(2, b, l, n)
    order = torch.stack([torch.arange(l), torch.arange(l).flip(0)])
    (y,) = check(lambda *tensors: routed_scan(*tensors, order, backend=backend), [x, dt, A, B, C])
    torch.testing.assert_close(y, torch.zeros(b, l, d))


@pytest.mark.parametrize("size", SIZES)
def test_the_other_operators(size):
    b, l, d, n = size
    state = torch.randn(b, d)
    y, last = check(
        lambda a, x, h: linear_recurrence(a, x, initial_state=h, return_last_state=True),
        [torch.rand(b, l, d), torch.randn(b, l, d), state],
    )
    assert y.shape == (b, l, d)
    assert l or torch.equal(last, state)
    (y,) = check(causal_conv1d, [torch.randn(b, l, d), torch.randn(d, 3), torch.randn(d)])
    assert y.shape == (b, l, d)
    (y,) = check(chunked_scan, [torch.randn(b, l, 2, n), torch.randn(b, l, 2, n), torch.randn(b, l, 2, d)])
    torch.testing.assert_close(y, torch.zeros(b, l, 2, d))
