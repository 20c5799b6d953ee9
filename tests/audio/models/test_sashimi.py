"""SaShiMi: published sizes; one answer by convolution, in chunks and step by step; labels; what it refuses."""

import pytest
import torch

from audio import PRESETS, SaShiMi, SaShiMiConfig, preset
from ssmcore import Unsupported
from ssmcore import state as states
from ssmcore.engine.weights import load_weights, save_weights
from tests.audio.models.cases import LENGTH, build, clip

TOLERANCE = 1e-4

# Published or counted on upstream's code, embedding and head included; ours where the paper's code was not released.
MILLIONS = {
    "sashimi_2": "1.29", "sashimi_4": "2.22", "sashimi_6": "3.14", "sashimi_8": "4.07", "sashimi": "4.76",
    "sashimi_untied": "5.45", "sashimi_s4d": "4.76", "sashimi_s4d_untied": "5.22", "sashimi_unet": "5.87",
    "sashimi_unet_untied": "6.84", "mamba_sc09": "6.26", "mamba_sc09_large": "24.87", "mamba_youtubemix": "3.56",
}  # fmt: skip


@pytest.mark.parametrize("name", MILLIONS)
def test_sizes(name):
    count = sum(p.numel() for p in SaShiMi(preset(name)).parameters())
    assert f"{count / 1e6:.2f}" == MILLIONS[name]


def by_steps(model, tokens, state):
    logits = []
    for token in tokens.T:
        row, state = model.step(token, state)
        logits.append(row)
    return torch.stack(logits, 1), state


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_step_chunk_and_convolution_agree(name, tmp_path):
    model = build(name)
    tokens = clip(model, 2, LENGTH.get(name, 70))
    whole, none = model(tokens)
    assert none is None
    stepped, last = by_steps(model, tokens, model.init_state(2))
    torch.testing.assert_close(stepped, whole, rtol=0, atol=TOLERANCE)
    # Pieces of awkward lengths, one of them none at all, with a pause on disk in the middle of a group.
    state, logits = model.init_state(2), []
    for i, piece in enumerate(tokens.split([1, 6, 17, 0, tokens.shape[1] - 24], 1)):
        row, state = model(piece, state)
        logits.append(row)
        if i == 1:
            state = through_a_file(state, tmp_path / "state.safetensors")
    torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=0, atol=TOLERANCE)
    more = clip(model, 2, 20, seed=2)
    torch.testing.assert_close(model(more, state)[0], model(more, last)[0], rtol=0, atol=TOLERANCE)


def through_a_file(state, path):
    flat = {}

    def walk(part, prefix):
        for key, value in part.items():
            walk(value, f"{prefix}{key}/") if isinstance(value, dict) else flat.__setitem__(prefix + key, value)

    walk(state, "")
    save_weights(path, flat, {})
    tensors = iter(load_weights(path)[0][name] for name in flat)
    return states.map_state(lambda _: next(tensors), state)


@pytest.mark.parametrize("form", ["decoder", "unet"])
@pytest.mark.parametrize("pool", [(), (2,), (2, 3, 2)])
@torch.no_grad()
def test_any_depth_can_be_stepped(form, pool):
    model = build("sashimi_s4d", form=form, pool=pool, d_model=16, mixers={"s4d": {"d_state": 8}})
    tokens = clip(model, 2, 50)
    stepped, _ = by_steps(model, tokens, model.init_state(2))
    torch.testing.assert_close(stepped, model(tokens)[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["sashimi_s4d", "sashimi_s4d_unet"])
@torch.no_grad()
def test_no_sample_sees_its_future(name):
    model = build(name).double()
    tokens = clip(model, 1, 64)
    whole = model(tokens)[0]
    for t in (0, 3, 15, 16, 40):
        other = tokens.clone()
        other[:, t] = (other[:, t] + 100) % 256
        changed = (model(other)[0] - whole).abs().amax(-1)[0]
        assert changed[:t].max() < 1e-9 if t else True
        assert changed[t] > 1e-6


@torch.no_grad()
def test_labels():
    model = build("sashimi_s4d", labels=(3, 2))
    tokens = clip(model, 4, 40)
    label = torch.tensor([[0, 1], [2, 1], [-1, -1], [0, -1]])
    whole, _ = model(tokens, label=label)
    stepped, state = by_steps(model, tokens, model.init_state(4, label=label))
    torch.testing.assert_close(stepped, whole, rtol=0, atol=TOLERANCE)
    assert torch.equal(state["label"], label)
    unknown, _ = model(tokens)
    torch.testing.assert_close(unknown[2], whole[2], rtol=0, atol=1e-6)
    assert (unknown[[0, 1, 3]] - whole[[0, 1, 3]]).abs().amax((1, 2)).min() > 1e-3
    taken = states.gather(state, torch.tensor([1]))
    torch.testing.assert_close(model(tokens[1:2], taken)[0], model(tokens, state)[0][1:2], rtol=0, atol=1e-5)


def test_chunks_carry_gradients_and_detach():
    model = build("fsdd_small")
    tokens = clip(model, 2, 40)
    _, state = model(tokens[:, :18], return_state=True)
    model(tokens[:, 18:], state)[0].square().sum().backward()
    carried = model.embedding.weight.grad.clone()
    model.zero_grad()
    model(tokens[:, 18:], states.detach(state))[0].square().sum().backward()
    assert not torch.equal(carried, model.embedding.weight.grad)


REFUSED = {
    "level": (lambda m: m(torch.tensor([[256]])), "expected 0 to 255"),
    "dtype": (lambda m: m(torch.zeros(1, 3)), "int64"),
    "axes": (lambda m: m(torch.zeros(3, dtype=torch.int64)), "tokens"),
    "label value": (lambda m: m(torch.zeros(1, 3, dtype=torch.int64), label=torch.tensor([[3]])), "expected 0 to 2"),
    "label kinds": (lambda m: m(torch.zeros(1, 3, dtype=torch.int64), label=torch.zeros(1, 2).long()), "1 kinds"),
    "label twice": (
        lambda m: m(torch.zeros(1, 3, dtype=torch.int64), m.init_state(1), label=torch.tensor([[1]])), "both given",
    ),
    "batch": (lambda m: m(torch.zeros(2, 3, dtype=torch.int64), m.init_state(1)), "batch size 1, expected b=2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case):
    call, text = REFUSED[case]
    with pytest.raises(ValueError, match=text):
        call(build("fsdd_small", labels=(3,)))


def test_bad_configurations_are_refused():
    for wrong in ({"levels": 1}, {"pool": (1,)}, {"labels": (0,)}, {"tiers": ()}, {"tiers": ("s4d",) * 4}):
        with pytest.raises(ValueError, match="SaShiMiConfig"):
            SaShiMiConfig(**wrong)
    with pytest.raises(ValueError, match="did you mean 'sashimi"):
        preset("sashimy")
    with pytest.raises(Unsupported, match="Bidirectional"):
        SaShiMi(SaShiMiConfig(layers=1, tiers=("bidirectional",)))
