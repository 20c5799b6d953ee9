"""RWKV-4 against the sums it stands for, with keys that no exponential survives; and its channel mixer."""

import torch

from ssmcore import create_mixer
from ssmcore.mixer import Context
from ssmcore.token_shift import last_token, previous


@torch.no_grad()
def test_the_average_is_the_direct_sum():
    mixer, l = create_mixer("rwkv4", 3).double(), 15
    k, v = 8 * torch.randn(2, l, 3, dtype=torch.float64), torch.randn(2, l, 3, dtype=torch.float64)
    got, left = mixer.average(k, v, mixer.init_state(2), torch.tensor([l, 6]))
    w, u = mixer.decay.exp(), mixer.bonus
    for t in range(l):
        exponent = torch.stack([k[:, i] - (t - 1 - i) * w for i in range(t)] + [u + k[:, t]], 1)
        weight = exponent.softmax(1)
        torch.testing.assert_close(got[:, t], (weight * v[:, : t + 1]).sum(1))
    for row, length in enumerate((l, 6)):
        exponent = torch.stack([k[row, i] - (length - 1 - i) * w for i in range(length)])
        torch.testing.assert_close(left["top"][row] + left["den"][row].log(), exponent.logsumexp(0))


@torch.no_grad()
def test_keys_of_any_size_are_finite():
    mixer = create_mixer("rwkv4", 2)
    for size in (60.0, -60.0, 1e4):
        k = torch.full((1, 30, 2), size)
        k[:, ::3] *= -1
        y, left = mixer.average(k, torch.randn(1, 30, 2), mixer.init_state(1), torch.tensor([30]))
        assert torch.isfinite(y).all()
        assert all(torch.isfinite(t).all() for t in left.values())


@torch.no_grad()
def test_the_channel_mixer_by_hand():
    mixer, x = create_mixer("rwkv_channel_mix", 4, layer_index=1, num_layers=2), torch.randn(1, 6, 4)
    past = torch.cat([torch.zeros(1, 1, 4), x[:, :-1]], 1)
    k = mixer.mix_k * x + (1 - mixer.mix_k) * past
    r = mixer.mix_r * x + (1 - mixer.mix_r) * past
    want = mixer.r_proj(r).sigmoid() * mixer.v_proj(mixer.k_proj(k).relu() ** 2)
    torch.testing.assert_close(mixer(x)[0], want)
    torch.testing.assert_close(mixer(x, return_state=True)[1]["shift"], x[:, -1])


def test_the_shift_of_a_plain_batch():
    x, before = torch.randn(2, 3, 4), torch.randn(2, 4)
    got = previous(x, before, Context())
    torch.testing.assert_close(got, torch.cat([before[:, None], x[:, :2]], 1))
    torch.testing.assert_close(previous(x, None, Context())[:, 0], torch.zeros(2, 4))
    torch.testing.assert_close(last_token(x, before, Context()), x[:, 2])
