"""The laws of the mixer contract, for every registered name: a new mixer is tested here without a new test.

Each mixer's class says what it can do (causal, recurrent, takes_rows, takes_dt, lti ...) and with which options it is
to be tried (`examples`). What it says it cannot do, it must refuse; what it says it can, it must do exactly.
"""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

import ssmcore
from ssmcore import Unsupported, create_mixer
from ssmcore import state as states
from ssmcore.channels import CHANNEL_MIXERS
from ssmcore.engine.optim import parameter_groups
from ssmcore.mixer import Context
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


def cases(*flags):
    """The registered names and example options whose mixers have (or, with "no ", have not) the given abilities."""
    chosen = []
    for name, kind in KINDS.items():
        for i, options in enumerate(kind.examples):
            mixer = build((name, options))
            if all(getattr(mixer, flag.removeprefix("no ")) != flag.startswith("no ") for flag in flags):
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


@pytest.fixture(params=cases())
def case(request):
    return request.param


@pytest.fixture
def mixer(case):
    return build(case)


@pytest.fixture(params=cases("recurrent"))
def recurrent(request):
    return build(request.param)


@pytest.fixture(params=cases("takes_rows"))
def with_rows(request):
    return build(request.param)


@pytest.fixture(params=cases("lti"))
def lti(request):
    return build(request.param)


# 1. Forms


@pytest.mark.parametrize("l", [1, 2, 3, 4, 17, 64, 200])
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


# 2. Continuation


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


# 3. Resets


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


# 4. Padding


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


# 5. Causality


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


# 6. Batch and state as data


def test_batch_items_do_not_meet(mixer):
    x = tokens(3, 10)
    y, _ = run(mixer, x)
    for i in range(3):
        assert_close(run(mixer, x[i : i + 1])[0], y[i : i + 1])


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


def leaves(state):
    return [x for v in state.values() for x in (leaves(v) if isinstance(v, dict) else [v])]


def sum_of(state, fn):
    return sum(map(fn, leaves(state)))


# 7. Linear time-invariant cores


def convolve(kernel, x):
    """sum_s kernel[s] x[t - s], for kernels (l, d) of single channels and (l, d, d) of all."""
    form = "ld,bld->bd" if kernel.ndim == 2 else "lij,blj->bi"
    l = x.shape[1]
    return torch.stack([torch.einsum(form, kernel[: t + 1].flip(0), x[:, : t + 1]) for t in range(l)], 1)


@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("l", [1, 2, 17, 50])
def test_core_is_its_kernel(lti, l, return_state):
    x = tokens(2, l)
    y, _ = lti.core(x, None, Context(return_state=return_state))
    assert_close(y, convolve(lti.kernel(l), x))
    impulse = torch.zeros(D, l, D)
    impulse[torch.arange(D), 0, torch.arange(D)] = 1
    answer, _ = lti.core(impulse, None, Context(return_state=return_state))
    kernel = lti.kernel(l)
    want = torch.diag_embed(kernel).movedim(1, 0) if kernel.ndim == 2 else kernel.movedim(2, 0)
    assert_close(answer, want.contiguous())


def test_core_is_linear_and_time_invariant(lti):
    def core(x):
        return lti.core(x, None, Context(return_state=True))[0]

    x, other = tokens(2, 12), tokens(2, 12, seed=2)
    assert_close(core(2 * x - 3 * other), 2 * core(x) - 3 * core(other))
    late = torch.cat([torch.zeros(2, 5, D), x], 1)
    assert_close(core(late)[:, 5:], core(x))


# 9. Initialisation in a stack


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


# 10. Stability


@pytest.mark.parametrize("case", cases("recurrent", "bounded_state"))
@torch.no_grad()
def test_a_hundred_thousand_steps_stay_bounded(case):
    recurrent = build(case)
    state = recurrent.init_state(2)
    generator = torch.Generator().manual_seed(0)
    largest, early = 0.0, 0.0
    for chunk in range(50):
        x = torch.randn(2, 2000, D, generator=generator)
        x[1] = 1.0
        y, state = recurrent(x, state)
        assert torch.isfinite(y).all()
        largest = max(largest, y.abs().max().item())
        early = largest if chunk == 4 else early
    assert largest <= 4 * early


def test_bfloat16_tokens_keep_a_wide_state(mixer):
    x = tokens(2, 33).bfloat16()
    want, _ = run(mixer, x.float())
    with torch.autocast("cpu", torch.bfloat16):
        y, state = run(mixer, x)
    assert (y.float() - want).norm() <= 0.02 * want.norm()
    if mixer.recurrent:
        allowed = {torch.float32, torch.complex64, torch.int64}
        states.map_state(lambda t: t if t.dtype in allowed else pytest.fail(f"state of {t.dtype}"), state)


# 11. Parameter metadata


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


# 12. Configuration


def test_unknown_options_are_refused(case):
    with pytest.raises(ValueError, match="no option 'd_stat'"):
        create_mixer(case[0], D, d_stat=3)


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


# What a mixer cannot do, it refuses


@pytest.mark.parametrize("case", cases("takes_dt"))
def test_steps_of_time_are_honoured(case):
    mixer, x, ones = build(case), tokens(2, 8), torch.ones(2, 8)
    y, _ = run(mixer, x)
    assert_close(run(mixer, x, dt=ones)[0], y)
    if case[0] not in CHANNEL_MIXERS:  # no time passes in a map of single tokens
        assert (run(mixer, x, dt=3 * ones)[0] - y).abs().max() > 1e-3 * y.abs().max()


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
