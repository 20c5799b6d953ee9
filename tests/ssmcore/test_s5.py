"""S5: blocks that do not meet, steps of time, and HiPPO's dense system that it starts as."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.discretization import discretize_dense
from ssmcore.hippo import legs, legs_dplr
from ssmcore.mixer import Context
from ssmcore.mixers.s5 import lecun


def core(mixer, x, **kwargs):
    return mixer.core(x, None, Context(**kwargs))[0]


def test_initial_system_is_hippos_normal_part():
    """Diagonalising changes nothing: the same outputs as the dense real system A + p pᵀ, with real B and C."""
    torch.manual_seed(0)
    mixer = create_mixer("s5", 3, d_state=8).double()
    V = legs_dplr(8).V
    with torch.no_grad():
        mixer.log_step.fill_(-2.0)
        B, C = torch.randn(8, 3).double(), torch.randn(3, 8).double()
        mixer.B.copy_(torch.view_as_real(V.mH @ B.to(V.dtype)))
        mixer.C.copy_(torch.view_as_real(C.to(V.dtype) @ V))
    A, b = legs(8)
    A_bar, B_bar = discretize_dense(A + b[:, None] * b / 2, B, mixer.log_step[0].exp().item(), "zoh")
    x = torch.randn(1, 20, 3, dtype=torch.float64)
    h, want = torch.zeros(8, dtype=torch.float64), []
    for t in range(20):
        h = A_bar @ h + B_bar @ x[0, t]
        want.append(C @ h + mixer.D * x[0, t])
    torch.testing.assert_close(core(mixer, x)[0], torch.stack(want), rtol=1e-5, atol=1e-6)  # initial poles are float32


def test_blocks_are_independent_systems():
    """The poles of 3 blocks are 3 times those of one, and B and C do not mix the blocks' bases."""
    one, three = create_mixer("s5", 4, d_state=6), create_mixer("s5", 4, d_state=18, blocks=3)
    torch.testing.assert_close(three.poles(), one.poles().repeat(3))
    x = torch.randn(1, 15, 4)
    total = core(three, x) - three.D * x
    parts = 0
    for i in range(3):
        with torch.no_grad():
            one.log_step.copy_(three.log_step[3 * i : 3 * i + 3])
            one.B.copy_(three.B[3 * i : 3 * i + 3])
            one.C.copy_(three.C[:, 3 * i : 3 * i + 3])
        parts = parts + core(one, x) - one.D * x
    torch.testing.assert_close(total, parts, rtol=1e-5, atol=1e-5)


def test_a_doubled_step_holds_each_input_twice():
    mixer = create_mixer("s5", 4, d_state=8).double()
    x = torch.randn(1, 10, 4, dtype=torch.float64)
    double = core(mixer, x, dt=torch.full((1, 10), 2.0, dtype=torch.float64))
    torch.testing.assert_close(double, core(mixer, x.repeat_interleave(2, 1))[:, 1::2], rtol=1e-10, atol=1e-12)


def test_irregular_steps_sample_one_continuous_system():
    """A held input seen at any instants: leaving instants out does not change the others."""
    mixer = create_mixer("s5", 4, d_state=8).double()
    dt = torch.rand(1, 30, dtype=torch.float64) + 0.1
    x = torch.randn(1, 10, 4, dtype=torch.float64).repeat_interleave(3, 1)
    fine = core(mixer, x, dt=dt)
    coarse = core(mixer, x[:, 2::3], dt=dt.view(1, 10, 3).sum(-1))
    torch.testing.assert_close(coarse, fine[:, 2::3], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ["half_glu1", "half_glu2"])
def test_output_is_half_gated(activation):
    mixer, x = create_mixer("s5", 4, d_state=8, activation=activation), torch.randn(1, 6, 4)
    y = core(mixer, x)
    g = torch.nn.functional.gelu(y, approximate="tanh")
    gated = g if activation == "half_glu1" else y
    torch.testing.assert_close(mixer(x)[0], gated * torch.sigmoid(mixer.gate(g)))


@pytest.mark.parametrize(
    ("c_init", "variance"),
    [("trunc_standard_normal", 2 / 64), ("lecun_normal", 2 / 64 / 200), ("complex_normal", 1.0)],
)
def test_initial_maps_have_the_released_codes_variance(c_init, variance):
    """jax's lecun_normal on arrays of shapes (P, H) and, C's parts side by side, (1, P, 2) or (H, P, 2): it takes the
    axis before the last for what goes in, and any before that for a receptive field. V's half keeps half of B's."""
    torch.manual_seed(0)
    mixer = create_mixer("s5", 200, d_state=64, c_init=c_init, two_sided=True)
    assert mixer.maps()[0].abs().square().mean().item() == pytest.approx(1 / 64, rel=0.05)
    for C in (mixer.maps()[1], mixer.map_back()):
        assert C.abs().square().mean().item() == pytest.approx(variance, rel=0.05)
    assert not torch.equal(mixer.C, mixer.C_back)


def test_the_cut_normal_has_the_variance_it_is_asked_for():
    drawn = lecun(400, 400, fan_in=50)
    assert drawn.std().item() == pytest.approx(50**-0.5, rel=0.01)
    assert drawn.abs().max().item() < 2.3 * 50**-0.5


def test_what_learns_at_which_pace():
    mixer = create_mixer("s5", 4, d_state=8, lr_scale=0.2, dt_lr_scale=1.0, B_lr_scale=0.5, B_decay=True)
    spec = mixer.param_spec()
    assert (spec["B"].decay, spec["B"].lr_scale, spec["log_step"].lr_scale, spec["Lambda_im"].lr_scale) == (
        True, 0.5, 1.0, 0.2,
    )  # fmt: skip
    spec = create_mixer("s5", 4, d_state=8, lr_scale=0.2).param_spec()
    assert {s.lr_scale for s in spec.values()} == {0.2}
    assert not any(s.decay for s in spec.values())


def test_bad_blocks():
    with pytest.raises(ValueError, match="blocks of even size"):
        create_mixer("s5", 4, d_state=12, blocks=4)
    with pytest.raises(ValueError, match="c_init"):
        create_mixer("s5", 4, c_init="normal")
