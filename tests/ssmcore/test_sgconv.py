"""SGConv: how long its kernel is, how its pieces are stretched and weakened."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.mixer import Context


@pytest.mark.parametrize(
    ("l_max", "d_kernel", "length"), [(4, 4, 4), (20, 4, 32), (33, 4, 64), (5, 32, 32), (1024, 32, 1024)]
)
def test_length_and_norm(l_max, d_kernel, length):
    mixer = create_mixer("sgconv", 3, l_max=l_max, d_kernel=d_kernel)
    kernel = mixer.kernels()[0]
    assert kernel.shape == (length, 3)
    assert length == d_kernel * 2 ** (mixer.scales - 1)
    torch.testing.assert_close(kernel.norm(dim=0), torch.ones(3))
    assert (mixer.kernel(length + 10)[length:] == 0).all()


@torch.no_grad()
def test_pieces_by_hand():
    mixer = create_mixer("sgconv", 1, l_max=12, d_kernel=3, stretch="nearest", decay_min=3.0, decay_max=3.0)
    mixer.taps[0, :, :, 0] = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    mixer.scale.fill_(1.0)
    want = [9.0, 18, 27, 12, 15, 18, 7, 7, 8, 8, 9, 9]
    assert mixer.kernels()[0, :, 0].tolist() == want


@torch.no_grad()
def test_the_layer_by_loops():
    """Taps stretched by straight lines between their middles, pieces weaker by the channel's decay; then the sum."""
    torch.manual_seed(0)
    mixer, l = create_mixer("sgconv", 2, l_max=12, d_kernel=3, decay_min=2.0, decay_max=3.0).double(), 12
    want = torch.zeros(l, 2, dtype=torch.float64)
    for c, decay in enumerate((2.0, 3.0)):
        taps, kernel = mixer.taps[0, :, :, c], []
        for s in range(3):
            factor = 2 ** max(0, s - 1)
            for i in range(3 * factor):
                place = min(max((i + 0.5) / factor - 0.5, 0), 2)
                low = int(place)
                high = min(low + 1, 2)
                value = taps[s, low] + (taps[s, high] - taps[s, low]) * (place - low)
                kernel.append(value * decay ** (3 - s - 1))
        want[:, c] = torch.stack(kernel)
    torch.testing.assert_close(mixer.kernels()[0], want * mixer.scale[0])
    x = torch.randn(l, 2, dtype=torch.float64)
    want = want * mixer.scale[0]
    y = torch.stack([sum(want[s] * x[t - s] for s in range(t + 1)) for t in range(l)]) + mixer.D * x
    torch.testing.assert_close(mixer.core(x[None], None, Context())[0][0], y)


@torch.no_grad()
def test_the_norm_is_frozen():
    mixer = create_mixer("sgconv", 2, l_max=16, d_kernel=4)
    before = mixer.kernels().clone()
    mixer.taps.mul_(2)
    torch.testing.assert_close(mixer.kernels(), 2 * before)


def test_parameters_grow_with_the_logarithm_of_the_length():
    count = {l: create_mixer("sgconv", 2, l_max=l, d_kernel=4).taps.numel() for l in (16, 1024)}
    assert count == {16: 3 * 4 * 2, 1024: 9 * 4 * 2}
