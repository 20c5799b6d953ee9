"""LDStack: each system is the linear recurrence of its characteristic polynomial."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.mixers.ldstack import initial_roots


@pytest.mark.parametrize("init", ["circle", "chebyshev", "random"])
@torch.no_grad()
def test_a_system_is_its_companion_form(init):
    mixer = create_mixer("ldstack", 1, units=1, d_state=6, init=init).double()
    mixer.D.zero_()
    roots = mixer.exponents().exp()
    polynomial = torch.ones(1, dtype=torch.complex128)
    for root in [*roots, *roots.conj()]:
        longer = torch.zeros(len(polynomial) + 1, dtype=torch.complex128)
        longer[:-1] += polynomial
        longer[1:] -= root * polynomial
        polynomial = longer
    assert polynomial.imag.abs().max() < 1e-12
    K = mixer.kernel(40)[:, 0, 0]
    assert K.abs().max() > 1e-3
    residual = sum(polynomial.real[j] * K[6 - j : 40 - j] for j in range(7))
    assert residual.abs().max() < 1e-10 * K.abs().max()


@torch.no_grad()
def test_the_layer_by_loops():
    """Each system a loop over its conjugate pairs, driven by ones; then their mean, the skip, the nonlinearity."""
    torch.manual_seed(0)
    mixer = create_mixer("ldstack", 4, units=3, d_state=4).double()
    x = torch.randn(9, 4, dtype=torch.float64)
    roots = torch.polar(torch.exp(-mixer.nu_log.exp()), mixer.theta).view(3, 2)
    C = torch.view_as_complex(mixer.C).view(4, 3, 2)
    want = []
    h = torch.zeros(3, 4, dtype=torch.complex128)
    for t in range(9):
        driven = (mixer.p @ x[t])[:, None]
        h = torch.cat([roots, roots.conj()], 1) * h + driven
        y = (torch.cat([C, C.conj()], 2) * h).sum(-1).mean(-1)
        assert y.imag.abs().max() < 1e-12
        want.append(y.real + mixer.D * x[t])
    want = mixer.out_proj(torch.nn.functional.gelu(torch.stack(want)))
    torch.testing.assert_close(mixer(x[None])[0][0], want)


@torch.no_grad()
def test_systems_are_averaged():
    mixer = create_mixer("ldstack", 4, units=3, d_state=2).double()
    B, C = mixer.maps()
    torch.testing.assert_close(B.real, mixer.p)
    torch.testing.assert_close(C, torch.view_as_complex(mixer.C) / 3)
    assert mixer.exponents().real.max() < 0


def test_initial_roots():
    torch.testing.assert_close(initial_roots("circle", 5).abs(), torch.ones(5, dtype=torch.float64))
    nodes = initial_roots("chebyshev", 4).real
    x = torch.tensor(nodes.tolist(), dtype=torch.float64)
    assert (8 * x**4 - 8 * x**2 + 1).abs().max() < 1e-12  # T_4
    assert (initial_roots("random", 6).imag >= -1e-12).all()
    with pytest.raises(ValueError, match="init"):
        initial_roots("square", 2)
