"""Channel mixers against what they are made of: the MLP by hand, routing by loops, spectra and factors densely."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssmcore import Stack, Unsupported, create_mixer
from ssmcore.channels.moe import balance_loss, sinkhorn
from ssmcore.channels.monarch import MonarchLinear

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def test_mlps_by_hand():
    mlp, glu, geglu = (create_mixer(name, 8, bias=True) for name in ("mlp", "glu", "geglu"))
    torch.testing.assert_close(mlp(X)[0], mlp.out_proj(F.gelu(mlp.in_proj(X))))
    for mixer, act in ((glu, F.silu), (geglu, F.gelu)):
        gate, value = mixer.in_proj(X).chunk(2, -1)
        torch.testing.assert_close(mixer(X)[0], mixer.out_proj(act(gate) * value))
    assert create_mixer("glu", 96).in_proj.weight.shape == (2 * 256, 96)  # an MLP's parameters, in three maps


# EinFFT


@pytest.mark.parametrize("over", ["tokens", "channels"])
@torch.no_grad()
def test_einfft_of_the_identity_is_the_identity(over):
    """Biases that lift the spectrum above relu's kink and let it down again."""
    mixer = create_mixer("einfft", 8, over=over, shrink=0.0).double()
    for weight in (mixer.complex_weight_1, mixer.complex_weight_2):
        weight[0], weight[1] = torch.eye(2), 0.0
    mixer.complex_bias_1.fill_(100.0)
    mixer.complex_bias_2.fill_(-100.0)
    torch.testing.assert_close(mixer(X.double())[0], X.double())


@torch.no_grad()
def test_einfft_transforms_tokens_and_blocks_by_definition():
    mixer = create_mixer("einfft", 8, init_std=0.5).double()
    x = X.double()
    l, k, w = 5, 4, 2
    turn_l, turn_k = (
        torch.exp(-2j * math.pi * torch.outer(torch.arange(n), torch.arange(n)).double() / n) / n**0.5 for n in (l, k)
    )
    spectrum = torch.einsum("ts,jk,bskw->btjw", turn_l, turn_k, x.view(2, l, k, w).to(turn_l.dtype))
    W1, W2, b1, b2 = (
        torch.complex(*p)
        for p in (mixer.complex_weight_1, mixer.complex_weight_2, mixer.complex_bias_1, mixer.complex_bias_2)
    )
    hidden = torch.einsum("btkw,kwv->btkv", spectrum, W1) + b1
    hidden = torch.complex(hidden.real.relu(), hidden.imag.relu())
    out = torch.einsum("btkw,kwv->btkv", hidden, W2) + b2
    out = torch.complex(F.softshrink(out.real, 0.01), F.softshrink(out.imag, 0.01))
    back = torch.einsum("ts,jk,bskw->btjw", turn_l.conj(), turn_k.conj(), out).real
    torch.testing.assert_close(mixer(x)[0], back.reshape(2, l, 8))


def test_einfft_over_tokens_has_no_place_in_a_causal_stack():
    with pytest.raises(Unsupported, match="EinFFT"):
        Stack(8, "mamba/einfft", causal=True)
    Stack(8, "mamba/E", mixers={"E": {"name": "einfft", "over": "channels"}}, causal=True)
    with pytest.raises(ValueError, match="divide"):
        create_mixer("einfft", 6)


# Monarch


@torch.no_grad()
def test_monarch_is_two_block_diagonal_maps_and_a_transposition():
    layer = MonarchLinear(8, 12, 2).double()
    R, L = torch.block_diag(*layer.right), torch.block_diag(*layer.left)
    deal = torch.eye(8, dtype=torch.float64).view(2, 2, 2, 8).transpose(0, 1).reshape(8, 8)
    x = X.double()
    torch.testing.assert_close(layer(x), x @ (L @ deal @ R).T)
    assert (layer(torch.eye(8, dtype=torch.float64)) != 0).all()  # every output reads every input
    with pytest.raises(ValueError, match="blocks"):
        MonarchLinear(6, 12, 4)


# Mixture of experts


def moe(**options):
    torch.manual_seed(0)
    return create_mixer("moe", 8, num_experts=4, **options)


