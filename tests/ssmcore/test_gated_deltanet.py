"""Gated DeltaNet: the order of forgetting and correcting, and its initial decays."""

import torch
import torch.nn.functional as F

from ssmcore import Stack, create_mixer
from ssmcore.functional import chunked_scan


def test_the_error_is_measured_after_the_decay():
    """S' = alpha S first, then the value that S' holds for the key is corrected."""
    k = F.normalize(torch.randn(1, 1, 1, 3, dtype=torch.float64), dim=-1)
    v, S = torch.randn(1, 1, 1, 2, dtype=torch.float64), torch.randn(1, 1, 3, 2, dtype=torch.float64)
    alpha, beta = torch.tensor(0.5).double(), torch.full((1, 1, 1), 0.7, dtype=torch.float64)
    _, last = chunked_scan(
        k, k, v, log_decay=alpha.log().expand(1, 1, 1), beta=beta, initial_state=S, return_last_state=True
    )
    key, faded = k[0, 0, 0], 0.5 * S[0, 0]
    want = faded + 0.7 * torch.outer(key, v[0, 0, 0] - key @ faded)
    torch.testing.assert_close(last[0, 0], want, rtol=1e-12, atol=1e-14)


def test_decay_by_its_formula():
    mixer = create_mixer("gated_deltanet", 8, num_heads=2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    want = (-mixer.A_log.exp() * F.softplus(mixer.a_proj(x) + mixer.dt_bias)).exp()
    torch.testing.assert_close(mixer.log_decay(x).exp(), want, rtol=1e-12, atol=0)


def test_initial_values_survive_the_stack():
    mixer = Stack(64, "gated_deltanet", mixers={"gated_deltanet": {"num_heads": 8}}).mixers[0]
    step = F.softplus(mixer.dt_bias)
    assert step.min() >= 1e-3 * (1 - 1e-4)
    assert step.max() <= 0.1 * (1 + 1e-4)
    assert mixer.A_log.exp().max() <= 16
    assert mixer.param_spec().keys() == {"A_log", "dt_bias"}
