"""Retention: its closed kernel, and positions that only count as distances."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.functional import chunked_scan
from ssmcore.mixer import Context
from ssmcore.mixers.retnet import turn


def weights_of(mixer, x, state=None):
    q, k, v = (m(x).unflatten(-1, (mixer.num_heads, -1)) for m in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    return mixer.weigh(x, q, k, v, state, Context())


def test_weights_are_powers_of_the_decay_times_rotated_products():
    mixer = create_mixer("retnet", 8, num_heads=2).double()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    got = chunked_scan(*weights_of(mixer, x)[:3], log_decay=weights_of(mixer, x).log_decay)
    q, k, v = (m(x).unflatten(-1, (2, -1)) for m in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    frequency = 10000.0 ** -torch.tensor([0.0, 0.5], dtype=torch.float64)
    want = torch.zeros_like(v)
    for t in range(9):
        for s in range(t + 1):
            turned = turn(q[:, t : t + 1], ((t - s) * frequency).expand(1, 1, 2, 2))[:, 0]
            gamma = torch.tensor([1 - 1 / 32, 1 - 1 / 64], dtype=torch.float64) ** (t - s)
            want[:, t] += ((turned * k[:, s]).sum(-1) / 2 * gamma)[..., None] * v[:, s]
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_only_distances_count():
    """A sequence that starts late, on an empty memory, gives the same outputs."""
    mixer = create_mixer("retnet", 8).double()
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    late = {**mixer.init_state(2), "pos": torch.tensor([1000, 7])}
    y, state = mixer(x, late)
    torch.testing.assert_close(y, mixer(x)[0], rtol=1e-9, atol=1e-11)
    assert state["pos"].tolist() == [1012, 19]


def test_odd_keys_cannot_be_turned():
    with pytest.raises(ValueError, match="width 5"):
        create_mixer("retnet", 5)
    create_mixer("retnet", 5, rope_base=None)
    with pytest.raises(ValueError, match="3 heads do not divide 8"):
        create_mixer("retnet", 8, num_heads=3)
