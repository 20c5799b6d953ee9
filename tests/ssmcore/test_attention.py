"""Attention against the formula, and its windows, positions, shared heads and caches."""

import math

import pytest
import torch

from ssmcore import Unsupported, create_mixer
from ssmcore.mixers.attention import rotary_table, rotate


def build(**options):
    torch.manual_seed(0)
    mixer = create_mixer("attention", 16, **{"num_heads": 4, **options})
    for p in mixer.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return mixer


def by_hand(mixer, x, tile=None):
    """softmax(q kᵀ / sqrt p) v, in one piece or by the online softmax over tiles of keys (FlashAttention)."""
    c, (b, l, _), p = mixer.config, x.shape, mixer.d_head
    q, k, v = (f(x).view(b, l, -1, p) for f in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    if c.rope_base is not None:
        cos, sin = rotary_table(l, p, c.rope_base)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    k, v = (t.repeat_interleave(mixer.num_heads // mixer.num_kv_heads, 2) for t in (k, v))
    score = torch.einsum("blhp,bmhp->bhlm", q, k) / math.sqrt(p)
    behind = torch.arange(l)[:, None] - torch.arange(l)
    seen = behind >= 0 if c.causal else torch.ones_like(behind, dtype=torch.bool)
    if c.window is not None:
        seen = seen & (behind.abs() < c.window)
    score = score.masked_fill(~seen, -1e30)
    m, total, out = torch.full((b, 4, l, 1), -1e30), torch.zeros(b, 4, l, 1), torch.zeros(b, 4, l, p)
    for start in range(0, l, tile or l):
        s, v_tile = score[..., start : start + (tile or l)], v[:, start : start + (tile or l)].transpose(1, 2)
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        weight, keep = (s - new).exp(), (m - new).exp()
        total, out, m = total * keep + weight.sum(-1, keepdim=True), out * keep + weight @ v_tile, new
    return mixer.out_proj((out / total).transpose(1, 2).reshape(b, l, -1))


OPTIONS = [
    {},
    {"rope_base": None},
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "window": 3},
    {"window": 5},
    {"causal": False},
    {"causal": False, "window": 3},
    {"bias": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("l", [1, 5, 23])
def test_equals_the_formula_whole_and_in_tiles(options, l):
    mixer, x = build(**options), torch.randn(2, l, 16)
    y = mixer(x)[0]
    for tile in (None, 1, 4):
        torch.testing.assert_close(y, by_hand(mixer, x, tile), rtol=0, atol=1e-5 * max(1, y.abs().max().item()))


@pytest.mark.parametrize("w", [1, 2, 4, 7])
@pytest.mark.parametrize("l", [6, 30])
def test_a_window_counts_w_tokens(w, l):
    """Query t sees t - w + 1 .. t, exactly, in the dense and in the blockwise form, and from a cache."""
    mixer, x = build(window=w), torch.randn(1, l, 16, requires_grad=True)
    y, state = mixer(x, return_state=True)
    for t in (0, l // 2, l - 1):
        (grad,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        seen = (grad[0].abs().amax(-1) > 0).nonzero().flatten().tolist()
        if w > 1:
            assert seen == list(range(max(0, t - w + 1), t + 1))
        else:
            assert seen == [t]
    assert state["k"].shape == (1, w - 1, 4, 4)


def test_a_window_as_long_as_the_text_is_no_window():
    x = torch.randn(2, 12, 16)
    torch.testing.assert_close(build(window=12)(x)[0], build()(x)[0])


@pytest.mark.parametrize("window", [None, 4])
def test_positions_are_relative(window):
    """Where a sequence lies in a stream does not matter, even very far out."""
    mixer, x = build(window=window), torch.randn(1, 9, 16)
    _, state = mixer(torch.randn(1, 7, 16), return_state=True)
    far = {**state, "pos": state["pos"] + 10**9}
    torch.testing.assert_close(mixer(x, far)[0], mixer(x, state)[0], rtol=0, atol=0)
    q, k = torch.randn(2, 1, 1, 1, 8).unbind()
    cos, sin = rotary_table(200, 8, 10000.0)

    def score(t, s):
        return (rotate(q, cos[t : t + 1], sin[t : t + 1]) * rotate(k, cos[s : s + 1], sin[s : s + 1])).sum()

    for gap in (0, 3, 50):
        torch.testing.assert_close(score(gap, 0), score(149 + gap, 149), rtol=1e-5, atol=1e-5)
    assert (score(3, 0) - score(50, 0)).abs() > 1e-2


@torch.no_grad()
def test_a_part_of_a_head_can_be_left_unrotated():
    """RecurrentGemma: the first half of a head's channels is turned, with frequencies of that half."""
    mixer, x, l = build(num_heads=2, rope_fraction=0.5), torch.randn(1, 9, 16), 9
    q, k, v = (f(x).view(l, 2, 8).double() for f in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    want = torch.zeros(l, 2, 8, dtype=torch.float64)
    for h in range(2):
        for t in range(l):
            scores = []
            for s in range(t + 1):
                turn = torch.polar(torch.ones(2), (t - s) * 10000.0 ** (-torch.arange(0, 4, 2) / 4)).to(
                    torch.complex128
                )
                a, b = (torch.complex(m[:2], m[2:4]) for m in (q[t, h], k[s, h]))
                scores.append((turn * a * b.conj()).real.sum() + (q[t, h, 4:] * k[s, h, 4:]).sum())
            weights = (torch.stack(scores) / 8**0.5).softmax(0)
            want[t, h] = weights @ v[: t + 1, h]
    got = mixer(x)[0][0]
    torch.testing.assert_close(got, mixer.out_proj(want.flatten(1).float()), rtol=1e-4, atol=1e-4)


def test_initial_maps():
    """Glorot's variance, 2 / (in + out), or a given one."""
    mixer = create_mixer("attention", 128, num_heads=4, num_kv_heads=2)
    assert mixer.q_proj.weight.std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert mixer.k_proj.weight.std().item() == pytest.approx((2 / 192) ** 0.5, rel=0.02)
    assert create_mixer("attention", 128, init_std=0.02).q_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_shared_heads_are_repeated_heads():
    grouped, full = build(num_kv_heads=2), build()
    with torch.no_grad():
        full.load_state_dict(grouped.state_dict() | {
            name: grouped.state_dict()[name].view(2, 4, 16).repeat_interleave(2, 0).reshape(16, 16)
            for name in ("k_proj.weight", "v_proj.weight")
        })  # fmt: skip
    x = torch.randn(2, 10, 16)
    torch.testing.assert_close(grouped(x)[0], full(x)[0])


@pytest.mark.parametrize("pieces", [[1] * 20, [5, 15], [12, 1, 7]], ids=str)
@pytest.mark.parametrize("options", [{"window": 3}, {"window": 6, "num_kv_heads": 1}, {}], ids=str)
def test_a_cache_goes_on_exactly(options, pieces):
    mixer, x = build(**options), torch.randn(2, 20, 16)
    state, ys = mixer.init_state(2), []
    for piece in x.split(pieces, 1):
        y, state = mixer(piece, state)
        ys.append(y)
    torch.testing.assert_close(torch.cat(ys, 1), mixer(x)[0], rtol=1e-5, atol=1e-5)
    assert (state["pos"] == 20).all()


def test_segments_do_not_see_each_other_both_ways():
    mixer, x = build(causal=False, window=4), torch.randn(1, 9, 16)
    reset = torch.arange(9)[None] == 5
    y, _ = mixer(x, reset=reset)
    torch.testing.assert_close(y, torch.cat([mixer(x[:, :5])[0], mixer(x[:, 5:])[0]], 1))


def test_bad_options():
    with pytest.raises(Unsupported):
        build(causal=False).init_state(1)
    with pytest.raises(ValueError, match="heads"):
        create_mixer("attention", 16, num_heads=3)
    with pytest.raises(ValueError, match="even head width"):
        create_mixer("attention", 6, num_heads=2)
    with pytest.raises(ValueError, match="rope_fraction=2"):
        build(rope_fraction=2)
    with pytest.raises(ValueError, match="window=0"):
        create_mixer("attention", 16, window=0)
