"""HGRN2: input and forget gates that share one budget."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore import Stack, create_mixer
from ssmcore.mixer import Context


def weights_of(mixer, x):
    q, k, v = (m(x).unflatten(-1, (mixer.num_heads, -1)) for m in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    return mixer.weigh(x, q, k, v, None, Context())


@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_forgetting_and_writing_add_up_to_one(gamma):
    mixer = create_mixer("hgrn2", 8, num_heads=2, lower_bound=gamma).double()
    x = 10 * torch.randn(2, 50, 8, dtype=torch.float64)
    weights = weights_of(mixer, x)
    forget = weights.log_decay.exp()
    torch.testing.assert_close(forget + weights.k, torch.ones_like(forget), rtol=1e-12, atol=0)
    assert forget.min() >= gamma
    torch.testing.assert_close(forget, (gamma + (1 - gamma) * mixer.k_proj(x).sigmoid()).unflatten(-1, (2, 4)))


def test_the_memory_is_a_mean_of_values():
    mixer = create_mixer("hgrn2", 8).double()
    x = torch.randn(1, 100, 8, dtype=torch.float64)
    _, state = mixer(x, return_state=True)
    v = mixer.v_proj(x)[0]
    assert (state["memory"][0, 0] <= v.amax(0).clamp(min=0) + 1e-12).all()
    assert (state["memory"][0, 0] >= v.amin(0).clamp(max=0) - 1e-12).all()


def test_a_closed_gate_has_a_gradient():
    """Forget gates near 0, whose logarithm a difference from 1 could not give."""
    mixer = create_mixer("hgrn2", 4)
    with torch.no_grad():
        mixer.k_proj.weight.copy_(-200 * torch.eye(4))
    x = torch.ones(1, 6, 4, requires_grad=True)
    mixer(x)[0].sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters())
    assert F.logsigmoid(mixer.k_proj(x)).max() < -150


def test_bad_options():
    for options in ({"lower_bound": 1.0}, {"layer_index": 4, "num_layers": 4}):
        with pytest.raises(ValueError, match="lower bound is 1"):
            create_mixer("hgrn2", 8, **options)


def test_deep_layers_remember_longer():
    mixers = Stack(8, "hgrn2*4").mixers
    assert [mixer.config.gamma for mixer in mixers] == [0, 0.25, 0.5, 0.75]
    assert Stack(8, "hgrn2*2", mixers={"hgrn2": {"lower_bound": 0.9}}).mixers[0].config.gamma == 0.9


@torch.no_grad()
def test_the_layer_token_by_token():
    """All heads are normalised together, as the published layer does."""
    mixer = create_mixer("hgrn2", 8, num_heads=2, lower_bound=0.3).double()
    torch.nn.init.normal_(mixer.o_norm.weight)
    x = torch.randn(1, 7, 8, dtype=torch.float64)
    S, outputs = torch.zeros(2, 4, 4, dtype=torch.float64), []
    for token in x[0]:
        forget = (0.3 + 0.7 * mixer.k_proj(token).sigmoid()).view(2, 4)
        S = forget[..., None] * S + (1 - forget)[..., None] * mixer.v_proj(token).view(2, 1, 4)
        o = torch.einsum("hnp,hn->hp", S, F.silu(mixer.q_proj(token)).view(2, 4)).flatten()
        o = o * torch.rsqrt(o.square().mean() + 1e-5) * mixer.o_norm.weight
        outputs.append(mixer.o_proj(o))
    torch.testing.assert_close(mixer(x)[0][0], torch.stack(outputs))
