"""Mega: its moving average by definition, its attention full and in chunks."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore import Stack, create_mixer
from ssmcore.mixer import Context
from ssmcore.mixers.diagonal_lti import diagonal_kernel, run_diagonal


def mega(d=6, **options):
    torch.manual_seed(0)
    mixer = create_mixer("mega", d, d_state=3, **options).double()
    for p in mixer.parameters():
        if p.std() < 0.1:
            torch.nn.init.normal_(p, std=0.4)
    return mixer


X = torch.randn(2, 11, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_average_by_definition():
    mixer = mega()
    p, a = mixer.delta.sigmoid(), mixer.alpha.sigmoid()
    h, want = torch.zeros(2, 6, 3, dtype=torch.float64), []
    for t in range(11):
        h = (1 - p * a) * h + p * mixer.beta * X[:, t, :, None]
        want.append((mixer.gamma * h).sum(-1) / 3**0.5 + mixer.omega * X[:, t])
    want = torch.stack(want, 1)
    for ctx in (Context(), Context(return_state=True)):
        torch.testing.assert_close(run_diagonal(mixer.averages(), mixer.omega, X, None, ctx, "euler")[0], want)
    kernel = diagonal_kernel(mixer.averages(), mixer.omega, 11, "euler")
    torch.testing.assert_close(want[:, 10], (kernel.flip(0) * X).sum(1))


@torch.no_grad()
def test_a_chunk_as_long_as_the_sequence_is_full_attention():
    full, chunked = mega(), mega(chunk=16)
    chunked.load_state_dict(full.state_dict())
    torch.testing.assert_close(full(X)[0], chunked(X)[0])


@torch.no_grad()
def test_only_the_average_crosses_chunks():
    mixer = mega(chunk=4)
    with_average = mixer(X)[0]
    assert (with_average - mixer(torch.cat([X[:, :4] * 2, X[:, 4:]], 1))[0])[:, 4:].abs().max() > 1e-4
    mixer.gamma.zero_()  # now nothing is left of the past but what attention sees
    changed = mixer(torch.cat([X[:, :4] * 2, X[:, 4:]], 1))[0]
    torch.testing.assert_close(changed[:, 4:], mixer(X)[0][:, 4:])
    changed = mixer(torch.cat([X[:, :5] * 2, X[:, 5:]], 1))[0]
    assert (changed - mixer(X)[0])[:, 5:8].abs().max() > 1e-4
    torch.testing.assert_close(changed[:, 8:], mixer(X)[0][:, 8:])


@torch.no_grad()
def test_the_gates_by_hand():
    mixer = mega()
    average, _ = run_diagonal(mixer.averages(), mixer.omega, X, None, Context(), "euler")
    m = F.silu(average)
    z = F.silu(mixer.z_proj(m))
    o, _ = mixer.attend(
        z * mixer.scale[0] + mixer.offset[0],
        z * mixer.scale[1] + mixer.offset[1],
        F.silu(mixer.v_proj(X)),
        None,
        Context(),
    )
    hidden = F.silu(mixer.h_proj(m) + mixer.u_proj(F.silu(mixer.r_proj(m)) * o))
    phi = mixer.p_proj(m).sigmoid()
    torch.testing.assert_close(mixer(X)[0], phi * hidden + (1 - phi) * X)


@pytest.mark.parametrize("chunk", [None, 4])
@torch.no_grad()
def test_the_layer_token_by_token(chunk):
    """Nothing of ours but the weights: averages, rotary softmax attention in chunks, gates."""
    mixer, turn = mega(chunk=chunk), 10000.0
    p, a = mixer.delta.sigmoid(), mixer.alpha.sigmoid()
    h, known, want = torch.zeros(6, 3, dtype=torch.float64), [], []
    for t in range(11):
        x = X[0, t]
        h = (1 - p * a) * h + p * mixer.beta * x[:, None]
        m = F.silu((mixer.gamma * h).sum(-1) / 3**0.5 + mixer.omega * x)
        z = F.silu(mixer.z_proj(m))
        q, k = z * mixer.scale[0] + mixer.offset[0], z * mixer.scale[1] + mixer.offset[1]
        if chunk and t % chunk == 0:
            known = []
        place, half = len(known), len(q) // 2
        angle = place * turn ** (-torch.arange(half, dtype=torch.float64) / half)
        q, k = (torch.complex(w[:half], w[half:]) * torch.polar(torch.ones_like(angle), angle) for w in (q, k))
        known.append((k, F.silu(mixer.v_proj(x))))
        scores = torch.stack([(q * key.conj()).real.sum() for key, _ in known]) / (2 * half) ** 0.5
        o = sum(w * v for w, (_, v) in zip(scores.softmax(0), known, strict=True))
        hidden = F.silu(mixer.h_proj(m) + mixer.u_proj(F.silu(mixer.r_proj(m)) * o))
        phi = mixer.p_proj(m).sigmoid()
        want.append(phi * hidden + (1 - phi) * x)
    torch.testing.assert_close(mixer(X)[0][0], torch.stack(want), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("placement", ["pre", "post"])
@torch.no_grad()
def test_in_a_stack_the_gate_is_the_residual_connection(placement):
    """The published block: y = phi silu(..) + (1 - phi) stream, norms before (of what the layer sees) or after it."""
    mixer = mega()
    stack = Stack(6, "M", mixers={"M": lambda d: mixer}, norm="layer", placement=placement, final_norm=False).double()
    norm = stack.layers[0].branches[0].norm
    hidden, phi, _ = mixer.gated(norm(X) if placement == "pre" else X, None, Context())
    want = phi * hidden + (1 - phi) * X
    torch.testing.assert_close(stack(X)[0], want if placement == "pre" else norm(want))
    state, ys = stack.init_state(2, dtype=torch.float64), []
    for t in range(11):
        y, state = stack.step(X[:, t], state)
        ys.append(y)
    torch.testing.assert_close(torch.stack(ys, 1), stack(X)[0])


@torch.no_grad()
def test_laplace_weights():
    mixer = mega(attention="laplace", rope_base=1e30)
    q, k, v = (torch.randn(1, 5, n, dtype=torch.float64) for n in (2, 2, 12))
    k = k.abs() + 1
    o, _ = mixer.attend(q, k, v, None, Context())
    visible = torch.arange(1, 6)[:, None]
    from ssmcore.mixers.attention import rotary_table, rotate

    cos, sin = rotary_table(5, 2, 1e30)
    q, k = (rotate(t[:, :, None], cos, sin)[:, :, 0] for t in (q, k))
    normal = torch.distributions.Normal(0.5**0.5, (1 / (4 * torch.pi)) ** 0.5)
    weights = normal.cdf(q @ k.mT / visible).tril()
    torch.testing.assert_close(o, weights @ v, rtol=1e-6, atol=1e-7)
