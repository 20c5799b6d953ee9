"""The delta rule as a memory: what it overwrites, what it recalls, how far it can grow, and how it counts."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore import create_mixer
from ssmcore.functional import chunked_scan
from ssmcore.mixers.matrix_memory import unit


def test_block_equals_the_papers_formulas():
    mixer = create_mixer("deltanet", 8, num_heads=2).double()
    x = torch.randn(2, 10, 8, dtype=torch.float64)
    joined = torch.cat([mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x)], -1)
    joined = F.silu(F.conv1d(F.pad(joined.mT, (3, 0)), mixer.conv1d.weight, groups=24)).mT
    q, k, v = (m.unflatten(-1, (2, 4)) for m in joined.chunk(3, -1))
    q, k = (m / (m.square().sum(-1, keepdim=True) + 1e-6).sqrt() for m in (q, k))
    beta = mixer.b_proj(x).sigmoid()
    S, outputs = torch.zeros(2, 2, 4, 4, dtype=torch.float64), []
    for t in range(10):
        erase = torch.eye(4).double() - beta[:, t, :, None, None] * k[:, t, ..., None] * k[:, t, :, None]
        S = erase @ S + beta[:, t, :, None, None] * k[:, t, ..., None] * v[:, t, :, None]
        outputs.append((S * q[:, t, ..., None]).sum(-2) / 2)
    o = torch.stack(outputs, 1)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(mixer(x)[0], mixer.o_proj(o.flatten(-2)), rtol=1e-10, atol=1e-12)


def test_each_step_adds_at_most_its_value():
    """|S[t]|^2 <= |S[t-1]|^2 + beta |v|^2 for unit keys and beta <= 1. No more: the sum of all is not bounded."""
    torch.manual_seed(0)
    k = F.normalize(torch.randn(1, 60, 2, 5, dtype=torch.float64), dim=-1)
    v, beta = torch.randn(1, 60, 2, 3, dtype=torch.float64), torch.rand(1, 60, 2, dtype=torch.float64)
    state, before = None, torch.zeros(1, 2, dtype=torch.float64)
    for t in range(60):
        at = slice(t, t + 1)
        _, state = chunked_scan(
            k[:, at], k[:, at], v[:, at], beta=beta[:, at], initial_state=state, return_last_state=True
        )
        after = state.square().sum((-1, -2))
        assert (after <= before + beta[:, t] * v[:, t].square().sum(-1) + 1e-12).all()
        before = after


def test_twice_the_correction_counts_modulo_two():
    """beta = 2 along one key reflects the state: its sign tells the parity of the number of such steps."""
    ones = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 1], dtype=torch.float64)
    k = torch.ones(1, 10, 1, 1, dtype=torch.float64)
    start = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    o = chunked_scan(k, k, torch.zeros_like(k), beta=2 * ones[None, :, None], initial_state=start, chunk=4)
    torch.testing.assert_close(o.flatten(), 1 - 2 * (ones.cumsum(0) % 2))


def test_unit_vectors():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    y = unit(x)
    torch.testing.assert_close(y.detach(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]), rtol=1e-6, atol=0)
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("beta_max", [0, -1, 2.5])
def test_bad_options(beta_max):
    with pytest.raises(ValueError, match="beta_max"):
        create_mixer("deltanet", 8, beta_max=beta_max)


def test_orthonormal_keys_are_recalled_and_overwritten_exactly():
    """With full strength and no decay a memory of n keys is a dictionary of n entries."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator))[0]
    values = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    k = torch.cat([keys, keys[[1, 4]]])[None, :, None]
    _, memory = chunked_scan(k, k, values[None, :, None], beta=torch.ones(1, 8, 1).double(), return_last_state=True)
    want = values[[0, 6, 2, 3, 7, 5]]
    torch.testing.assert_close(keys @ memory[0, 0], want, rtol=0, atol=1e-14)
