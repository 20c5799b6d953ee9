"""The Fourier transform in two factors against torch's, at every split, and its learned form."""

import pytest
import torch
from ssm_kernels.fft_conv.monarch import MonarchTransform, monarch_fft, monarch_irfft, monarch_rfft, split


@pytest.mark.parametrize("n", [1, 2, 7, 12, 36, 97, 1000])
def test_it_is_the_transform(n):
    x = torch.randn(3, n, dtype=torch.complex128)
    torch.testing.assert_close(monarch_fft(x), torch.fft.fft(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(monarch_fft(x, inverse=True), torch.fft.ifft(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("first", [1, 2, 3, 4, 6, 12])
def test_any_split_is_the_transform(first):
    x = torch.randn(2, 12, dtype=torch.float64)
    torch.testing.assert_close(MonarchTransform(12, first)(x), torch.fft.fft(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [2, 10, 64])
def test_real_transforms(n):
    x = torch.randn(3, n - 1, dtype=torch.float64)
    torch.testing.assert_close(monarch_rfft(x, n), torch.fft.rfft(x, n), rtol=0, atol=1e-12)
    torch.testing.assert_close(monarch_irfft(torch.fft.rfft(x, n), n)[..., : n - 1], x, rtol=0, atol=1e-12)


def test_large_sizes_stay_accurate():
    """Angles are reduced as whole numbers: 65,536 points lose nothing to large arguments."""
    x = torch.randn(1 << 16, dtype=torch.float64)
    want = torch.fft.fft(x)
    assert (monarch_fft(x) - want).abs().max() < 1e-12 * want.abs().max()


def test_splits_are_near_the_root():
    assert [split(n) for n in (1, 7, 12, 36, 1000)] == [1, 1, 3, 6, 25]
    with pytest.raises(ValueError, match="divisor"):
        MonarchTransform(12, 5)


def test_learned_factors_start_as_the_transform_and_move():
    layer, x = MonarchTransform(12, learn=True), torch.randn(4, 12)
    assert {name for name, _ in layer.named_parameters()} == {"left", "right", "twist"}
    torch.testing.assert_close(layer(x), torch.fft.fft(x))
    target = torch.fft.fft(x).flip(-1)  # another linear map
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = (layer(x) - target).abs().square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    assert not {name for name, _ in MonarchTransform(12).named_parameters()}
