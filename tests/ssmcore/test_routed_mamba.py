"""Mamba along routes: one route is Mamba, two are its sum with a flipped one, grids are permutations by hand."""

import pytest
import torch

from ssmcore import Stack, create_mixer
from ssmcore.mixer import Unsupported, config_of
from ssmcore.mixers.routed_mamba import RoutedMamba, RoutedMambaConfig
from ssmcore.orders import inverse, order


def routed(d=8, **options):
    return RoutedMamba(d, config_of(RoutedMamba, options))


def mamba_of(mixer, i):
    """The Mamba that route i of a mixer is, weights shared in value."""
    mamba = create_mixer("mamba", mixer.d_model, d_state=mixer.config.d_state)
    names = {f"convs.{i}.": "conv1d.", f"scans.{i}.": "", "in_proj": "in_proj", "out_proj": "out_proj"}
    weights = {}
    for key, value in mixer.state_dict().items():
        for prefix, ours in names.items():
            if key.startswith(prefix):
                weights[ours + key.removeprefix(prefix)] = value
    mamba.load_state_dict(weights)
    return mamba


def test_one_route_is_mamba():
    mixer, x = routed(routes=("raster",), d_state=4), torch.randn(2, 9, 8)
    torch.testing.assert_close(mixer(x)[0], mamba_of(mixer, 0)(x)[0])


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_two_routes_are_two_mambas(combine):
    mixer, x = routed(d_state=4, combine=combine), torch.randn(2, 9, 8)
    want = mamba_of(mixer, 0)(x)[0] + mamba_of(mixer, 1)(x.flip(1))[0].flip(1)
    torch.testing.assert_close(mixer(x)[0], want / (2 if combine == "mean" else 1))


@pytest.mark.parametrize("name", ["column", "window2", "snake_column"])
def test_routes_over_a_grid(name):
    mixer, x, there = routed(routes=(name, f"{name}_reversed"), d_state=4), torch.randn(2, 12, 8), order(name, 3, 4)
    ahead = mamba_of(mixer, 0)(x[:, there])[0]
    back = mamba_of(mixer, 1)(x[:, there].flip(1))[0].flip(1)
    want = ((ahead + back) / 2)[:, inverse(there)]
    torch.testing.assert_close(mixer(x, shared={"grid": (3, 4)})[0], want)
    with pytest.raises(ValueError, match="grid"):
        mixer(x)
    with pytest.raises(Unsupported):
        mixer(x, mask=torch.ones(2, 12, dtype=torch.bool), shared={"grid": (3, 4)})


def test_rows_are_apart_in_both_directions():
    mixer, x = routed(), torch.randn(2, 9, 8)
    reset, mask = torch.zeros(2, 9, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)
    reset[0, 4], mask[1, 6:], mask[1, 0] = True, False, False
    y, _ = mixer(x, reset=reset, mask=mask)
    torch.testing.assert_close(y[:1], torch.cat([mixer(x[:1, :4])[0], mixer(x[:1, 4:])[0]], 1))
    torch.testing.assert_close(y[1:, 1:6], mixer(x[1:, 1:6])[0])
    assert (y[1, 6:] == 0).all()


def test_gradients():
    mixer = routed(4, d_state=2).double()
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: mixer(t)[0], x)
    mixer(x)[0].sum().backward()
    assert all(p.grad is not None for p in mixer.parameters())


def test_optimiser_s_hints_name_parameters():
    mixer = routed()
    names = dict(mixer.named_parameters())
    assert set(mixer.param_spec()) <= set(names)
    assert {"scans.1.A_log", "scans.0.D", "scans.1.dt_proj.bias"} <= set(mixer.param_spec())


def test_stands_in_a_stack():
    stack = Stack(8, "two_way*2", mixers={"two_way": lambda d: RoutedMamba(d)})
    assert not stack.causal
    assert stack(torch.randn(2, 5, 8))[0].shape == (2, 5, 8)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="routes is empty"):
        RoutedMamba(8, RoutedMambaConfig(routes=()))
    with pytest.raises(ValueError, match="combine"):
        RoutedMamba(8, RoutedMambaConfig(combine="max"))
    with pytest.raises(Unsupported):
        routed()(torch.randn(1, 3, 8), return_state=True)
