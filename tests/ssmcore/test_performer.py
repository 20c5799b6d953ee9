"""Performer: its features are an unbiased estimate of the softmax kernel, and its sums are what it computes."""

import torch

from ssmcore import create_mixer
from ssmcore.mixer import Context
from ssmcore.mixers.performer import orthogonal_normal


def test_directions_are_orthogonal_with_the_lengths_of_normal_vectors():
    w = orthogonal_normal(6, 4)
    block = w[:4] @ w[:4].T
    torch.testing.assert_close(block, torch.diag(block.diagonal()), rtol=0, atol=1e-4)
    lengths = torch.stack([orthogonal_normal(4, 4).square().sum(1) for _ in range(600)])
    assert abs(lengths.mean() - 4) < 0.2  # chi squared with 4 degrees of freedom
    assert abs(lengths.var() - 8) < 1.5


@torch.no_grad()
def test_features_estimate_the_softmax_kernel_without_bias():
    q, k = torch.randn(8) / 2, torch.randn(8) / 2
    want = torch.exp(q @ k / 8**0.5).item()
    draws = []
    for seed in range(200):
        torch.manual_seed(seed)
        mixer = create_mixer("performer", 8, features=16)
        phi_q, phi_k = (mixer.features(t.view(1, 1, 1, 8)) for t in (q, k))
        draws.append((phi_q * phi_k).sum().item())
    draws = torch.tensor(draws)
    error = draws.std() / 200**0.5
    assert abs(draws.mean() - want) < 3 * error
    assert error < 0.1 * want


@torch.no_grad()
def test_the_sums_by_definition():
    mixer, x = create_mixer("performer", 4, features=5).double(), torch.randn(2, 9, 4, dtype=torch.float64)
    q, k, v = (proj(x).unflatten(-1, (1, 4)) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    weights = torch.einsum("bthm,bshm->bhts", mixer.features(q), mixer.features(k)).tril()
    want = torch.einsum("bhts,bshp->bthp", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(mixer.remember(x, q, k, v, None, Context())[0], want)
