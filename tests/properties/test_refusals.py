"""What a mixer says it can, it does; what it cannot, it refuses."""

import pytest
import torch

from ssmcore import Unsupported
from ssmcore import state as states
from ssmcore.channels import CHANNEL_MIXERS
from tests.properties.cases import assert_close, assert_same_state, build, cases, run, run_by_steps, shared_for, tokens


@pytest.mark.parametrize("case", cases("takes_dt"))
def test_steps_of_time_are_honoured(case):
    mixer, x, ones = build(case), tokens(2, 8), torch.ones(2, 8)
    y, _ = run(mixer, x)
    assert_close(run(mixer, x, dt=ones)[0], y)
    if case[0] not in CHANNEL_MIXERS:  # no time passes in a map of single tokens
        # Not an even stretch, which a memory without a timescale cannot feel.
        uneven = ones * torch.linspace(0.5, 4, 8)
        assert (run(mixer, x, dt=uneven)[0] - y).abs().max() > 1e-3 * y.abs().max()


@pytest.mark.parametrize("case", cases("recurrent", "takes_dt", "takes_rows"))
def test_steps_of_time_with_resets_and_pieces(case):
    mixer, x, dt = build(case), tokens(1, 9), torch.rand(1, 9, generator=torch.Generator().manual_seed(0)) * 3
    y, state = run(mixer, x, dt=dt, reset=torch.arange(9)[None] == 4)
    head, _ = run(mixer, x[:, :4], dt=dt[:, :4])
    middle, between = run(mixer, x[:, 4:6], dt=dt[:, 4:6])
    tail, last = run_by_steps(mixer, x[:, 6:], between, dt=dt[:, 6:])
    assert_close(y, torch.cat([head, middle, tail], 1))
    assert_same_state(mixer, state, last)


@pytest.mark.parametrize("case", cases("no takes_dt"))
def test_steps_of_time_are_refused(case):
    with pytest.raises(Unsupported):
        run(build(case), tokens(2, 8), dt=torch.ones(2, 8))


@pytest.mark.parametrize("case", cases("no recurrent"))
def test_state_is_refused(case):
    mixer, x = build(case), tokens(1, 4)
    shared = shared_for(mixer, 4)
    for call in (
        lambda: mixer.init_state(1),
        lambda: mixer(x, {}, shared=shared),
        lambda: mixer(x, return_state=True, shared=shared),
        lambda: mixer.step(x[:, 0], {}, shared=shared),
    ):
        with pytest.raises(Unsupported):
            call()


@pytest.mark.parametrize("case", cases("no takes_rows"))
@pytest.mark.parametrize("name", ["reset", "mask"])
def test_rows_are_refused(case, name):
    with pytest.raises(Unsupported):
        run(build(case), tokens(1, 4), **{name: torch.ones(1, 4, dtype=torch.bool)})


def test_bad_arguments_are_named(mixer):
    x = tokens(2, 4)
    shared = shared_for(mixer, 4)
    with pytest.raises(ValueError, match="x has shape"):
        mixer(x[..., :5], shared=shared)
    with pytest.raises(ValueError, match="mask has shape"):
        mixer(x, mask=torch.ones(2, 3, dtype=torch.bool), shared=shared)
    with pytest.raises(ValueError, match="reset has dtype"):
        mixer(x, reset=torch.ones(2, 4), shared=shared)
    if mixer.recurrent and states.batch_size(mixer.init_state(3)):
        with pytest.raises(ValueError, match="batch size"):
            mixer(x, mixer.init_state(3))
