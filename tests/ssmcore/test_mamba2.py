"""Mamba-2 against its formulas, one token after the other, and against its quadratic form."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore import Stack, create_mixer


def test_parameters_are_the_published_ones():
    mixer = create_mixer("mamba2", 64, d_state=16, headdim=32, ngroups=2)
    assert {name: tuple(p.shape) for name, p in mixer.named_parameters()} == {
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "in_proj.weight": (128 + 128 + 2 * 2 * 16 + 4, 64),
        "conv1d.weight": (128 + 2 * 2 * 16, 1, 4),
        "conv1d.bias": (128 + 2 * 2 * 16,),
        "norm.weight": (128,),
        "out_proj.weight": (64, 128),
    }


def test_initial_values_survive_the_stack():
    for mixer in Stack(32, "(mamba2/glu)*2", mixers={"mamba2": {"headdim": 1}}).mixers[::2]:
        step = F.softplus(mixer.dt_bias)
        assert step.min() >= 1e-3 * (1 - 1e-4)
        assert step.max() <= 0.1 * (1 + 1e-4)
        assert mixer.A_log.exp().min() >= 1 - 1e-5
        assert mixer.A_log.exp().max() <= 16 + 1e-4
        assert (mixer.D == 1).all()


def inner(mixer, x):
    """z, u, B, C and dt of the block, heads and groups apart."""
    c, d, h = mixer.config, mixer.d_inner, mixer.num_heads
    z, u, dt = mixer.in_proj(x).split([d, d + 2 * c.ngroups * c.d_state, h], -1)
    padded = F.pad(u.mT, (c.d_conv - 1, 0))
    u = F.silu(F.conv1d(padded, mixer.conv1d.weight, mixer.conv1d.bias, groups=u.shape[-1])).mT
    u, B, C = u.split([d, c.ngroups * c.d_state, c.ngroups * c.d_state], -1)
    share = h // c.ngroups
    B, C = (M.unflatten(-1, (c.ngroups, -1)).repeat_interleave(share, 2) for M in (B, C))
    return z, u.unflatten(-1, (h, -1)), B, C, F.softplus(dt + mixer.dt_bias)


def output(mixer, y, u, z):
    """Skip, gate, norm in groups, output map: the gate comes before the norm."""
    y = (y + mixer.D[:, None] * u).flatten(-2) * F.silu(z)
    grouped = y.unflatten(-1, (mixer.config.ngroups, -1))
    grouped = grouped / (grouped.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return mixer.out_proj(grouped.flatten(-2) * mixer.norm.weight)


@pytest.fixture
def case():
    mixer = create_mixer("mamba2", 8, d_state=3, headdim=4, ngroups=2).double()
    with torch.no_grad():
        mixer.norm.weight.uniform_(0.5, 2)
        mixer.D.uniform_(0.5, 2)
    return mixer, torch.randn(2, 11, 8, dtype=torch.float64)


def test_block_equals_the_papers_formulas(case):
    mixer, x = case
    z, u, B, C, dt = inner(mixer, x)
    S, outputs = torch.zeros(2, 4, 3, 4, dtype=torch.float64), []
    for t in range(11):
        decay = (-dt[:, t] * mixer.A_log.exp()).exp()
        write = dt[:, t, :, None, None] * B[:, t, :, :, None] * u[:, t, :, None, :]
        S = decay[..., None, None] * S + write
        outputs.append((S * C[:, t, :, :, None]).sum(-2))
    torch.testing.assert_close(mixer(x)[0], output(mixer, torch.stack(outputs, 1), u, z), rtol=1e-10, atol=1e-12)


def test_block_equals_its_quadratic_form(case):
    """Attention without softmax under a mask of decays: (L o C B^T)(dt u)."""
    mixer, x = case
    z, u, B, C, dt = inner(mixer, x)
    total = (-dt * mixer.A_log.exp()).cumsum(1)
    mask = (total[:, :, None] - total[:, None]).exp() * torch.ones(11, 11, dtype=torch.float64).tril()[..., None]
    weights = torch.einsum("bthn,bshn->btsh", C, B) * mask
    y = torch.einsum("btsh,bshp->bthp", weights, dt[..., None] * u)
    torch.testing.assert_close(mixer(x)[0], output(mixer, y, u, z), rtol=1e-10, atol=1e-12)


def test_the_chunk_is_no_part_of_the_model(case):
    mixer, x = case
    other = create_mixer("mamba2", 8, d_state=3, headdim=4, ngroups=2, chunk=4).double()
    other.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x)[0], other(x)[0], rtol=1e-10, atol=1e-12)


def test_bad_options():
    with pytest.raises(ValueError, match="heads of 5"):
        create_mixer("mamba2", 8, headdim=5)
    with pytest.raises(ValueError, match="3 groups"):
        create_mixer("mamba2", 8, headdim=4, ngroups=3)
    with pytest.raises(ValueError, match="dt_min"):
        create_mixer("mamba2", 8, dt_min=0.2)
    with pytest.raises(ValueError, match="A_init_range"):
        create_mixer("mamba2", 8, A_init_range=(0.0, 1.0))
