"""TNN: its convolution is the Toeplitz matrix of its network."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore import create_mixer


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("l", [1, 2, 5, 200])
@torch.no_grad()
def test_the_toeplitz_matrix(l, causal):
    mixer = create_mixer("tnn", 2, rpe_width=8, causal=causal, decay=0.9).double()
    x = torch.randn(1, l, 2, dtype=torch.float64)
    distance = torch.arange(l)[:, None] - torch.arange(l)
    T = mixer.weights(distance.flatten()).view(l, l, -1)
    if causal:
        T = T * (distance >= 0)[..., None]
    u, v = F.silu(mixer.u_proj(x)), F.silu(mixer.v_proj(x))
    want = mixer.out_proj(u * torch.einsum("tsd,bsd->btd", T, v))
    torch.testing.assert_close(mixer(x)[0], want)


@torch.no_grad()
def test_weights_are_those_of_the_paper():
    """Three hidden layers of RMS norm and ReLU on the distance as a number, times the decay to its size."""
    mixer = create_mixer("tnn", 2, rpe_width=8, causal=False, decay=0.9).double()
    for p in mixer.rpe.parameters():
        torch.nn.init.normal_(p)
    linear = [m for m in mixer.rpe if isinstance(m, torch.nn.Linear)]
    scale = [m.weight for m in mixer.rpe if not isinstance(m, (torch.nn.Linear, torch.nn.ReLU))]
    assert (len(linear), len(scale)) == (4, 3)
    for distance in (-7, 0, 3):
        h = linear[0].weight[:, 0] * distance + linear[0].bias
        for map_, weight in zip(linear[1:], scale, strict=True):
            h = torch.clamp(h / (h.square().mean() + 1e-5).sqrt() * weight, min=0)
            h = map_.weight @ h + map_.bias
        torch.testing.assert_close(mixer.weights(torch.tensor([distance]))[0], h * 0.9 ** abs(distance))


@torch.no_grad()
def test_without_reach_it_is_pointwise():
    mixer, x = create_mixer("tnn", 4, rpe_width=8, decay=0.0), torch.randn(1, 6, 4)
    whole = mixer(x)[0]
    for t in range(6):
        torch.testing.assert_close(mixer(x[:, t : t + 1])[0], whole[:, t : t + 1])
