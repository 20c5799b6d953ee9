"""S4D against physics and algebra: a spring and damper, powers of the decay, and its two algorithms."""

import math

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.hippo import s4d_poles
from ssmcore.mixer import Context

INITS = ["lin", "inv", "legs", "real"]


@pytest.mark.parametrize("rule", ["zoh", "bilinear", "euler"])
@pytest.mark.parametrize("init", INITS)
def test_convolution_equals_recurrence(init, rule):
    mixer = create_mixer("s4d", 5, d_state=8, init=init, rule=rule)
    x = torch.randn(2, 100, 5)
    convolved, none = mixer.core(x, None, Context())
    recurrent, state = mixer.core(x, None, Context(return_state=True))
    assert none is None
    assert state["ssm"].shape == (2, 5, 8 if init == "real" else 4)
    torch.testing.assert_close(convolved, recurrent, rtol=0, atol=1e-5 * recurrent.abs().max().item())


@pytest.mark.parametrize("init", INITS)
def test_poles_are_stable_and_the_initial_ones(init):
    A, _, _, dt = create_mixer("s4d", 3, d_state=8, init=init).continuous()
    assert (A.real < 0).all()
    torch.testing.assert_close(A[1], s4d_poles(init, 8).to(A.dtype))
    assert (dt >= 0.999e-3).all()
    assert (dt <= 0.1001).all()


def test_one_pair_is_a_spring_with_a_damper():
    """m y'' + c y' + k y = f: the impulse response is e^(-s t) sin(w t) / (m w), s = c / 2m, w the damped frequency."""
    m, c, k, dt, l = 0.5, 0.3, 8.0, 0.05, 200
    s = c / (2 * m)
    w = math.sqrt(k / m - s * s)
    mixer = create_mixer("s4d", 1, d_state=2, rule="euler").double()  # samples of an impulse, not of a held input
    with torch.no_grad():
        mixer.log_dt.fill_(math.log(dt))
        mixer.A_log.fill_(math.log(s))
        mixer.A_imag.fill_(w)
        mixer.C[:] = torch.tensor([0.0, -0.5 / (m * w)], dtype=torch.float64)  # 2 Re(C e^(iwt)) = sin(wt) / (m w)
        mixer.D.zero_()
    t = dt * torch.arange(l, dtype=torch.float64)
    want = dt * torch.exp(-s * t) * torch.sin(w * t) / (m * w)
    torch.testing.assert_close(mixer.kernel(l)[:, 0], want, rtol=0, atol=1e-14)
    impulse = torch.zeros(1, l, 1, dtype=torch.float64)
    impulse[0, 0] = 1
    torch.testing.assert_close(
        mixer.core(impulse, None, Context(return_state=True))[0][0, :, 0], want, rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("rate", [0.5, 2.0, 3.0])
def test_a_rate_is_a_power_of_the_decay(rate):
    mixer = create_mixer("s4d", 4, d_state=6)
    A, _, _, dt = mixer.continuous()
    held = {"ssm": torch.randn(1, 4, 3, dtype=torch.complex64)}
    nothing = torch.zeros(1, 1, 4)
    _, state = mixer.core(nothing, held, Context(dt=torch.full((1, 1), rate)))
    torch.testing.assert_close(state["ssm"], held["ssm"] * (dt[:, None] * A).exp() ** rate)


def test_a_doubled_step_holds_each_input_twice():
    mixer = create_mixer("s4d", 4, d_state=6)
    x = torch.randn(1, 10, 4)
    twice, _ = mixer.core(x.repeat_interleave(2, 1), None, Context())
    double, _ = mixer.core(x, None, Context(dt=torch.full((1, 10), 2.0)))
    torch.testing.assert_close(double, twice[:, 1::2], rtol=1e-4, atol=1e-5)


def test_the_output_map_is_gated():
    mixer, x = create_mixer("s4d", 4, d_state=4), torch.randn(1, 7, 4)
    g = torch.nn.functional.gelu(mixer.core(x, None, Context())[0])
    value, gate = mixer.out_proj(g).chunk(2, -1)
    torch.testing.assert_close(mixer(x)[0], value * torch.sigmoid(gate))


def test_bad_options():
    with pytest.raises(ValueError, match="did you mean 'legs'"):
        create_mixer("s4d", 4, init="leg")
    with pytest.raises(ValueError, match="even"):
        create_mixer("s4d", 4, d_state=5)
