"""S4ND against sums over all pairs of places, along one axis against S4D, and its band limit."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.functional import fft_conv

SHARED = {"grid": (7, 9)}


def full(mixer, axis, length, r):
    """Taps by signed lag, -(l - 1) .. l - 1, of one axis."""
    ahead, back = (mixer.kernel(axis, way, r, length) for way in range(2))
    return torch.cat([back[: length - 1].flip(0), ahead])


@pytest.mark.parametrize("rank", [1, 2])
@torch.no_grad()
def test_nested_sums(rank):
    mixer = create_mixer("s4nd", 2, d_state=4, rank=rank).double()
    x = torch.randn(1, 63, 2, dtype=torch.float64)
    grid, want = x.view(7, 9, 2), torch.zeros(7, 9, 2, dtype=torch.float64)
    for r in range(rank):
        rows, columns = full(mixer, 0, 7, r), full(mixer, 1, 9, r)
        for i in range(7):
            for j in range(9):
                taps = rows[i + 6 - torch.arange(7)][:, None] * columns[j + 8 - torch.arange(9)][None]
                want[i, j] += (taps * grid).sum((0, 1)) / rank
    want = want + mixer.D * grid
    torch.testing.assert_close(mixer.core(x, (7, 9)), want.view(1, 63, 2), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_one_axis_is_s4d_both_ways():
    mixer = create_mixer("s4nd", 3, d_state=4, axes=1).double()
    s4ds = [create_mixer("s4d", 3, d_state=4).double() for _ in range(2)]
    for way, s4d in enumerate(s4ds):
        for name in ("log_dt", "A_log", "A_imag", "C"):
            s4d.get_parameter(name).copy_(mixer.get_parameter(name)[0, way, 0])
        s4d.D.zero_()
    x = torch.randn(2, 20, 3, dtype=torch.float64)
    want = fft_conv(x, s4ds[0].kernel(20), kernel_back=s4ds[1].kernel(20), back_lag=1, D=mixer.D)
    torch.testing.assert_close(mixer.core(x, (20,)), want, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_the_band_limit_silences_fast_modes_only():
    free, limited = (create_mixer("s4nd", 2, d_state=8, dt_min=0.5, dt_max=0.5, bandlimit=b) for b in (None, 0.6))
    limited.load_state_dict(free.state_dict())
    cycles = 0.5 * free.A_imag[0, 0, 0, 0] / (2 * torch.pi)  # the modes turn 0, 1/4, 1/2, 3/4 of a circle a step
    slow = cycles < 0.3
    assert slow.tolist() == [True, True, False, False]
    free.C[..., 2:, :] = 0
    torch.testing.assert_close(limited.kernel(0, 0, 0, 20), free.kernel(0, 0, 0, 20))


@torch.no_grad()
def test_half_the_resolution_at_twice_the_rate_is_the_same_system():
    fine, coarse = create_mixer("s4nd", 2, d_state=4).double(), create_mixer("s4nd", 2, d_state=4, rate=2.0).double()
    coarse.load_state_dict(fine.state_dict())
    taps = fine.kernel(0, 0, 0, 40)
    # A token of twice the length is two of the same value.
    torch.testing.assert_close(coarse.kernel(0, 0, 0, 20), taps[0::2] + taps[1::2], rtol=1e-9, atol=1e-11)


def test_grids_must_fit():
    mixer = create_mixer("s4nd", 2, d_state=4)
    mixer(torch.randn(1, 63, 2), shared=SHARED)
    with pytest.raises(ValueError, match="63 tokens"):
        mixer(torch.randn(1, 63, 2), shared={"grid": (8, 8)})
    with pytest.raises(ValueError, match="axes"):
        create_mixer("s4nd", 2, axes=2, grid=(4,))
