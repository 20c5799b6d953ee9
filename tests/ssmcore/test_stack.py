"""The backbone: its patterns, its state, its initialisation, and what it refuses."""

import dataclasses

import pytest
import torch

from ssmcore import Mixer, Stack, Unsupported, build_mixer, create_mixer, list_mixers
from ssmcore import state as states
from ssmcore.engine.optim import parameter_groups
from ssmcore.mixers import MIXERS
from ssmcore.stack import parse_pattern

PATTERNS = {
    "M": [("M",)],
    "M/glu": [("M", "glu")],
    "(M/glu)*3": [("M", "glu")] * 3,
    " ( M/glu  A )*2 ": [("M", "glu"), ("A",)] * 2,
    "M (A M)": [("M",), ("A",), ("M",)],
    "M*2 A": [("M",), ("M",), ("A",)],
    "M/glu*2": [("M", "glu")] * 2,
    "((M)*2 A/mlp)*2": [("M",), ("M",), ("A", "mlp")] * 2,
    "(R/geglu R/geglu W/geglu)": [("R", "geglu"), ("R", "geglu"), ("W", "geglu")],
    "mamba2 mlp attention": [("mamba2",), ("mlp",), ("attention",)],
    "A/glu/M": [("A", "glu", "M")],
    "s4d-lin x.y_2": [("s4d-lin",), ("x.y_2",)],
}


@pytest.mark.parametrize(("pattern", "layers"), PATTERNS.items())
def test_patterns(pattern, layers):
    assert parse_pattern(pattern) == layers


def test_jambas_pattern():
    layers = parse_pattern("(M/glu M/moe M/glu M/moe A/glu M/moe M/glu M/moe)*4")
    assert len(layers) == 32
    assert [i for i, layer in enumerate(layers) if layer[0] == "A"] == [4, 12, 20, 28]
    assert all((layer[1] == "moe") == (i % 2 == 1) for i, layer in enumerate(layers))


BAD = ["", "()", "M/", "(M", "M)", "M*", "*2", "M//A", "M + A", "(M*)", "3", "M*0"]


@pytest.mark.parametrize("pattern", BAD)
def test_bad_patterns_are_refused(pattern):
    with pytest.raises(ValueError, match="parse_pattern"):
        parse_pattern(pattern)


HYBRID = {
    "S": {"name": "s4d", "d_state": 4},
    "W": {"name": "attention", "window": 3, "num_heads": 2},
    "mamba": {"d_state": 4},
    "G": "gru",
    "L": lambda d_model: create_mixer("lru", d_model, d_state=3),
}


def hybrid(**kwargs):
    torch.manual_seed(0)
    return Stack(8, "(mamba/glu S/mlp)*2 W/geglu G L glu", mixers=HYBRID, **kwargs)


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_steps_equal_the_whole(placement):
    stack, x = hybrid(placement=placement), torch.randn(2, 20, 8)
    y, want = stack(x, return_state=True)
    state, ys = stack.init_state(2), []
    for t in range(20):
        y_t, state = stack.step(x[:, t], state)
        ys.append(y_t)
    torch.testing.assert_close(torch.stack(ys, 1), y, rtol=1e-4, atol=1e-5)
    states.map_state(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5) or a, state, want)
    torch.testing.assert_close(stack(x)[0], y, rtol=1e-4, atol=1e-5)


def test_state_passes_through_pieces_resets_and_padding():
    stack, x = hybrid(), torch.randn(2, 12, 8)
    y, _ = stack(x)
    head, state = stack(x[:, :5], return_state=True)
    tail, _ = stack(x[:, 5:], state)
    torch.testing.assert_close(torch.cat([head, tail], 1), y, rtol=1e-4, atol=1e-5)
    reset, mask = torch.zeros(2, 12, dtype=torch.bool), torch.ones(2, 12, dtype=torch.bool)
    reset[0, 7], mask[1, :4] = True, False
    y, state = stack(x, reset=reset, mask=mask, return_state=True)
    torch.testing.assert_close(y[:1], torch.cat([stack(x[:1, :7])[0], stack(x[:1, 7:])[0]], 1), rtol=1e-4, atol=1e-5)
    want, last = stack(x[1:, 4:], return_state=True)
    torch.testing.assert_close(y[1:, 4:], want, rtol=1e-4, atol=1e-5)
    assert (y[1, :4] == 0).all()
    got = states.gather(state, torch.tensor([1]))
    states.map_state(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5) or a, got, last)


def test_states_batch_reorders():
    stack, x = hybrid(), torch.randn(3, 6, 8)
    _, state = stack(x, return_state=True)
    order, more = torch.tensor([1, 1, 0]), torch.randn(3, 4, 8)
    y, _ = stack(more, state)
    torch.testing.assert_close(stack(more[order], states.gather(state, order))[0], y[order], rtol=1e-4, atol=1e-5)


def test_a_stack_is_a_mixer():
    inner = Stack(4, "mamba/mlp")
    stack = Stack(4, "X", mixers={"X": lambda d: inner})
    assert isinstance(inner, Mixer)
    x = torch.randn(1, 7, 4)
    y, state = stack(x, return_state=True)
    torch.testing.assert_close(stack(x[:, :0], state)[1]["0"]["0"]["0"]["0"]["ssm"], state["0"]["0"]["0"]["0"]["ssm"])
    torch.testing.assert_close(y, stack.norm(x + inner(stack.layers[0].branches[0].norm(x))[0]))
    assert len(parameter_groups(stack, 1.0, 0.1)) == 2


