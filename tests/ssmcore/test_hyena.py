"""Hyena as a product of diagonal and Toeplitz matrices; its kernels as functions of time."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.mixer import Context


@pytest.mark.parametrize("order", [2, 3])
@torch.no_grad()
def test_a_product_of_diagonals_and_toeplitz_matrices(order):
    l, d = 12, 3
    mixer = create_mixer("hyena", d, order=order, l_max=20, filter_width=8).double()
    x = torch.randn(1, l, d, dtype=torch.float64)
    short, _ = mixer.conv(mixer.in_proj(x), None, Context())
    *gates, v = short[0].chunk(order + 1, -1)
    kernels, want = mixer.kernels(l), torch.zeros(l, d, dtype=torch.float64)
    for c in range(d):
        matrix = torch.diag(gates[0][:, c])
        for i in range(1, order):
            taps = kernels[i - 1, :, c]
            toeplitz = sum(torch.diag(taps[j].expand(l - j), -j) for j in range(l))
            matrix = matrix @ (toeplitz + mixer.D[i - 1, c] * torch.eye(l)) @ torch.diag(gates[i][:, c])
        want[:, c] = matrix @ v[:, c]
    torch.testing.assert_close(mixer(x)[0][0], mixer.out_proj(want))


@torch.no_grad()
def test_kernels_are_functions_of_time():
    """The same weights at another length give a longer piece of the same taps; l_max is the unit of time."""
    short, double = (create_mixer("hyena", 3, l_max=l, filter_width=8).double() for l in (16, 32))
    double.load_state_dict(short.state_dict())
    torch.testing.assert_close(short.kernels(30)[:, :16], short.kernels(16))
    torch.testing.assert_close(double.kernels(32)[:, ::2], short.kernels(16))
    assert sum(p.numel() for p in short.parameters()) == sum(p.numel() for p in double.parameters())


@torch.no_grad()
def test_the_envelope_falls_as_told():
    mixer = create_mixer("hyena", 2, l_max=100, decay=(0.3, 1.5))
    torch.testing.assert_close(torch.exp(-mixer.rates * torch.tensor([1.5, 0.3])), torch.full((2,), 0.01))
