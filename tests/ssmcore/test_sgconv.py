"""SGConv: how long its kernel is, how its pieces are stretched and weakened."""

import pytest
import torch

from ssmcore import create_mixer


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
def test_the_norm_is_frozen():
    mixer = create_mixer("sgconv", 2, l_max=16, d_kernel=4)
    before = mixer.kernels().clone()
    mixer.taps.mul_(2)
    torch.testing.assert_close(mixer.kernels(), 2 * before)


def test_parameters_grow_with_the_logarithm_of_the_length():
    count = {l: create_mixer("sgconv", 2, l_max=l, d_kernel=4).taps.numel() for l in (16, 1024)}
    assert count == {16: 3 * 4 * 2, 1024: 9 * 4 * 2}
