"""Mamba-3 against its formulas, Mamba-2's map inside it, and the rotation that counts."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssmcore import create_mixer
from ssmcore.functional import chunked_scan


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def mixer():
    torch.manual_seed(0)
    mixer = create_mixer("mamba3", 8, d_state=8, headdim=4, ngroups=2).double()
    with torch.no_grad():
        for p in (mixer.B_bias, mixer.C_bias, mixer.D, mixer.dt_bias):
            p.copy_(torch.randn_like(p))
    return mixer


def maps(mixer, x):
    """What the formulas start from, heads apart."""
    z, v, B, C, dt, a, trap, phi = mixer.in_proj(x).split(mixer.widths, -1)
    B, C = (M.unflatten(-1, (2, 8)) for M in (B, C))
    B, C = (M / (M.square().mean(-1, keepdim=True) + 1e-5).sqrt() for M in (B, C))
    B, C = (M.repeat_interleave(2, 2) + bias for M, bias in ((B, mixer.B_bias), (C, mixer.C_bias)))
    rate = torch.where(a > 0, 1 + a, 1 / (1 - a))
    return z, v.unflatten(-1, (4, 4)), B, C, F.softplus(dt + mixer.dt_bias), rate, trap.sigmoid(), phi


def rotated(M, theta):
    """The pairs (0, 1) and (2, 3) of eight channels as complex numbers, as the published code pairs them."""
    turned = torch.complex(M[..., :4:2], M[..., 1:4:2]) * torch.polar(torch.ones_like(theta), theta)
    return torch.cat([torch.view_as_real(turned).flatten(-2), M[..., 4:]], -1)


def test_block_equals_the_papers_formulas(mixer):
    x = normal(2, 12, 8)
    z, v, B, C, dt, rate, lam, phi = maps(mixer, x)
    theta, S, outputs = torch.zeros(2, 4, 2).double(), torch.zeros(2, 4, 8, 4).double(), []
    before = torch.zeros_like(S)
    for t in range(12):
        theta = theta + dt[:, t, :, None] * math.pi * phi[:, t, None].tanh()
        k, q = rotated(B[:, t], theta), rotated(C[:, t], theta)
        alpha, step, share = ((w[:, t])[..., None, None] for w in ((-dt * rate).exp(), dt, lam))
        now = k[..., None] * v[:, t, :, None]
        S, before = alpha * S + (1 - share) * step * alpha * before + share * step * now, now
        outputs.append((S * q[..., None]).sum(-2) + mixer.D[:, None] * v[:, t])
    want = mixer.out_proj(torch.stack(outputs, 1).flatten(-2) * F.silu(z))
    y, state = mixer(x, return_state=True)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state["ssm"], S, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state["angle"].cos(), theta.cos(), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_several_keys_and_queries_a_token_by_the_papers_formulas():
    """MIMO of rank 3: rank-3 writes, three reads, each with its own skip and gate, summed with weights."""
    torch.manual_seed(0)
    r, h, p, n = 3, 4, 4, 8
    mixer = create_mixer("mamba3", 8, d_state=n, headdim=p, ngroups=2, mimo_rank=r).double()
    torch.testing.assert_close(mixer.mimo_x, torch.full((h, r, p), 1 / 3).double())
    for w in (mixer.B_bias, mixer.C_bias, mixer.D, mixer.dt_bias, mixer.mimo_x, mixer.mimo_z, mixer.mimo_o):
        torch.nn.init.normal_(w)
    x = normal(2, 9, 8)
    z, v, B, C, dt, a, trap, phi = mixer.in_proj(x).split(mixer.widths, -1)
    B, C = (M.unflatten(-1, (r, 2, n)) for M in (B, C))
    B, C = (M / (M.square().mean(-1, keepdim=True) + 1e-5).sqrt() for M in (B, C))
    B, C = (
        M.repeat_interleave(2, 3) + bias.view(h, r, n).transpose(0, 1)
        for M, bias in ((B, mixer.B_bias), (C, mixer.C_bias))
    )
    z, v = z.unflatten(-1, (h, p)), v.unflatten(-1, (h, p))
    dt, rate, lam = F.softplus(dt + mixer.dt_bias), torch.where(a > 0, 1 + a, 1 / (1 - a)), trap.sigmoid()
    theta, S, before, want = torch.zeros(2, h, 2).double(), torch.zeros(2, h, n, p).double(), 0, []
    for t in range(9):
        theta = theta + dt[:, t, :, None] * math.pi * phi[:, t, None].tanh()
        written, total = 0, 0
        for i in range(r):
            value = v[:, t] * mixer.mimo_x[:, i]
            written = written + rotated(B[:, t, i], theta)[..., None] * value[:, :, None]
        alpha, step, share = ((w[:, t])[..., None, None] for w in ((-dt * rate).exp(), dt, lam))
        S, before = alpha * S + (1 - share) * step * alpha * before + share * step * written, written
        for i in range(r):
            o = (S * rotated(C[:, t, i], theta)[..., None]).sum(-2)
            o = o + mixer.D[:, None] * v[:, t] * mixer.mimo_x[:, i]
            total = total + mixer.mimo_o[:, i] * o * F.silu(z[:, t] * mixer.mimo_z[:, i])
        want.append(total)
    y, state = mixer(x, return_state=True)
    torch.testing.assert_close(y, mixer.out_proj(torch.stack(want, 1).flatten(-2)), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(state["ssm"], S, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_without_trapeze_and_rotation_it_is_mamba2s_map(mixer):
    start = sum(mixer.widths[:6])
    mixer.in_proj.weight[start : start + 4] = 0  # trap, made 1 below through its sigmoid's input
    mixer.in_proj.weight[start + 4 :] = 0
    x = torch.cat([normal(2, 12, 7), torch.ones(2, 12, 1).double()], -1)
    mixer.in_proj.weight[start : start + 4, 7] = 50.0
    _, v, B, C, dt, rate, _, _ = maps(mixer, x)
    want = chunked_scan(C, B, dt[..., None] * v, log_decay=-dt * rate, return_last_state=True)[1]
    torch.testing.assert_close(mixer(x, return_state=True)[1]["ssm"], want, rtol=1e-10, atol=1e-12)


def test_full_turns_change_nothing(mixer):
    _, state = mixer(normal(2, 5, 8), return_state=True)
    more = normal(2, 6, 8)
    other = {**state, "angle": state["angle"] + 2 * math.pi * torch.tensor([3.0, -1.0]).double()}
    torch.testing.assert_close(mixer(more, other)[0], mixer(more, state)[0], rtol=1e-9, atol=1e-10)
    left = mixer(more, other)[1]["angle"]
    assert 0 <= left.min()
    assert left.max() < 2 * math.pi


@torch.no_grad()
def test_half_turns_count_modulo_two():
    """Tokens (1, 0) turn by half a circle, tokens (1, 1) not at all: the output's sign is the parity of the former."""
    mixer = create_mixer("mamba3", 2, d_state=2, headdim=4, rope_fraction=1.0, slowest=0.0).double()
    widths, names = mixer.widths, ("z", "v", "B", "C", "dt", "a", "trap", "phi")
    rows = dict(zip(names, mixer.in_proj.weight.split(widths), strict=True))
    for row in rows.values():
        row.zero_()
    rows["a"][:, 0] = -1e6  # no decay
    rows["phi"][:, 0], rows["phi"][:, 1] = 20.0, -20.0
    mixer.dt_bias.fill_(math.log(math.e - 1))  # steps of 1, so that tanh = 1 is half a turn
    ones = torch.tensor([0, 1, 1, 0, 1, 0, 1, 1, 1, 0])
    x = torch.stack([torch.ones(10), 1.0 - ones], -1).double()[None]
    rows["z"][:, 0] = 1.0
    mixer.B_bias.copy_(torch.tensor([[1.0, 0.0]]))
    mixer.C_bias.copy_(torch.tensor([[1.0, 0.0]]))
    mixer.out_proj.weight.fill_(1.0)
    state = {**mixer.init_state(1), "ssm": torch.ones(1, 1, 2, 4).double() * torch.tensor([[1.0], [0.0]]).double()}
    y, _ = mixer(x, state)
    assert torch.equal(y[0, :, 0] < 0, ones.cumsum(0) % 2 == 1)


def test_bad_options():
    with pytest.raises(ValueError, match="mimo_rank=0"):
        create_mixer("mamba3", 8, mimo_rank=0)
    with pytest.raises(ValueError, match="heads of 5"):
        create_mixer("mamba3", 8, headdim=5)
    with pytest.raises(ValueError, match="rope_fraction=2"):
        create_mixer("mamba3", 8, rope_fraction=2)
