"""RWKV-7: its scan as its equation reads, its decays, values passed from the first layer on, counting modulo 2."""

import math

import pytest
import torch

from ssmcore import Stack, create_mixer
from ssmcore.mixers.rwkv7 import erasing_scan


def steps(l, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v, erase, find = (torch.randn(2, l, 2, 3, dtype=torch.float64, generator=generator) for _ in range(5))
    w = -math.exp(-0.5) * torch.rand(2, l, 2, 3, dtype=torch.float64, generator=generator)
    find = torch.nn.functional.normalize(find, dim=-1)
    return q, k, v, w, erase.sigmoid() * find, find


@pytest.mark.parametrize("l", [1, 31, 32, 33, 70])
def test_the_scan_is_its_loop(l):
    q, k, v, w, erase, find = given = steps(l)
    S = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    o, last = erasing_scan(given, S)
    for t in range(l):
        found = torch.einsum("bhnp,bhn->bhp", S, find[:, t])
        S = w[:, t].exp()[..., None] * S - erase[:, t, :, :, None] * found[:, :, None]
        S = S + k[:, t, :, :, None] * v[:, t, :, None]
        torch.testing.assert_close(o[:, t], torch.einsum("bhnp,bhn->bhp", S, q[:, t]))
    torch.testing.assert_close(last, S)


@torch.no_grad()
def test_the_strongest_decays_are_exact_in_single_precision():
    given = tuple(t.float() for t in steps(200))
    given = (*given[:3], torch.full_like(given[3], -0.606), *given[4:])
    o, _ = erasing_scan(given, None)
    want, _ = erasing_scan(tuple(t.double() for t in given), None)
    assert (o - want).abs().max() < 1e-4 * want.abs().max()


@torch.no_grad()
def test_decays_lie_above_a_half():
    mixer = create_mixer("rwkv7", 8, rank=2)
    for bias in (-50.0, 50.0):
        mixer.w_map.bias.fill_(bias)
        w = torch.exp(-math.exp(-0.5) * mixer.w_map(torch.randn(1, 3, 8)).sigmoid())
        assert (w >= 0.545).all()
        assert (w <= 1.0).all()


@torch.no_grad()
def test_a_flip_counts_modulo_two():
    """Decay 1, strength 2: each token with a one turns the memory's sign, which no positive decay can."""
    ones = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.float64)
    find = torch.zeros(1, 6, 1, 2, dtype=torch.float64)
    find[..., 0] = 1
    zeros = torch.zeros_like(find)
    o, _ = erasing_scan(
        (find, zeros, zeros, zeros, 2 * ones.view(1, 6, 1, 1) * find, find), torch.ones(1, 1, 2, 2).double()
    )
    torch.testing.assert_close(o[0, :, 0, 0], 1 - 2 * (ones.cumsum(0) % 2))


