"""Mamba against closed forms: the gate it contains, the limits of its step, and the fixed system it becomes."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssmcore import Stack, create_mixer
from ssmcore.functional import damped_modes, selective_scan


def test_parameters_are_the_published_ones():
    mixer = create_mixer("mamba", 32)
    shapes = {name: tuple(p.shape) for name, p in mixer.named_parameters()}
    assert shapes == {
        "A_log": (64, 16),
        "D": (64,),
        "in_proj.weight": (128, 32),
        "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,),
        "x_proj.weight": (2 + 32, 64),
        "dt_proj.weight": (64, 2),
        "dt_proj.bias": (64,),
        "out_proj.weight": (32, 64),
    }


def test_initial_values_survive_the_stack():
    for mixer in Stack(32, "(mamba/glu)*2").mixers[::2]:
        step = F.softplus(mixer.dt_proj.bias)
        assert step.min() >= 1e-3 * (1 - 1e-4)
        assert step.max() <= 0.1 * (1 + 1e-4)
        torch.testing.assert_close(mixer.poles(), -torch.arange(1.0, 17).expand(64, 16))
        assert (mixer.D == 1).all()


def block_by_hand(mixer, x):
    """The block as the paper writes it: one token after the other, one formula a line."""
    u, z = mixer.in_proj(x).chunk(2, -1)
    d, w = mixer.d_inner, mixer.config.d_conv
    u = F.silu(F.conv1d(F.pad(u.mT, (w - 1, 0)), mixer.conv1d.weight, mixer.conv1d.bias, groups=d)).mT
    low, B, C = mixer.x_proj(u).split([mixer.dt_rank, 16, 16], -1)
    dt = F.softplus(mixer.dt_proj(low))
    A, h, outputs = -mixer.A_log.exp(), torch.zeros(x.shape[0], d, 16, dtype=x.dtype), []
    for t in range(x.shape[1]):
        h = (dt[:, t, :, None] * A).exp() * h + dt[:, t, :, None] * B[:, t, None] * u[:, t, :, None]
        outputs.append((h * C[:, t, None]).sum(-1) + mixer.D * u[:, t])
    return mixer.out_proj(torch.stack(outputs, 1) * F.silu(z))


def test_block_equals_the_papers_formulas():
    mixer = create_mixer("mamba", 8).double()
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(x)[0], block_by_hand(mixer, x), rtol=1e-10, atol=1e-12)


def scan_inputs(z, rule):
    """One state a channel, A = -1, B = C = 1, step softplus(z)."""
    x = torch.randn(*z.shape, dtype=torch.float64)
    ones = torch.ones(z.shape[-1], 1, dtype=torch.float64)
    return x, selective_scan(x, z, -ones, ones, ones, dt_softplus=True, rule=rule)


def test_gate_theorem():
    """With zero-order hold the scan is the gated update h = (1 - g) h + g x, g = sigmoid(z)."""
    z = torch.randn(2, 30, 3, dtype=torch.float64)
    x, y = scan_inputs(z, "zoh")
    gate, h = torch.sigmoid(z), torch.zeros(2, 3, dtype=torch.float64)
    for t in range(30):
        h = (1 - gate[:, t]) * h + gate[:, t] * x[:, t]
        torch.testing.assert_close(y[:, t], h, rtol=0, atol=1e-13)


def test_the_published_rule_is_not_that_gate():
    """Its input weight is softplus(z), and can exceed 1: the theorem needs the other rule."""
    z = torch.full((1, 1, 1), 3.0, dtype=torch.float64)
    x, y = scan_inputs(z, "euler")
    torch.testing.assert_close(y / x, F.softplus(z))


def steps_of(mixer, size):
    """The same mixer with every step near `size`."""
    with torch.no_grad():
        mixer.dt_proj.weight.zero_()
        mixer.dt_proj.bias.fill_(math.log(math.expm1(size)))
    return mixer


def test_a_long_step_forgets():
    mixer = steps_of(create_mixer("mamba", 4, rule="zoh"), 80.0)
    x = torch.randn(1, 6, 4)
    noise = {"conv": torch.zeros(1, 3, 8), "ssm": torch.randn(1, 8, 16)}
    torch.testing.assert_close(mixer(x, noise)[0], mixer(x, mixer.init_state(1))[0])


def test_a_short_step_remembers():
    mixer = steps_of(create_mixer("mamba", 4), 1e-9)
    held = {"conv": torch.zeros(1, 3, 8), "ssm": torch.randn(1, 8, 16)}
    torch.testing.assert_close(mixer(torch.randn(1, 6, 4), held)[1]["ssm"], held["ssm"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", ["euler", "zoh"])
def test_a_constant_system_is_a_convolution(rule):
    """With dt, B and C fixed, S6 is S4D with real poles."""
    d, n, l, dt = 3, 4, 20, 0.3
    x, C = torch.randn(1, l, d, dtype=torch.float64), torch.randn(d, n, dtype=torch.float64)
    A, B = -torch.arange(1.0, n + 1, dtype=torch.float64).expand(d, n), torch.ones(d, n, dtype=torch.float64)
    y = selective_scan(x, torch.full_like(x, dt), A, B, C, rule=rule)
    weight = dt if rule == "euler" else torch.expm1(dt * A) / A
    kernel = damped_modes(C * weight, dt * A, l)
    want = torch.stack([(kernel[: t + 1].flip(0) * x[0, : t + 1]).sum(0) for t in range(l)])
    torch.testing.assert_close(y[0], want, rtol=1e-10, atol=1e-12)


def test_time_scales_the_step():
    """Twice the time between two tokens is, for the decay, two tokens."""
    mixer = steps_of(create_mixer("mamba", 4), 0.1)
    state = {"conv": torch.zeros(1, 3, 8), "ssm": torch.randn(1, 8, 16)}
    x = torch.zeros(1, 1, 4)  # conv bias still drives it: compare decays, not inputs
    decayed = [
        mixer(x, {**state, "ssm": s}, dt=torch.tensor([[2.0]]))[1]["ssm"] for s in (state["ssm"], 0 * state["ssm"])
    ]
    torch.testing.assert_close(
        decayed[0] - decayed[1], state["ssm"] * (0.2 * mixer.poles()).exp(), rtol=1e-4, atol=1e-6
    )


def test_bad_options():
    with pytest.raises(ValueError, match="d_state=3"):
        create_mixer("mamba", 4, poles="complex", d_state=3)
    with pytest.raises(ValueError, match="dt_min"):
        create_mixer("mamba", 4, dt_min=0.2)
