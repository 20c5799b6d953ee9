"""Batch items do not meet, and a state is plain data."""

import torch

from ssmcore import state as states
from tests.properties.cases import assert_close, assert_same_state, leaves, run, sum_of, tokens


def test_batch_items_do_not_meet(mixer):
    x = tokens(3, 10)
    y, _ = run(mixer, x)
    for i in range(3):
        assert_close(run(mixer, x[i : i + 1])[0], y[i : i + 1])


def test_no_batch_or_no_step_is_an_empty_answer(mixer):
    """As the last, short batch of a shard may be; gradients are zeros."""
    for b, l in ((0, 4), (0, 0), (2, 0)):
        y, state = run(mixer, tokens(b, l).requires_grad_())
        assert y.shape == tokens(b, l).shape
        if y.requires_grad:
            y.sum().backward()
        assert all((p.grad == 0).all() for p in mixer.parameters() if p.grad is not None)
        if mixer.recurrent:
            assert_same_state(mixer, state, mixer.init_state(b))


def test_the_given_state_is_not_changed(recurrent):
    _, state = run(recurrent, tokens(2, 5))
    kept = states.map_state(torch.clone, state)
    flags = torch.tensor([True, False])
    calls = [lambda: recurrent(tokens(2, 4), state), lambda: recurrent.step(tokens(2), state)]
    if recurrent.takes_rows:
        calls.append(lambda: recurrent.step(tokens(2), state, reset=flags, mask=~flags))
        calls.append(lambda: recurrent(tokens(2, 1), state, reset=flags[:, None], mask=~flags[:, None]))
    for call in calls:
        _, new = call()
        assert all(leaves(states.map_state(torch.equal, state, kept)))
        assert not any(leaves(states.map_state(lambda a, b: a.numel() and a.data_ptr() == b.data_ptr(), new, state)))


def test_state_survives_reordering_and_casting(recurrent):
    more = tokens(3, 4, seed=5)
    _, state = run(recurrent, tokens(3, 6))
    y, _ = recurrent(more, state)
    order = torch.tensor([2, 0, 0])
    assert_close(recurrent(more[order], states.gather(state, order))[0], y[order])
    back = states.to(states.to(state, dtype=torch.float64, device="cpu"), dtype=torch.float32)
    assert_close(recurrent(more, back)[0], y)
    assert states.batch_size(state) in (3, None)


def test_state_size_is_as_declared(recurrent):
    def size(l):
        return sum_of(run(recurrent, tokens(1, l))[1], torch.numel)

    assert (size(9) == size(30)) == recurrent.bounded_state
    if recurrent.bounded_state:
        assert sum_of(recurrent.init_state(1), torch.numel) == size(9)
