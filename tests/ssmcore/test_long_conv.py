"""LongConv: shrunk taps, convolved one way or both."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.mixer import Context
from ssmcore.mixers.long_conv import squash


def test_squash_is_odd_lipschitz_and_zero_within():
    x = torch.linspace(-1, 1, 201)
    y = squash(x, 0.25)
    torch.testing.assert_close(y, -squash(-x, 0.25))
    assert (y[x.abs() <= 0.25] == 0).all()
    assert (y.diff().abs() <= x.diff() + 1e-7).all()
    torch.testing.assert_close(squash(x, 0.0), x)


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_without_shrinking_the_taps_are_the_kernel(causal):
    mixer = create_mixer("long_conv", 2, l_max=6, shrink=0.0, causal=causal).double()
    x, l = torch.randn(1, 10, 2, dtype=torch.float64), 10
    want = mixer.D * x
    for t in range(l):
        for s in range(l):
            if 0 <= t - s < 6:
                want[:, t] += mixer.taps[0, t - s] * x[:, s]
            elif not causal and 1 <= s - t <= 6:
                want[:, t] += mixer.taps[1, s - t - 1] * x[:, s]
    torch.testing.assert_close(mixer.core(x, None, Context())[0], want)


@torch.no_grad()
def test_averaged_taps():
    mixer = create_mixer("long_conv", 1, l_max=5, shrink=0.0, smooth=3)
    mixer.taps[0, :, 0] = torch.tensor([3.0, 0.0, 0.0, 6.0, 9.0])
    torch.testing.assert_close(mixer.kernels()[0, :, 0], torch.tensor([1.0, 1.0, 2.0, 5.0, 5.0]))


def test_dropped_taps_only_in_training():
    mixer = create_mixer("long_conv", 4, l_max=500, shrink=0.0, dropout=0.3)
    assert 0.2 < (mixer.kernels() == 0).float().mean() < 0.4
    assert (mixer.eval().kernels() != 0).all()
    with pytest.raises(ValueError, match="odd"):
        create_mixer("long_conv", 4, smooth=4)
