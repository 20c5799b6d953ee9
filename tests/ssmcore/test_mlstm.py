"""mLSTM: the stabilised form is the plain one, and no gate overflows it."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.mixer import Context


@torch.no_grad()
def test_stabilised_is_plain():
    torch.manual_seed(0)
    mixer = create_mixer("mlstm", 6, num_heads=2, input_bias=0.5).double()
    x = torch.randn(1, 14, 6, dtype=torch.float64)
    q, k, v = (proj(x).unflatten(-1, (2, -1)) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    got, _ = mixer.remember(x, q, k, v, None, Context())
    i, f = mixer.i_proj(x).exp(), mixer.f_proj(x).sigmoid()
    C, n = torch.zeros(2, 3, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    for t in range(14):
        key = k[0, t] / 3**0.5
        C = f[0, t, :, None, None] * C + i[0, t, :, None, None] * key[:, :, None] * v[0, t, :, None, :]
        n = f[0, t, :, None] * n + i[0, t, :, None] * key
        size = (n * q[0, t]).sum(-1).abs().clamp(min=1)
        want = torch.einsum("hnp,hn->hp", C, q[0, t]) / size[:, None]
        torch.testing.assert_close(got[0, t], want)


@torch.no_grad()
def test_the_layer_around_it():
    """Each head normalised by its root mean square, an output gate, the output map."""
    torch.manual_seed(0)
    mixer, x = create_mixer("mlstm", 6, num_heads=2, input_bias=0.5).double(), torch.randn(1, 9, 6, dtype=torch.float64)
    q, k, v = (proj(x).unflatten(-1, (2, -1)) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    h, _ = mixer.remember(x, q, k, v, None, Context())
    h = h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.o_norm.weight
    torch.testing.assert_close(mixer(x)[0], mixer.o_proj(h.flatten(-2) * mixer.g_proj(x).sigmoid()))


@pytest.mark.parametrize("size", [50.0, -50.0])
@torch.no_grad()
def test_gates_of_any_size_are_finite(size):
    mixer = create_mixer("mlstm", 4, input_bias=size, forget_bias=(-size, size))
    y, state = mixer(torch.randn(1, 30, 4), return_state=True)
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(t).all() for t in state.values())
