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


@pytest.mark.parametrize("p", [1, 2])
@torch.no_grad()
def test_the_layer_by_loops(p):
    """Shift as a sum over taps, the outer product of a head, S4D by its zero-order hold, the query's product."""
    torch.manual_seed(0)
    mixer, l = create_mixer("h3", 4, d_state=6, d_shift=3, head_dim=p).double(), 10
    x = torch.randn(l, 4, dtype=torch.float64)
    q, k, v = (x @ proj.weight.T + proj.bias for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    taps = mixer.shift.weight[:, 0].flip(-1)  # the newest first
    late = torch.stack([sum(taps[:, j] * k[t - j] for j in range(3) if j <= t) for t in range(l)])
    poles = torch.complex(-mixer.A_log.exp(), mixer.A_imag)
    a = (poles * mixer.log_dt.exp()[:, None]).exp()
    b, C = (a - 1) / poles, torch.view_as_complex(mixer.C)
    y = torch.zeros(l, 4, dtype=torch.float64)
    for h in range(4 // p):
        at = slice(p * h, p * h + p)
        state = torch.zeros(p, p, 3, dtype=torch.complex128)
        for t in range(l):
            product = torch.outer(late[t, at], v[t, at])
            state = a[h] * state + b[h] * product[..., None]
            s = 2 * (state * C[h]).sum(-1).real + mixer.D[h] * product
            y[t, at] = s.T @ q[t, at]
    torch.testing.assert_close(mixer(x[None])[0][0], y @ mixer.out_proj.weight.T + mixer.out_proj.bias)


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
