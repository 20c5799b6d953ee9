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
def test_without_reach_it_is_pointwise():
    mixer, x = create_mixer("tnn", 4, rpe_width=8, decay=0.0), torch.randn(1, 6, 4)
    whole = mixer(x)[0]
    for t in range(6):
        torch.testing.assert_close(mixer(x[:, t : t + 1])[0], whole[:, t : t + 1])