@torch.no_grad()
def test_the_equations_token_by_token():
    """A later layer, with the paper's state of values by keys: S (Diag(w) - k^ (k^ a)^T) + v k~^T."""
    torch.manual_seed(0)
    mixer = create_mixer("rwkv7", 6, num_heads=2, rank=2, layer_index=1, num_layers=3).double()
    for p in mixer.parameters():
        if p.abs().max() < 1e-6:
            torch.nn.init.normal_(p, std=0.5)
    x, first = torch.randn(2, 1, 12, 6, dtype=torch.float64)
    past, S, want = torch.zeros(6, dtype=torch.float64), torch.zeros(2, 3, 3, dtype=torch.float64), []
    for t in range(12):
        now, past = x[0, t], (past if t == 0 else x[0, t - 1])
        w, k, v, r, a, g = (now + (past - now) * mix for mix in mixer.mixes)
        decay = torch.exp(
            -(math.e**-0.5) * (mixer.w_map.bias + (w @ mixer.w_map.down).tanh() @ mixer.w_map.up).sigmoid()
        )
        rate = (mixer.a_map.bias + a @ mixer.a_map.down @ mixer.a_map.up).sigmoid()
        gate = (g @ mixer.g_map.down).sigmoid() @ mixer.g_map.up
        share = (mixer.v_map.bias + v @ mixer.v_map.down @ mixer.v_map.up).sigmoid()
        k, v, r = mixer.k_proj.weight @ k, mixer.v_proj.weight @ v, mixer.r_proj.weight @ r
        v = v + (first[0, t] - v) * share
        out = []
        for h in range(2):
            at = slice(3 * h, 3 * h + 3)
            kk = (k * mixer.k_k)[at]
            kk = kk / kk.norm()
            key = (k * (1 + (rate - 1) * mixer.k_a))[at]
            S[h] = S[h] @ (torch.diag(decay[at]) - torch.outer(kk, kk * rate[at])) + torch.outer(v[at], key)
            o = S[h] @ r[at]
            o = (o - o.mean()) / (o.var(correction=0) + 64e-5).sqrt() * mixer.norm_weight[at] + mixer.norm_bias[at]
            out.append(o + (r[at] * key * mixer.r_k[h]).sum() * v[at])
        want.append(mixer.out_proj.weight @ (torch.cat(out) * gate))
    y, state = mixer(x, shared={"v_first": first}, return_state=True)
    torch.testing.assert_close(y[0], torch.stack(want))
    torch.testing.assert_close(state["memory"][0], S.mT)


def test_later_layers_need_the_first_ones_values():
    torch.manual_seed(0)
    stack = Stack(8, "rwkv7/rwkv_channel_mix*3", mixers={"rwkv7": {"rank": 2, "num_heads": 2}})
    assert [bool(m.exports) for m in stack.mixers[::2]] == [True, False, False]
    assert not stack.needs
    for module in stack.modules():
        if isinstance(module, torch.nn.Linear) and module.weight.abs().max() == 0:
            torch.nn.init.normal_(module.weight, std=0.3)
    x = torch.randn(2, 9, 8)
    y, state = stack(x, return_state=True)
    before, ys = stack.init_state(2), []
    for t in range(9):
        y_t, before = stack.step(x[:, t], before)
        ys.append(y_t)
    torch.testing.assert_close(torch.stack(ys, 1), y, rtol=1e-4, atol=1e-5)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[:, 4] = True
    cut = torch.cat([stack(x[:, :4])[0], stack(x[:, 4:])[0]], 1)
    torch.testing.assert_close(stack(x, reset=reset)[0], cut, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="v_first"):
        create_mixer("rwkv7", 8, layer_index=1, num_layers=2)(x)


@torch.no_grad()
def test_the_first_weights_follow_channel_and_depth():
    """RWKV-LM, RWKV_Tmix_x070, layer 2 of 4, heads of 4."""
    mixer = create_mixer("rwkv7", 12, num_heads=3, layer_index=2, num_layers=4)
    for n in range(12):
        linear, zigzag = n / 11 - 0.5, ((n % 4) - 1.5) / 1.5
        zigzag *= abs(zigzag)
        decay = -6 + 6 * (n / 11) ** (1 + (2 / 3) ** 0.3) + 0.5 + 2.5 * zigzag
        assert mixer.w_map.bias[n].item() == pytest.approx(decay, abs=1e-5)
        assert mixer.a_map.bias[n].item() == pytest.approx(-0.19 + 0.3 * zigzag + 0.4 * linear, abs=1e-5)
        assert mixer.v_map.bias[n].item() == pytest.approx(0.73 - 0.4 * linear, abs=1e-5)
        assert mixer.k_k[n].item() == pytest.approx(0.71 - 0.1 * linear, abs=1e-5)
    assert (mixer.norm_weight == 0.75**0.7).all()
    assert [m.down.shape[1] for m in (mixer.w_map, mixer.a_map, mixer.v_map, mixer.g_map)] == [32] * 4
    wide = create_mixer("rwkv7", 768, layer_index=1, num_layers=12)
    assert [m.down.shape[1] for m in (wide.w_map, wide.a_map, wide.v_map, wide.g_map)] == [64, 64, 32, 128]
