"""KDA: each channel of the keys forgets by itself."""

import torch
import torch.nn.functional as F

from ssmcore import create_mixer


def test_block_equals_the_papers_formulas():
    mixer = create_mixer("kda", 8, num_heads=2, rank=3).double()
    x = torch.randn(2, 10, 8, dtype=torch.float64)
    joined = torch.cat([mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x)], -1)
    joined = F.silu(F.conv1d(F.pad(joined.mT, (3, 0)), mixer.conv1d.weight, groups=24)).mT
    q, k, v = (m.unflatten(-1, (2, 4)) for m in joined.chunk(3, -1))
    q, k = (m / (m.square().sum(-1, keepdim=True) + 1e-6).sqrt() for m in (q, k))
    beta = mixer.b_proj(x).sigmoid()
    step = F.softplus(mixer.a_proj(x) + mixer.dt_bias).unflatten(-1, (2, 4))
    alpha = (-mixer.A_log.exp()[:, None] * step).exp()
    S, outputs = torch.zeros(2, 2, 4, 4, dtype=torch.float64), []
    for t in range(10):
        S = alpha[:, t, ..., None] * S
        wrong = v[:, t] - (S * k[:, t, ..., None]).sum(-2)
        S = S + beta[:, t, :, None, None] * k[:, t, ..., None] * wrong[:, :, None]
        outputs.append((S * q[:, t, ..., None]).sum(-2) / 2)
    o = torch.stack(outputs, 1)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    want = mixer.o_proj(o.flatten(-2) * mixer.g_proj(x).sigmoid())
    torch.testing.assert_close(mixer(x)[0], want, rtol=1e-10, atol=1e-12)


def test_maps_of_low_rank():
    mixer = create_mixer("kda", 32, num_heads=2)
    shapes = {name: tuple(p.shape) for name, p in mixer.named_parameters()}
    assert shapes["a_proj.0.weight"] == (16, 32)
    assert shapes["a_proj.1.weight"] == (32, 16)
    assert shapes["g_proj.1.bias"] == (32,)
    assert shapes["dt_bias"] == (32,)
    assert shapes["A_log"] == (2,)
