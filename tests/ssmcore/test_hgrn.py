"""HGRN: gates above their bound, the bound rising with depth, the rotation as a change of frame."""

import pytest
import torch

from ssmcore import Stack, create_mixer
from ssmcore.functional import linear_recurrence


def test_bounds_rise_with_depth_from_zero():
    bounds = [mixer.config.gamma for mixer in Stack(4, "hgrn*4").mixers]
    assert bounds == [0.0, 0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="lower bound"):
        create_mixer("hgrn", 4, lower_bound=1.0)


@torch.no_grad()
def test_the_rotation_is_a_frame():
    """theta does not depend on the tokens, so h e^(-i theta t) is a real-coefficient recurrence of turned inputs."""
    mixer, x = create_mixer("hgrn", 4, lower_bound=0.3).double(), torch.randn(1, 20, 4, dtype=torch.float64)
    _, state = mixer(x, return_state=True)
    forget = 0.3 + 0.7 * torch.sigmoid(mixer.f_proj(x))
    assert (forget >= 0.3).all()
    c = torch.complex(*torch.nn.functional.silu(mixer.c_proj(x)).chunk(2, -1))
    turn = torch.polar(torch.ones(20, 4, dtype=torch.float64), mixer.theta * torch.arange(20)[:, None])
    drive = (1 - forget) * c * turn.conj()
    frame = torch.complex(linear_recurrence(forget, drive.real), linear_recurrence(forget, drive.imag))
    torch.testing.assert_close(state["h"], (frame * turn)[:, -1])


@torch.no_grad()
def test_without_rotation_it_is_hgrn2_with_keys_of_one_channel():
    mixer, x = create_mixer("hgrn", 4).double(), torch.randn(2, 15, 4, dtype=torch.float64)
    mixer.theta.zero_()
    hgrn2 = create_mixer("hgrn2", 4, num_heads=4).double()
    hgrn2.k_proj.weight.copy_(mixer.f_proj.weight)
    hgrn2.v_proj.weight.copy_(torch.eye(4))
    _, state = mixer(x, return_state=True)
    c = torch.nn.functional.silu(mixer.c_proj(x))[..., :4]
    f = hgrn2.k_proj(x).sigmoid()
    torch.testing.assert_close(state["h"].real, linear_recurrence(f, (1 - f) * c)[:, -1])
    weights = hgrn2.weigh(x, *(t.unflatten(-1, (4, 1)) for t in (f, hgrn2.k_proj(x), c)), None, None)
    torch.testing.assert_close(weights.k[..., 0], 1 - f)
    torch.testing.assert_close(weights.log_decay[..., 0].exp(), f)
