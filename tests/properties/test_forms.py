"""One answer whatever the form: whole, in pieces, by steps, in either precision, on either backend; and causal."""

import pytest
import torch

from ssmcore import state as states
from tests.properties.cases import (
    D,
    assert_close,
    assert_same_state,
    build,
    cases,
    run,
    run_by_steps,
    shared_for,
    sum_of,
    tokens,
)


@pytest.mark.parametrize("l", [1, 2, 3, 17, 70, pytest.param(200, marks=pytest.mark.slow)])
def test_steps_equal_the_whole(recurrent, l):
    x = tokens(2, l)
    y, state = run(recurrent, x)
    stepped, last = run_by_steps(recurrent, x, recurrent.init_state(2))
    assert_close(stepped, y)
    assert_same_state(recurrent, last, state)
    assert_close(recurrent(x)[0], y)  # asking for the state may choose another algorithm, not another answer


@pytest.mark.parametrize("case", cases("recurrent"))
def test_steps_equal_the_whole_in_float64(case):
    mixer = build(case, torch.float64)
    x = tokens(2, 17, dtype=torch.float64)
    y, state = run(mixer, x)
    stepped, last = run_by_steps(mixer, x, mixer.init_state(2))
    assert y.dtype == torch.float64
    assert_close(stepped, y, 1e-10)
    assert_close(mixer(x)[0], y, 1e-10)
    assert_same_state(mixer, last, state, 1e-10)


def test_backends_agree(mixer, monkeypatch):
    x = tokens(2, 12)
    y, state = run(mixer, x)
    monkeypatch.setenv("SSM_KERNELS_BACKEND", "reference")
    want, want_state = run(mixer, x)
    assert_close(y, want)
    if mixer.recurrent:
        assert_same_state(mixer, state, want_state)


@pytest.mark.parametrize("case", cases("recurrent"))
def test_gradients_of_pieces_equal_those_of_the_whole(case):
    def gradients(cut):
        mixer, x = build(case), tokens(2, 17).requires_grad_()
        outputs, state = [], None
        for piece in x.split(cut, 1):
            y, state = mixer(piece, state, return_state=True)
            outputs.append(y)
        loss = (torch.cat(outputs, 1) * tokens(2, 17, seed=3)).sum()
        (loss + sum_of(state, lambda s: s.abs().square().sum() if s.requires_grad else 0)).backward()
        return {"x": x.grad, **{name: p.grad for name, p in mixer.named_parameters()}}

    want, got = gradients([17]), gradients([7, 1, 9])
    for name, grad in want.items():
        assert grad is not None, f"{name} has no gradient"
        assert_close(got[name], grad, 1e-4)


def test_a_sequence_in_two_pieces(recurrent):
    x = tokens(2, 9)
    y, state = run(recurrent, x)
    for cut in range(10):
        head, between = run(recurrent, x[:, :cut])
        tail, last = recurrent(x[:, cut:], between)
        assert_close(torch.cat([head, tail], 1), y)
        assert_same_state(recurrent, last, state)


def test_the_initial_state_is_no_state(recurrent):
    x = tokens(2, 6)
    assert_close(recurrent(x, recurrent.init_state(2))[0], run(recurrent, x)[0])


def test_causality_is_as_declared(mixer):
    x = tokens(1, 12).requires_grad_()
    y = mixer(x, shared=shared_for(mixer, 12))[0]
    gradients = [torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)[0][0] for t in range(12)]
    influence = torch.stack(gradients).abs().amax(-1)  # (t, s)
    assert (influence.diagonal() > 0).all()
    ahead = influence.triu(1)
    if mixer.causal:
        assert ahead.max() <= (1e-6 * influence.max() if "fft" in mixer.operator else 0)  # it leaves rounding errors
    else:
        assert ahead.max() > 1e-6 * influence.max(), "declared non-causal, but no output sees a later token"


@pytest.mark.parametrize("steps", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", cases("recurrent", "bounded_state"))
@torch.no_grad()
def test_many_steps_stay_bounded(case, steps):
    recurrent = build(case)
    state = recurrent.init_state(2)
    generator = torch.Generator().manual_seed(0)
    largest = []
    for _ in range(50):
        x = torch.randn(2, steps // 50, D, generator=generator)
        x[1] = 1.0
        y, state = recurrent(x, state)
        assert torch.isfinite(y).all()
        largest.append(y.abs().max().item())
    assert max(largest) <= 4 * max(largest[:5])


def test_bfloat16_tokens_keep_a_wide_state(mixer):
    x = tokens(2, 33).bfloat16()
    want, _ = run(mixer, x.float())
    with torch.autocast("cpu", torch.bfloat16):
        y, state = run(mixer, x)
    assert (y.float() - want).norm() <= 0.02 * want.norm()
    if mixer.recurrent:
        allowed = {torch.float32, torch.complex64, torch.int64}
        states.map_state(lambda t: t if t.dtype in allowed else pytest.fail(f"state of {t.dtype}"), state)
