"""LRU: its ring, its normalisation, and the S5 that it is."""

import math

import pytest
import torch

from ssmcore import Stack, create_mixer
from ssmcore.mixer import Context


def test_eigenvalues_lie_in_the_ring_and_always_in_the_circle():
    mixer = Stack(4, "lru", mixers={"lru": {"d_state": 500, "r_min": 0.6, "r_max": 0.9, "max_phase": 1.0}}).mixers[0]
    lam = mixer.modes(None)[0]
    assert lam.abs().min() >= 0.6 - 1e-5
    assert lam.abs().max() <= 0.9 + 1e-5
    assert lam.angle().min() >= 0
    assert lam.angle().max() <= 1.0 + 1e-5
    torch.testing.assert_close(mixer.gamma_log.exp(), (1 - lam.abs().square()).sqrt(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        mixer.nu_log.copy_(10 * torch.randn(500))
    assert (mixer.modes(None)[0].abs() <= 1).all()


def test_squared_radii_are_spread_evenly():
    lam = create_mixer("lru", 2, d_state=20000, r_min=0.2, r_max=0.8).modes(None)[0]
    inside = (lam.abs().square() < 0.5 * (0.2**2 + 0.8**2)).float().mean()
    assert abs(inside - 0.5) < 0.02


@pytest.mark.parametrize("radius", [0.5, 0.9, 0.99])
def test_white_noise_gives_a_state_of_unit_variance(radius):
    torch.manual_seed(0)
    mixer = create_mixer("lru", 1, d_state=8, r_min=radius - 1e-4, r_max=radius)
    with torch.no_grad():
        mixer.B_re.fill_(math.sqrt(0.5))
        mixer.B_im.fill_(math.sqrt(0.5))
        state = mixer.init_state(2000)
        for _ in range(4):
            _, state = mixer.core(torch.randn(2000, 250, 1), state, Context(return_state=True))
    torch.testing.assert_close(state["ssm"].abs().square().mean(0), torch.ones(8), rtol=0, atol=0.15)


def as_s5(lru):
    """The S5 with Λ = log λ, Δ = 1 and B = γ Λ / (λ - 1) B_lru. Its read-out has a factor 2 that the LRU's has not."""
    s5 = create_mixer("s5", lru.d_model, d_state=2 * lru.d_state).double()
    Lambda = lru.exponents()
    B, C = lru.maps()
    B = (lru.gamma_log.exp() * Lambda / torch.expm1(Lambda))[:, None] * B
    with torch.no_grad():
        s5.Lambda_log_re.copy_((-Lambda.real).log())
        s5.Lambda_im.copy_(Lambda.imag)
        s5.log_step.zero_()
        s5.B.copy_(torch.view_as_real(B))
        s5.C.copy_(torch.view_as_real(C / 2))
        s5.D.copy_(lru.D)
    return s5


@pytest.mark.parametrize("steps", [False, True])
def test_lru_is_an_s5(steps):
    lru = create_mixer("lru", 5, d_state=7).double()
    s5 = as_s5(lru)
    x = torch.randn(2, 40, 5, dtype=torch.float64)
    ctx = Context(dt=torch.rand(2, 40, dtype=torch.float64) * 2 if steps else None)
    for got, want in zip(lru.core(x, None, ctx), s5.core(x, None, ctx), strict=True):
        if isinstance(got, dict):
            got, want = got["ssm"], want["ssm"]
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_bad_ring():
    with pytest.raises(ValueError, match="r_min"):
        create_mixer("lru", 4, r_min=0.9, r_max=0.5)