@pytest.mark.parametrize("gate", ["softmax", "rescaled", "sigmoid"])
def test_moe_is_a_weighted_sum_of_the_chosen(gate):
    mixer = moe(gate=gate)
    want = torch.zeros_like(X)
    for i in range(2):
        for t in range(5):
            logits = mixer.router.weight @ X[i, t]
            p = logits.softmax(-1)
            best = p.topk(2).indices
            scale = {"softmax": p, "rescaled": p / p[best].sum(), "sigmoid": logits.sigmoid()}[gate]
            want[i, t] = sum(scale[e] * mixer.experts[e](X[i : i + 1, t : t + 1])[0][0, 0] for e in best.tolist())
    torch.testing.assert_close(mixer(X)[0], want)


def test_all_experts_at_equal_gates_are_their_mean():
    mixer = moe(top_k=4)
    torch.nn.init.zeros_(mixer.router.weight)
    torch.testing.assert_close(mixer(X)[0], torch.stack([expert(X)[0] for expert in mixer.experts]).mean(0))


def test_tokens_beyond_the_capacity_are_dropped_in_training_only():
    mixer = moe(top_k=1, capacity=0.4, gate="sigmoid")
    torch.nn.init.zeros_(mixer.router.weight)  # all ten tokens go to one expert, which takes ceil(0.4 * 10 / 4) = 1
    y, _ = mixer(X)
    assert (y.flatten(0, 1).abs().sum(-1) > 0).tolist() == [True] + [False] * 9
    assert (mixer.eval()(X)[0].abs().sum(-1) > 0).all()


def test_balance_loss():
    even = torch.arange(8).remainder(4)[:, None]
    assert balance_loss(torch.full((8, 4), 0.25), even).item() == pytest.approx(1.0)
    one = F.one_hot(torch.zeros(8, dtype=torch.int64), 4).float()
    assert balance_loss(one, torch.zeros(8, 1, dtype=torch.int64)).item() == pytest.approx(4.0)
    losses = []
    stack = Stack(8, "(mamba/moe)*2")
    stack(X, shared={"losses": losses})
    assert len(losses) == 2
    sum(losses).backward()
    assert all(m.router.weight.grad.abs().sum() > 0 for m in stack.mixers if hasattr(m, "router"))
    stack.eval()(X, shared={"losses": losses})
    assert len(losses) == 2


def test_the_balance_loss_spreads_the_tokens():
    mixer = moe(top_k=1)
    x = torch.randn(1, 256, 8) + 1.0
    with torch.no_grad():
        mixer.router.weight[0] += 0.3  # everybody's first choice

    def busiest():
        return mixer.route(x[0] @ mixer.router.weight.T)[0].flatten().bincount(minlength=4).max().item() / 256

    assert busiest() > 0.8
    optimiser = torch.optim.Adam([mixer.router.weight], lr=0.02)
    for _ in range(100):
        losses = []
        mixer(x, shared={"losses": losses})
        optimiser.zero_grad()
        losses[0].backward()
        optimiser.step()
    assert busiest() < 0.5


def test_sinkhorn_spreads_the_tokens_without_a_loss():
    logits = torch.randn(400, 4) + torch.tensor([4.0, 0.0, 0.0, 0.0])
    assert logits.argmax(-1).bincount(minlength=4).max() > 350
    p = sinkhorn(logits)
    torch.testing.assert_close(p.sum(-1), torch.ones(400))
    torch.testing.assert_close(p.sum(0), torch.full((4,), 100.0), rtol=1e-2, atol=0)
    assert p.argmax(-1).bincount(minlength=4).max() < 200
    mixer, losses = moe(balance="sinkhorn", gate="sigmoid", top_k=1), []
    mixer(X, shared={"losses": losses})
    assert not losses


def test_moe_refuses():
    with pytest.raises(ValueError, match="top_k"):
        create_mixer("moe", 8, num_experts=2, top_k=3)
    with pytest.raises(ValueError, match="single tokens"):
        create_mixer("moe", 8, expert="mamba")
    with pytest.raises(ValueError, match="single tokens"):
        moe(expert="moe")
    with pytest.raises(ValueError, match="gate"):
        create_mixer("moe", 8, gate="hard")
