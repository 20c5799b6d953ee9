"""Resets are new sequences and padding does not exist: exactly, and wherever they stand."""

import itertools

import pytest
import torch

from ssmcore import state as states
from tests.properties.cases import assert_close, assert_same_state, build, cases, run, run_by_steps, tokens


def segments_of(starts, l):
    bounds = [0, *starts, l]
    return list(itertools.pairwise(bounds))


@pytest.mark.parametrize("starts", [[0], [11], [4, 5], [3, 8], [0, 1, 2, 11], []], ids=str)
@pytest.mark.parametrize("continued", [False, True])
def test_a_reset_is_a_new_sequence(with_rows, starts, continued):
    mixer = with_rows
    x, l = tokens(3, 12), 12
    before = run(mixer, tokens(3, 5, seed=7))[1] if continued and mixer.recurrent else None
    reset = torch.zeros(3, l, dtype=torch.bool)
    reset[1, starts] = True
    reset[2, 6] = True
    y, state = run(mixer, x, before, reset=reset)
    for item, its_starts in enumerate(([], starts, [6])):
        one = None if before is None else states.gather(before, torch.tensor([item]))
        for a, b in segments_of(its_starts, l):
            if a:
                one = None
            elif its_starts[:1] == [0]:
                one = None
            if b > a:
                want, one = run(mixer, x[item : item + 1, a:b], one)
                assert_close(y[item : item + 1, a:b], want)
        if mixer.recurrent:
            assert_same_state(mixer, states.gather(state, torch.tensor([item])), one)


@pytest.mark.parametrize("case", cases("recurrent", "takes_rows"))
def test_resets_and_padding_by_steps(case):
    recurrent = build(case)
    x = tokens(3, 10)
    generator = torch.Generator().manual_seed(4)
    reset, mask = torch.rand(3, 10, generator=generator) < 0.3, torch.rand(3, 10, generator=generator) < 0.7
    _, before = run(recurrent, tokens(3, 4, seed=8))
    y, state = recurrent(x, before, reset=reset, mask=mask)
    stepped, last = run_by_steps(recurrent, x, before, reset=reset, mask=mask)
    assert_close(stepped, y)
    assert_same_state(recurrent, last, state)


@pytest.mark.parametrize("lengths", [(9, 4, 0), (1, 9, 9)], ids=str)
@pytest.mark.parametrize("side", ["left", "right", "inside"])
def test_padding_does_not_exist(with_rows, side, lengths):
    mixer, l = with_rows, 9
    mask = torch.zeros(3, l, dtype=torch.bool)
    for item, n in enumerate(lengths):
        places = {"left": range(l - n, l), "right": range(n), "inside": [*range(n // 2), *range(l - n + n // 2, l)]}
        mask[item, list(places[side])] = True
    x = tokens(3, l)
    x[~mask] = float("nan")
    before = run(mixer, tokens(3, 5, seed=7))[1] if mixer.recurrent else None
    y, state = run(mixer, x, before, mask=mask)
    assert (y[~mask] == 0).all()
    for item in range(3):
        index = torch.tensor([item])
        one = None if before is None else states.gather(before, index)
        want, last = run(mixer, x[item : item + 1, mask[item]], one)
        assert_close(y[item, mask[item]][None], want)
        if mixer.recurrent:
            assert_same_state(mixer, states.gather(state, index), last)


def test_padding_has_no_gradient(with_rows):
    x = tokens(2, 7).requires_grad_()
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:], mask[1, :3] = False, False
    run(with_rows, x, mask=mask)[0].square().sum().backward()
    assert (x.grad[~mask] == 0).all()
    assert torch.isfinite(x.grad).all()
    assert x.grad[mask].abs().max() > 0
