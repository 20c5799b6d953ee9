"""RWKV-6 one token at a time, as its equations read; its first weights as the published code draws them."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore import create_mixer


@torch.no_grad()
def test_the_equations_token_by_token():
    torch.manual_seed(0)
    mixer = create_mixer("rwkv6", 6, num_heads=2, rank=2, decay_rank=2, layer_index=1, num_layers=3).double()
    for p in (mixer.lora_in, mixer.lora_out, mixer.w_map.down, mixer.w_map.up):
        torch.nn.init.normal_(p)
    x = torch.randn(1, 12, 6, dtype=torch.float64)
    past, S, want = torch.zeros(6, dtype=torch.float64), torch.zeros(2, 3, 3, dtype=torch.float64), []
    for t in range(12):
        now, step = x[0, t], past - x[0, t]
        inner = torch.tanh((now + step * mixer.mix_x) @ mixer.lora_in).view(5, 2)
        w, k, v, r, g = (now + step * (mixer.mixes[i] + inner[i] @ mixer.lora_out[i]) for i in range(5))
        decay = torch.exp(-torch.exp(mixer.decay + torch.tanh(w @ mixer.w_map.down) @ mixer.w_map.up)).view(2, 3)
        k, v, r = (proj(t_).view(2, 3) for proj, t_ in ((mixer.k_proj, k), (mixer.v_proj, v), (mixer.r_proj, r)))
        written = k[:, :, None] * v[:, None, :]
        o = torch.einsum("hnp,hn->hp", S + mixer.bonus[:, :, None] * written, r)
        S = decay[:, :, None] * S + written
        o = F.layer_norm(o, (3,), eps=64e-5).flatten() * mixer.norm_weight + mixer.norm_bias
        want.append(mixer.out_proj(o * F.silu(mixer.g_proj(g))))
        past = now
    y, state = mixer(x, return_state=True)
    torch.testing.assert_close(y[0], torch.stack(want))
    torch.testing.assert_close(state["memory"][0], S)


@torch.no_grad()
def test_the_first_weights_follow_channel_and_depth():
    """RWKV-LM, RWKV_Tmix_x060, layer 1 of 4."""
    mixer = create_mixer("rwkv6", 12, num_heads=3, layer_index=1, num_layers=4)
    for n in range(12):
        assert mixer.decay[n].item() == pytest.approx(-6 + 5 * (n / 11) ** (0.7 + 1.3 / 3), abs=1e-5)
        bonus = (1 - n / 11) / 3 + 0.1 * ((n + 1) % 3 - 1)
        assert mixer.bonus.flatten()[n].item() == pytest.approx(bonus, abs=1e-5)
        ramp = (n / 12) ** 0.75
        want = [1 - ramp, 1 - ramp, 1 - ramp - 0.1, 1 - (n / 12) ** 0.375, 1 - (n / 12) ** 0.375]
        assert mixer.mixes[:, n].tolist() == pytest.approx(want, abs=1e-5)
    assert (mixer.norm_weight == 0.5**0.7).all()
    x = torch.randn(1, 5, 12)
    torch.testing.assert_close(mixer.w_map(x), torch.zeros(1, 5, 12))
    assert mixer.w_map.up.abs().max() <= 0.01