def test_what_a_stack_can_do_is_what_all_its_mixers_can():
    assert Stack(4, "mamba s4d").takes_dt
    assert not Stack(4, "mamba gru").takes_dt
    assert not Stack(4, "mamba attention").bounded_state
    assert not Stack(4, "mamba bidirectional").causal
    with pytest.raises(Unsupported, match="takes no dt"):
        Stack(4, "mamba gru")(torch.randn(1, 3, 4), dt=torch.ones(1, 3))
    with pytest.raises(Unsupported, match="Bidirectional"):
        Stack(4, "mamba bidirectional", causal=True)
    with pytest.raises(Unsupported):
        Stack(4, "bidirectional").init_state(1)


class Exporter(Mixer):
    """Doubles the tokens, and tells later layers how many there were."""

    exports = frozenset({"count"})

    def init_state(self, batch, **_):
        return {}

    def mix(self, x, state, ctx):
        ctx.shared["count"] = x.shape[1]
        return 2 * x, {}


class User(Exporter):
    exports = frozenset()
    needs = frozenset({"count"})

    def mix(self, x, state, ctx):
        return x * ctx.shared["count"], {}


def test_layers_share_values_by_name():
    named = {"E": lambda d: Exporter(d), "U": lambda d: User(d)}
    stack, given, x = Stack(4, "E U", mixers=named), {"other": 1}, torch.randn(2, 5, 4)
    assert stack.needs == frozenset()
    y, _ = stack(x, shared=given)
    first, second = (layer.branches[0].norm for layer in stack.layers)
    middle = x + 2 * first(x)
    torch.testing.assert_close(y, stack.norm(middle + 5 * second(middle)))
    assert given == {"other": 1}
    assert Stack(4, "U E", mixers=named).needs == {"count"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthConfig:
    layer_index: int = 0
    num_layers: int = 1
    ramp: float = 1.0


class Depth(Exporter):
    Config = DepthConfig


def test_mixers_learn_how_deep_they_lie(monkeypatch):
    monkeypatch.setitem(MIXERS, "depth", Depth)
    stack = Stack(4, "depth/glu mlp D", mixers={"D": {"name": "depth", "ramp": 2.0, "num_layers": 9}})
    told = [dataclasses.astuple(m.config) for m in stack.mixers if isinstance(m, Depth)]
    assert told == [(0, 3, 1.0), (2, 9, 2.0)]


def test_specifications():
    torch.manual_seed(0)
    want = create_mixer("s4d", 4, d_state=6)
    for spec in ({"name": "s4d", "d_state": 6}, lambda d: create_mixer("s4d", d, d_state=6)):
        torch.manual_seed(0)
        assert all(torch.equal(a, b) for a, b in zip(build_mixer(spec, 4).parameters(), want.parameters(), strict=True))
    assert list_mixers() == sorted(MIXERS)
    with pytest.raises(ValueError, match="has no 'name'"):
        build_mixer({"d_state": 4}, 4)


def test_initialisation_survives_and_is_scaled_once():
    stack = Stack(8, "(mamba/glu)*2 gru")
    same = Stack(8, "(mamba/glu)*2 gru", placement="post")
    torch.manual_seed(1)
    bare = create_mixer("mamba", 8)
    torch.manual_seed(1)
    scaled = Stack(8, "mamba mamba").mixers[0]
    torch.testing.assert_close(scaled.out_proj.weight, bare.out_proj.weight / 2**0.5)
    torch.testing.assert_close(scaled.in_proj.weight, bare.in_proj.weight)
    assert len(stack.mixers) == len(same.mixers) == 5


def test_drop_path_rises_with_depth():
    stack = Stack(4, "(mlp/glu)*5", drop_path=0.4)
    assert [round(layer.branches[1].drop_path.rate, 3) for layer in stack.layers] == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_the_stream_is_wide():
    stack = Stack(8, "mamba/glu").bfloat16()
    x, seen = torch.randn(1, 4, 8).bfloat16(), []
    for layer in stack.layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out[0].dtype))
    y, state = stack(x, return_state=True)
    assert seen == [torch.float32]
    assert y.dtype == torch.bfloat16
    assert state["0"]["0"]["ssm"].dtype == torch.float32


def test_checkpointing_changes_no_gradient():
    def gradients(checkpointing):
        stack = hybrid()
        stack.gradient_checkpointing = checkpointing
        x = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
        stack(x, reset=torch.arange(9).expand(2, 9) == 4)[0].square().sum().backward()
        return [p.grad for p in stack.parameters()]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("pattern", ["mamba/glu attention", "s4d", "lru s5"])
def test_compiles_without_a_break(pattern, continued):
    torch.compiler.reset()
    stack, x = Stack(8, pattern), torch.randn(1, 6, 8)
    compiled = torch.compile(stack, fullgraph=True, backend="eager")
    state = stack.init_state(1) if continued else None
    torch.testing.assert_close(compiled(x, state)[0], stack(x, state)[0])


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="did you mean 'mamba'"):
        Stack(4, "mambo")
    with pytest.raises(ValueError, match="no option 'd_stat'"):
        Stack(4, "mamba", mixers={"mamba": {"d_stat": 4}})
    with pytest.raises(ValueError, match="expected a Mixer of d_model=4"):
        Stack(4, "X", mixers={"X": lambda d: create_mixer("mamba", 8)})
    with pytest.raises(ValueError, match="names that the pattern does not use"):
        Stack(4, "mamba", mixers={"mambo": {"d_state": 4}})
