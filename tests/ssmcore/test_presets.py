"""The layer sequence of every preset, as published, and that each one runs, goes on and refuses."""

import pytest
import torch

from ssmcore import Unsupported, create_mixer
from ssmcore.presets import BACKBONES, create_backbone, list_backbones

M, MOE, GLU, ATT = "Mamba", "Moe", "Glu", "Attention"
SEQUENCES = {
    "h3_hybrid": ["H3 Mlp", "Attention Mlp", *["H3 Mlp"] * 4],
    "blackmamba": [M, MOE],
    "moe_mamba": [M, MOE],
    "jamba": [f"{ATT if i == 4 else M} {MOE if i % 2 else GLU}" for i in range(8)],
    "mambabyte": [M],
    "mambaformer": [M, ATT, M],
    "spade": ["Parallel Mlp", "Attention Mlp"],
    "hawk": ["RgLru Geglu"],
    "griffin": ["RgLru Geglu", "RgLru Geglu", "Attention Geglu"],
    "samba": ["Mamba Glu", "Attention Glu"],
    "nemotron_h": [*["Mamba2", "Mlp"] * 3, "Mamba2", ATT, "Mlp", *["Mamba2", "Mlp"] * 4, "Mamba2", ATT, "Mlp"]
    + ["Mamba2", "Mlp"] * 5,
    "simba": ["Mamba EinFFT"],
}
SMALL = {
    "jamba": {"E": {"num_experts": 4}},
    "moe_mamba": {"E": {"num_experts": 4}},
    "nemotron_h": {"mamba2": {"d_state": 8}},
    "h3_hybrid": {"h3": {"d_state": 4, "d_shift": 4}},
    "simba": {"mamba": {"d_state": 4}},
    "griffin": {"W": {"window": 3}},
}


def build(name, **options):
    torch.manual_seed(0)
    return create_backbone(name, 8, mixers=SMALL.get(name), **options)


def layers(stack):
    return [" ".join(type(branch.mixer).__name__ for branch in layer.each()) for layer in stack.layers]


def test_every_preset_is_listed_here():
    assert sorted(SEQUENCES) == list_backbones()


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_sequence_of_layers(name):
    assert layers(build(name)) == SEQUENCES[name]


def test_published_depths():
    assert len(layers(build("jamba", periods=BACKBONES["jamba"].published))) == 32
    h3 = layers(build("h3_hybrid", periods=BACKBONES["h3_hybrid"].published))
    assert [i for i, layer in enumerate(h3) if "Attention" in layer] == [1, 7]
    assert len(h3) == 12
    nemotron = layers(build("nemotron_h", periods=BACKBONES["nemotron_h"].published))
    assert {kind: nemotron.count(kind) for kind in set(nemotron)} == {"Mamba2": 24, "Mlp": 24, "Attention": 4}


@pytest.mark.parametrize("name", sorted(set(SEQUENCES) - {"simba", "nemotron_h"}))
@torch.no_grad()
def test_language_models_go_on_from_their_state(name):
    stack, x = build(name, causal=True).eval(), torch.randn(2, 7, 8)
    y, _ = stack(x)
    head, state = stack(x[:, :4], return_state=True)
    tail, state = stack(x[:, 4:6], state)
    last, _ = stack.step(x[:, 6], state)
    torch.testing.assert_close(torch.cat([head, tail, last[:, None]], 1), y, rtol=1e-4, atol=1e-5)


def test_what_the_presets_fix():
    griffin = build("griffin")
    assert griffin.mixers[4].num_kv_heads == 1
    assert build("blackmamba").mixers[1].config.balance == "sinkhorn"
    assert all(m.config.rope_base is None for m in build("mambaformer").mixers if type(m).__name__ == ATT)
    assert create_backbone("simba", 8).mixers[0].config.d_state == 64
    assert create_backbone("jamba", 8).mixers[3].config.num_experts == 16


def test_the_spectral_model_is_no_language_model():
    with pytest.raises(Unsupported, match="EinFFT"):
        build("simba", causal=True)
    assert not build("simba").causal


def test_bad_names():
    with pytest.raises(ValueError, match="did you mean 'griffin'"):
        create_backbone("grifin", 8)
    with pytest.raises(ValueError, match="periods"):
        create_backbone("hawk", 8, periods=0)
    with pytest.raises(ValueError, match="empty"):
        create_mixer("parallel", 8, mixers=())


@torch.no_grad()
def test_parallel_by_hand():
    torch.manual_seed(0)
    mixer, x = create_mixer("parallel", 8, mixers=("gru", "s4d")), torch.randn(2, 5, 8)
    outputs = [norm(m(x)[0]) for m, norm in zip(mixer.mixers, mixer.norms, strict=True)]
    torch.testing.assert_close(mixer(x)[0], torch.cat(outputs, -1) @ mixer.combiner.proj.weight.T)
