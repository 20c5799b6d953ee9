"""The native step loop against the PyTorch model, for every preset that can be packed, from any state and back."""

import pytest
import torch
from ssm_kernels import native_build

from audio import PRESETS
from audio.models.packed import Packed, Unpackable
from ssmcore import state as states
from tests.audio.models.cases import LENGTH, build, clip

pytestmark = pytest.mark.skipif(native_build.compiler() is None, reason="no C compiler")
NATIVE = [name for name in PRESETS if name not in ("s4d_attention", "mamba_sc09_large")]


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_native_equals_torch(name):
    model = build(name)
    l = LENGTH.get(name, 70)
    tokens = clip(model, 2, l + 1)
    want, state = model(tokens[:, :l], return_state=True)
    packed = Packed(model)
    streams = packed.streams(model.init_state(2), tokens[:, 0])
    made = packed.network.run(streams, l, given=tokens[:, 1:], keep_logits=True)
    torch.testing.assert_close(made.logits, want, rtol=0, atol=1e-4)
    likelihood = want.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(made.log_likelihood, likelihood, rtol=0, atol=1e-4)
    back = packed.state(streams, state["label"])
    states.map_state(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4) or a, back, state)


@pytest.mark.parametrize("name", ["sashimi", "sashimi_s4d_unet", "mamba_youtubemix", "mamba_s4_mamba"])
@pytest.mark.parametrize("at", [1, 6, 21])
@torch.no_grad()
def test_native_goes_on_from_any_state(name, at):
    model = build(name, labels=(4,))
    tokens = clip(model, 2, 60)
    want, _ = model(tokens, label=torch.tensor([[2], [-1]]))
    _, state = model(tokens[:, :at], label=torch.tensor([[2], [-1]]), return_state=True)
    packed = Packed(model)
    made = packed.network.run(
        packed.streams(state, tokens[:, at]), 59 - at, given=tokens[:, at + 1 :], keep_logits=True
    )
    torch.testing.assert_close(made.logits, want[:, at:-1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("weights", "loss"), [("bfloat16", 0.03), ("int8", 0.1)])
@torch.no_grad()
def test_narrow_weights_cost_little(weights, loss):
    model = build("sashimi_s4d")
    tokens = clip(model, 1, 120)
    want = model(tokens[:, :-1])[0]
    packed = Packed(model, weights)
    got = packed.network.run(
        packed.streams(model.init_state(1), tokens[:, 0]), 119, given=tokens[:, 1:], keep_logits=True
    )
    error = (got.logits - want).abs().max() / want.abs().max()
    assert 0 < error < loss


@torch.no_grad()
def test_streams_do_not_see_their_neighbours():
    model = build("sashimi_s4d")
    packed = Packed(model)
    tokens = clip(model, 5, 40)

    def run(rows, threads):
        streams = packed.streams(model.init_state(len(rows)), tokens[rows, 0])
        return packed.network.run(streams, 39, given=tokens[rows, 1:], keep_logits=True, threads=threads).logits

    together = run([0, 1, 2, 3, 4], 2)
    assert all(torch.equal(run([i], 1)[0], together[i]) for i in range(5))


def test_odd_widths():
    model = build("fsdd_small", d_model=20)
    tokens = clip(model, 1, 40)
    packed = Packed(model)
    with torch.no_grad():
        want = model(tokens[:, :-1])[0]
        got = packed.network.run(
            packed.streams(model.init_state(1), tokens[:, 0]), 39, given=tokens[:, 1:], keep_logits=True
        )
    torch.testing.assert_close(got.logits, want, rtol=0, atol=1e-4)


def test_what_cannot_be_packed_says_so():
    with pytest.raises(Unpackable, match="Attention is not packed"):
        Packed(build("s4d_attention"))


def test_regions_add_up():
    """One reading of every byte, shared by as many tokens as its tier is slower."""
    model = build("sashimi_s4d")
    network = Packed(model).network
    periods = {period for _, _, period in network.regions()}
    assert periods == {1, 4, 16}
    assert sum(size for _, size, _ in network.regions()) <= len(network.weights)
    assert network.traffic() < sum(size for _, size, _ in network.regions())
