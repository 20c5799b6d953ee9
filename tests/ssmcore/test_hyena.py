"""Hyena as a product of diagonal and Toeplitz matrices; its kernels as functions of time."""

import math

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
            first = order - 1 - i  # the innermost convolution is the first
            taps = kernels[first, :, c]
            toeplitz = sum(torch.diag(taps[j].expand(l - j), -j) for j in range(l))
            matrix = matrix @ (toeplitz + mixer.D[first, c] * torch.eye(l)) @ torch.diag(gates[i][:, c])
        want[:, c] = matrix @ v[:, c]
    torch.testing.assert_close(mixer(x)[0][0], mixer.out_proj(want))


@torch.no_grad()
def test_taps_are_those_of_the_published_network():
    """safari's HyenaFilter, feature by feature; its outputs stand channel by channel."""
    l_max, d, order, bands = 16, 3, 3, 4
    mixer = create_mixer("hyena", d, order=order, l_max=l_max, filter_width=8, frequencies=bands, shift=0.1).double()
    t = torch.linspace(0, 1, l_max, dtype=torch.float64)[:, None]
    w = 2 * torch.pi * torch.arange(l_max, dtype=torch.float64)[:, None] / l_max
    z = torch.exp(-1j * torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64) * w)
    taps = mixer.net(torch.cat([t, z.real, z.imag], -1))
    deltas = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, d * (order - 1), dtype=torch.float64)
    taps = taps * (torch.exp(-t * deltas.abs()) + 0.1)
    want = taps.view(l_max, d, order - 1).permute(2, 0, 1)
    torch.testing.assert_close(mixer.kernels(l_max), want, rtol=1e-6, atol=1e-6)  # rates are kept in single precision


@torch.no_grad()
def test_parameters_do_not_grow_with_the_length():
    """The same weights at another length give a longer piece of the same taps."""
    short, double = (create_mixer("hyena", 3, l_max=l, filter_width=8).double() for l in (16, 32))
    torch.testing.assert_close(short.kernels(30)[:, :16], short.kernels(16))
    assert sum(p.numel() for p in short.parameters()) == sum(p.numel() for p in double.parameters())


@torch.no_grad()
def test_the_envelope_falls_as_told():
    mixer = create_mixer("hyena", 2, l_max=100, decay=(0.3, 1.5))
    torch.testing.assert_close(torch.exp(-mixer.rates * torch.tensor([1.5, 0.3])), torch.full((2,), 0.01))
