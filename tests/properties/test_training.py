"""What training meets: initialisation in a stack, parameter groups, configuration, weights."""

import copy
import dataclasses
import typing

import pytest
import torch

import ssmcore
from ssmcore import create_mixer
from ssmcore.engine.optim import parameter_groups
from tests.properties.cases import D, assert_close, build, run, tokens


def test_a_stack_scales_each_branch_once(case):
    def stack(placement):
        torch.manual_seed(3)
        return ssmcore.Stack(D, "(X/glu)*2", mixers={"X": {"name": case[0], **case[1]}}, placement=placement)

    for before, after in zip(stack("post").mixers, stack("pre").mixers, strict=True):
        scaled = after.residual_out
        plain = dict(before.named_parameters())
        for name, p in after.named_parameters():
            factor = 0.5 if name in scaled else 1.0  # four branches
            torch.testing.assert_close(p, factor * plain[name], rtol=1e-6, atol=0)


def test_residual_out_names_parameters(mixer):
    assert set(mixer.residual_out) <= {name for name, _ in mixer.named_parameters()}


def test_optimiser_groups_partition_the_parameters(mixer):
    specs = mixer.param_spec()
    named = dict(mixer.named_parameters())
    assert specs.keys() <= named.keys()
    groups = parameter_groups(mixer, lr=1.0, weight_decay=0.5)
    placed = {id(p): group for group in groups for p in group["params"]}
    assert sorted(placed) == sorted(id(p) for p in named.values())
    assert sum(len(group["params"]) for group in groups) == len(named)
    for name, spec in specs.items():
        assert placed[id(named[name])]["lr"] == spec.lr_scale
        assert placed[id(named[name])]["weight_decay"] == (0.5 if spec.decay else 0.0)


def test_unknown_options_are_refused(case):
    with pytest.raises(ValueError, match="no option 'd_stat'"):
        create_mixer(case[0], D, d_stat=3)


def test_options_of_a_wrong_kind_are_refused(case):
    for name, wanted in typing.get_type_hints(type(build(case).config)).items():
        if wanted in (int, float, bool, int | None, float | None):
            with pytest.raises(ValueError, match=f"{name}='many', expected"):
                create_mixer(case[0], D, **{name: "many"})
    with pytest.raises(ValueError, match="d_model='8'"):
        create_mixer(case[0], "8", **case[1])


def test_a_configuration_rebuilds_the_same_module(case):
    first = build(case)
    again = build((case[0], dataclasses.asdict(first.config)))
    assert type(first) is type(again)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.config.nothing = 1


def test_weights_load_and_modules_copy(case):
    mixer, other = build(case), build(case, seed=1)
    other.load_state_dict(mixer.state_dict())
    x = tokens(2, 6)
    assert_close(run(other, x)[0], run(mixer, x)[0])
    assert_close(run(copy.deepcopy(mixer), x)[0], run(mixer, x)[0])
