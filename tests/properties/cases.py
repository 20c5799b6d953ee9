"""The laws of the mixer contract, for every registered name: a new mixer is tested here without a new test.

Each mixer's class says what it can do (causal, recurrent, takes_rows, takes_dt, lti ...) and with which options it is
to be tried (`examples`). What it says it cannot do, it must refuse; what it says it can, it must do exactly.
"""

import functools

import pytest
import torch
from torch import nn

from ssmcore import create_mixer
from ssmcore import state as states
from ssmcore.mixers import registered_mixers

D = 8
KINDS = registered_mixers()


def build(case, dtype=torch.float32, seed=0):
    """A mixer whose tiny initial weights are made large enough for a mistake to show in the output."""
    torch.manual_seed(seed)
    name, options = case
    mixer = create_mixer(name, D, **options)
    for module in mixer.modules():
        if isinstance(module, nn.Linear) and module.weight.std() < 0.1:
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return mixer.to(dtype)


@functools.cache
def probe(name, i):
    """A mixer that is only asked what it can do."""
    return build((name, KINDS[name].examples[i]))


def cases(*flags):
    """The registered names and example options whose mixers have (or, with "no ", have not) the given abilities."""
    chosen = []
    for name, kind in KINDS.items():
        for i, options in enumerate(kind.examples):
            if all(getattr(probe(name, i), flag.removeprefix("no ")) != flag.startswith("no ") for flag in flags):
                chosen.append(pytest.param((name, options), id=f"{name}-{i}"))
    return chosen


def shared_for(mixer, l):
    """Values for what a mixer `needs`; a mixer with a new need adds a line."""
    h = max((i for i in range(1, int(l**0.5) + 1) if l % i == 0), default=1)
    return {name: {"grid": (h, l // h)}[name] for name in mixer.needs}


def tokens(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, D, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def run(mixer, x, state=None, **kwargs):
    """A call that asks for the state where there is one."""
    return mixer(x, state, shared=shared_for(mixer, x.shape[1]), return_state=mixer.recurrent, **kwargs)


def run_by_steps(mixer, x, state, **per_token):
    outputs = []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state, **{name: v[:, t] for name, v in per_token.items()})
        outputs.append(y)
    return torch.stack(outputs, 1), state


def assert_close(got, want, tol=1e-5):
    """Equal up to `tol` of the largest number of `want`."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    scale = want.abs().max().item() if want.numel() else 0.0
    assert torch.isfinite(torch.view_as_real(got) if got.is_complex() else got).all()
    assert (got - want).abs().max().item() <= tol * scale + 1e-30 if want.numel() else True


def assert_same_state(mixer, got, want, tol=1e-5):
    """Equal tensors; a cache that grows may hold dead entries, so there the answers to more tokens are compared."""
    if mixer.bounded_state:
        states.map_state(lambda a, b: assert_close(a, b, tol) or a, got, want)
        return
    b = states.batch_size(want)
    more = tokens(b, 3, seed=9).to(next(mixer.parameters()).dtype)
    assert_close(mixer(more, got)[0], mixer(more, want)[0], tol)


def leaves(state):
    return [x for v in state.values() for x in (leaves(v) if isinstance(v, dict) else [v])]


def sum_of(state, fn):
    return sum(map(fn, leaves(state)))
