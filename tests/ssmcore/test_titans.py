"""Titans' linear memory: gradient descent on the tokens, by autograd; the batch as part of the model; DeltaNet."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.functional import chunked_scan
from ssmcore.mixer import Context
from ssmcore.mixers.matrix_memory import unit


def parts(mixer, x):
    h = mixer.num_heads
    q, k, v = (proj(x).unflatten(-1, (h, -1)) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    alpha, eta, theta = mixer.gates(x).unflatten(-1, (3, -1)).sigmoid().unbind(-2)
    return q, k, v, alpha, eta, (1 - eta) * theta / mixer.config.batch


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_it_is_gradient_descent_with_momentum(batch):
    torch.manual_seed(0)
    mixer = create_mixer("titans", 6, num_heads=2, batch=batch).double()
    x = torch.randn(1, 13, 6, dtype=torch.float64)
    q, k, v, alpha, eta, theta = parts(mixer, x)
    got, state = mixer.remember(x, q, k, v, None, Context())
    q, k = unit(q), unit(k)
    M, S = torch.zeros(2, 3, 3, dtype=torch.float64), torch.zeros(2, 3, 3, dtype=torch.float64)
    for t in range(13):
        if t % batch == 0:
            start = M
        weights = start.detach().requires_grad_()
        loss = 0.5 * (torch.einsum("hnp,hn->hp", weights, k[0, t]) - v[0, t]).square().sum()
        (gradient,) = torch.autograd.grad(loss, weights)
        S = eta[0, t, :, None, None] * S - theta[0, t, :, None, None] * gradient
        M = (1 - alpha[0, t, :, None, None]) * M + S
        torch.testing.assert_close(got[0, t], torch.einsum("hnp,hn->hp", M, q[0, t]))
    torch.testing.assert_close(state["memory"][0], M)
    torch.testing.assert_close(state["momentum"][0], S)


@torch.no_grad()
def test_without_momentum_and_forgetting_it_is_deltanet():
    mixer, x = create_mixer("titans", 6, batch=1).double(), torch.randn(2, 13, 6, dtype=torch.float64)
    mixer.gates.weight[:2] = 0
    mixer.gates.bias[:2] = -200.0
    q, k, v, _, _, theta = parts(mixer, x)
    want = chunked_scan(unit(q), unit(k), v, beta=theta)
    torch.testing.assert_close(mixer.remember(x, q, k, v, None, Context())[0], want)


@torch.no_grad()
def test_the_batch_is_part_of_the_model():
    one, four = create_mixer("titans", 6, batch=1).double(), create_mixer("titans", 6, batch=4).double()
    four.load_state_dict(one.state_dict())
    x = torch.randn(1, 13, 6, dtype=torch.float64)
    assert (one(x)[0] - four(x)[0]).abs().max() > 1e-3
