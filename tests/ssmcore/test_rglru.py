"""RG-LRU: frozen by a closed gate, keeps variance, and takes a sequence's first token whole."""

import torch
import torch.nn.functional as F

from ssmcore import create_mixer
from ssmcore.functional import linear_recurrence


def mixer_of(d=6, **options):
    torch.manual_seed(0)
    return create_mixer("rglru", d, expand=1.0, **options).double()


@torch.no_grad()
def test_the_recurrence_by_hand():
    mixer, u = mixer_of(num_heads=2), torch.randn(1, 5, 6, dtype=torch.float64)
    first = torch.tensor([[True, False, False, False, False]])
    a, drive = mixer.recurrence(u, first)
    for t in range(5):
        r, i = (
            torch.cat([u[0, t, 3 * h : 3 * h + 3] @ mixer.gates[g, h] for h in range(2)]).sigmoid() for g in range(2)
        )
        want = torch.exp(-8 * F.softplus(mixer.Lambda) * r)
        torch.testing.assert_close(a[0, t], want)
        torch.testing.assert_close(drive[0, t], i * u[0, t] * (1 if t == 0 else (1 - want**2).sqrt()))


@torch.no_grad()
def test_a_closed_gate_freezes_the_state():
    mixer, x = mixer_of(), torch.randn(2, 9, 6, dtype=torch.float64)
    _, state = mixer(x, return_state=True)
    mixer.gates_bias[0] = -200.0
    _, after = mixer(x.flip(1), state)
    torch.testing.assert_close(after["h"], state["h"], rtol=0, atol=2e-2)  # the root is cut where a reaches 1
    assert after["pos"].tolist() == [18, 18]


@torch.no_grad()
def test_white_input_keeps_its_variance():
    mixer = mixer_of(4)
    mixer.gates.zero_()
    mixer.gates_bias[1] = 50.0  # input gate open, recurrence gate at one half
    u = torch.randn(1, 200_000, 4, dtype=torch.float64)
    a, drive = mixer.recurrence(u, torch.zeros(1, 200_000, dtype=torch.bool))
    variance = linear_recurrence(a, drive)[0, 5000:].var(0)
    assert ((variance - 1).abs() < 0.1).all()


@torch.no_grad()
def test_initial_decays_lie_in_the_ring():
    decay = torch.exp(-F.softplus(create_mixer("rglru", 300).Lambda))
    assert (decay >= 0.9 - 1e-6).all()
    assert (decay <= 0.999 + 1e-6).all()


@torch.no_grad()
def test_the_first_token_counts_whole_only_once():
    mixer, x = mixer_of(), torch.randn(1, 4, 6, dtype=torch.float64)
    assert mixer(x, return_state=True)[1]["pos"].tolist() == [4]
    whole = mixer(x)[0]
    state = mixer.init_state(1)
    for t in range(4):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t])
