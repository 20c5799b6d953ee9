"""H3: with a shift of one tap and an integrator it is linear attention."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.functional import chunked_scan
from ssmcore.mixer import Context


@pytest.mark.parametrize("p", [1, 2])
@torch.no_grad()
def test_an_integrator_is_linear_attention(p):
    mixer, x = create_mixer("h3", 4, d_state=2, d_shift=3, head_dim=p).double(), torch.randn(2, 12, 4).double()
    mixer.shift.weight.zero_()
    mixer.shift.weight[..., -1] = 1.0
    mixer.A_log.fill_(-60.0)  # a sum of the past: no decay, no turn, a step of 1
    mixer.A_imag.zero_()
    mixer.log_dt.zero_()
    mixer.D.zero_()
    mixer.C.copy_(torch.tensor([0.5, 0.0]).expand_as(mixer.C))
    q, k, v = (proj(x).unflatten(-1, (-1, p)) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    want = mixer.out_proj(chunked_scan(q, k, v).flatten(2))
    for got in (mixer(x)[0], mixer(x, return_state=True)[0]):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_the_shift_reaches_back_as_many_tokens_as_it_has_taps():
    mixer, x = create_mixer("h3", 4, d_state=2, d_shift=3), torch.randn(1, 9, 4)
    k, _ = mixer.shift(mixer.k_proj(x), None, Context())
    keys = mixer.k_proj(x)
    late = [torch.cat([torch.zeros(1, j, 4), keys[:, : 9 - j]], 1) for j in range(3)]
    want = sum(mixer.shift.weight[:, 0, 2 - j] * late[j] for j in range(3))
    torch.testing.assert_close(k, want)


def test_heads_divide_the_channels():
    with pytest.raises(ValueError, match="divide"):
        create_mixer("h3", 4, head_dim=3)
