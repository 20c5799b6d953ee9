"""Gated linear attention by its formula, and the range of its decays."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore import create_mixer


def test_block_equals_the_papers_formulas():
    mixer = create_mixer("gla", 8, num_heads=2, decay_rank=3).double()
    x = torch.randn(2, 10, 8, dtype=torch.float64)
    q, k, v = (m(x).unflatten(-1, (2, -1)) for m in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    alpha = mixer.gk_proj(x).sigmoid().pow(1 / 16).unflatten(-1, (2, -1))
    S, outputs = torch.zeros(2, 2, 2, 4, dtype=torch.float64), []
    for t in range(10):
        S = alpha[:, t, ..., None] * S + k[:, t, ..., None] * v[:, t, :, None]
        outputs.append((S * q[:, t, ..., None]).sum(-2) / 2**0.5)
    o = torch.stack(outputs, 1)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    want = mixer.o_proj(o.flatten(-2) * F.silu(mixer.g_proj(x)))
    torch.testing.assert_close(mixer(x)[0], want, rtol=1e-10, atol=1e-12)


def test_a_hot_gate_remembers():
    """tau without end is linear attention: the state is the plain sum of all outer products."""
    mixer = create_mixer("gla", 8, tau=1e12).double()
    x = torch.randn(1, 20, 8, dtype=torch.float64)
    _, state = mixer(x, return_state=True)
    torch.testing.assert_close(state["memory"][0, 0], mixer.k_proj(x)[0].mT @ mixer.v_proj(x)[0])


def test_bad_options():
    with pytest.raises(ValueError, match="tau=0"):
        create_mixer("gla", 8, tau=0)
