"""Liquid-S4: degree one is S4D, the exact form is its expansion in products, nothing sees the future."""

import itertools

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.mixer import Context


def pair(**options):
    """A Liquid-S4 and the S4D of the same weights."""
    torch.manual_seed(0)
    liquid = create_mixer("liquid_s4", 3, d_state=4, **options).double()
    s4d = create_mixer("s4d", 3, d_state=4).double()
    s4d.load_state_dict(liquid.state_dict())
    return liquid, s4d


X = torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def subsets(items):
    return itertools.chain.from_iterable(itertools.combinations(items, r) for r in range(len(items) + 1))


def core(mixer, x=X):
    return mixer.core(x, None, Context(return_state=True))[0]


@pytest.mark.parametrize("mode", ["kb", "pb"])
def test_degree_one_is_s4d(mode):
    liquid, s4d = pair(mode=mode, degree=1)
    torch.testing.assert_close(core(liquid), core(s4d), rtol=1e-12, atol=1e-14)


@torch.no_grad()
def test_the_exact_form_is_its_expansion():
    """h[t] = sum over s of prod over s < i <= t of (a + w u[i]) w u[s], multiplied out over all subsets."""
    liquid, _ = pair(mode="exact", most=0.9999999)
    liquid.log_dt.fill_(-3.0)
    x = X / 10  # so small that nothing is cut
    A, _, C, dt = liquid.continuous()
    a = (dt[:, None] * A).exp()
    w = (a - 1) / A
    u = x[..., None]
    want = liquid.D * x
    for t in range(7):
        h = torch.zeros_like(a * u[:, 0])
        for s in range(t + 1):
            later = range(s + 1, t + 1)
            for chosen in subsets(later):
                term = w * u[:, s]
                for i in later:
                    term = term * (w * u[:, i] if i in chosen else a)
                h = h + term
        want[:, t] += 2 * (h * C).sum(-1).real
    torch.testing.assert_close(core(liquid, x), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["kb", "pb"])
@torch.no_grad()
def test_products_by_definition(mode):
    liquid, s4d = pair(mode=mode, degree=3)
    A, _, C, dt = liquid.continuous()
    a = (dt[:, None] * A).exp()
    w = (a - 1) / A
    want = core(s4d)
    for p in (2, 3):
        product = X.clone()
        for i in range(1, p):
            product = product * torch.cat([torch.zeros(2, i, 3), X[:, : 7 - i]], 1)
        for t in range(7):
            for s in range(t + 1) if mode == "kb" else [t]:
                tap = 2 * (C * a ** (t - s) * w**p).sum(-1).real
                want[:, t] += tap * product[:, s]
    torch.testing.assert_close(core(liquid), want, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_no_input_makes_the_exact_form_grow():
    liquid, _ = pair(mode="exact")
    x = torch.full((1, 4000, 3), 1e3, dtype=torch.float64)
    y = core(liquid, x)
    assert torch.isfinite(y).all()
    assert y[:, 2000:].abs().max() <= 2 * y[:, :2000].abs().max()


def test_bad_options():
    with pytest.raises(ValueError, match="mode"):
        create_mixer("liquid_s4", 4, mode="both")
