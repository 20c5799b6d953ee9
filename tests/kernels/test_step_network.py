"""The native step loop: packed layers against torch, drawing against its oracle, streams apart from one another."""

import pytest
import torch
import torch.nn.functional as F
from ssm_kernels import native_build
from ssm_kernels.step_network.native import Network, lanes
from ssm_kernels.step_network.pack import Builder
from ssm_kernels.step_network.reference import Draw, draw_token, uniform

pytestmark = pytest.mark.skipif(native_build.compiler() is None, reason="no C compiler")


def table_of(vectors, layer, n, weights="float32"):
    """A network whose logits are `layer` of the token's row of a table; returns what one step makes of each row."""
    b = Builder(lanes(), weights)
    x, y, logits = b.scratch(vectors.shape[1]), b.scratch(n), b.scratch(n)
    b.embed(vectors, x)
    layer(b, x, y)
    b.emit("copy", n=n, from_=y, to=logits)
    network = Network(b, logits, n)
    streams = network.streams(len(vectors), 0)
    streams.registers[:, 0] = torch.arange(len(vectors))
    given = torch.zeros(len(vectors), 1, dtype=torch.int64)
    return network.run(streams, 1, given=given, keep_logits=True).logits[:, 0]


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("activation", ["none", "gelu", "glu", "added"])
@pytest.mark.parametrize(("n", "k"), [(16, 8), (48, 32), (130, 20), (256, 66)])
def test_linear_maps(weights, activation, n, k):
    rows = 2 * n if activation == "glu" else n
    W, bias, x = torch.randn(rows, k) / k**0.5, torch.randn(rows), torch.randn(5, k)
    got = table_of(x, lambda b, a, y: b.linear(W, bias, a, y, activation), n, weights)
    if weights == "bfloat16":
        W = W.bfloat16().float()
    if weights == "int8":
        scale = W.abs().amax(1, keepdim=True) / 127
        W = (W / scale).round() * scale
    want = F.linear(x, W, bias)
    want = {"gelu": F.gelu, "glu": F.glu}.get(activation, lambda t: t)(want)
    # int8 rounds its inputs to 15 bits of the largest.
    torch.testing.assert_close(
        got, want, rtol=0, atol=3e-4 if weights == "int8" else 2e-6 * want.abs().max().item() + 2e-6
    )


@pytest.mark.parametrize("d", [5, 16, 40])
def test_norm(d):
    w, bias, x = torch.randn(d), torch.randn(d), 3 * torch.randn(4, d) + 1
    got = table_of(x, lambda b, a, y: b.norm(w, bias, 1e-5, a, y), d)
    torch.testing.assert_close(got, F.layer_norm(x, (d,), w, bias), rtol=0, atol=1e-5)


def test_an_odd_map_stays_exact():
    W, x = torch.randn(16, 7), torch.randn(3, 7)
    got = table_of(x, lambda b, a, y: b.linear(W, None, a, y), 16, "int8")
    torch.testing.assert_close(got, x @ W.T, rtol=0, atol=1e-5)


def test_unknown_format():
    with pytest.raises(ValueError, match="float32"):
        Builder(lanes(), "float8")


# ---- drawing ----

DRAWS = [Draw(), Draw(temperature=0.6), Draw(temperature=0), Draw(top_k=7), Draw(top_p=0.4)]
DRAWS += [Draw(temperature=1.7, top_k=100, top_p=0.9), Draw(top_k=1), Draw(top_p=1e-6)]


def drawing_network(logits):
    b = Builder(lanes())
    x = b.scratch(logits.shape[1])
    b.embed(logits, x)
    return Network(b, x, logits.shape[1])


@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_draws_equal_the_oracle(draw):
    logits = 2 * torch.randn(256, 256)
    network = drawing_network(logits)
    streams = network.streams(3, 128)
    made = network.run(streams, 200, seeds=[0, 5, 2**62], draw=draw)
    for row, seed in zip(made.tokens, [0, 5, 2**62], strict=True):
        before = [128, *row[:-1].tolist()]
        assert row.tolist() == [draw_token(logits[token], draw, seed, t) for t, token in enumerate(before)]
    want = torch.tensor([logits[a].log_softmax(0)[b] for a, b in zip([128, *made.tokens[0, :-1]], made.tokens[0])])
    torch.testing.assert_close(made.log_likelihood[0], want, rtol=0, atol=1e-5)
    assert streams.registers[0].tolist() == [int(made.tokens[0, -1]), 200]


@pytest.mark.parametrize("native", [True, False])
def test_ties_at_the_border_are_kept(native):
    """Levels 1 to 4 are as likely: top_k of 2, or top_p of 0.5, cannot keep some of them and not the others."""
    logits = torch.full((6, 6), -3.0)
    logits[:, 1:5] = 1.0
    for draw in (Draw(top_k=2), Draw(top_p=0.5)):
        if native:
            tokens = (
                drawing_network(logits).run(drawing_network(logits).streams(1, 0), 400, seeds=[3], draw=draw).tokens
            )
            seen = set(tokens[0].tolist())
        else:
            seen = {draw_token(logits[0], draw, 3, t) for t in range(400)}
        assert seen == {1, 2, 3, 4}


def test_draws_follow_the_distribution():
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    tokens = drawing_network(p.log().expand(4, 4).contiguous())
    made = tokens.run(tokens.streams(1, 0), 40_000, seeds=[11], draw=Draw())
    share = torch.bincount(made.tokens[0], minlength=4) / 40_000
    # Five standard deviations of a share of a half.
    torch.testing.assert_close(share, p, rtol=0, atol=5 * 0.5 / 200)


def test_uniform_numbers_are_spread_and_repeatable():
    u = torch.tensor([[uniform(seed, t) for t in range(500)] for seed in range(40)], dtype=torch.float64)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * 12**-0.5 / 20_000**0.5
    assert abs(torch.corrcoef(torch.stack([u[:, :-1].flatten(), u[:, 1:].flatten()]))[0, 1]) < 5 / 20_000**0.5
    assert abs(torch.corrcoef(torch.stack([u[:-1].flatten(), u[1:].flatten()]))[0, 1]) < 5 / 20_000**0.5
    assert len(set(u.flatten().tolist())) == u.numel()
    assert uniform(3, 4) == uniform(3, 4)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 2}]
)
def test_draws_refuse(wrong):
    with pytest.raises(ValueError, match="Draw: temperature="):
        Draw(**wrong)
