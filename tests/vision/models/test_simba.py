"""SiMBA: counts of the published variants, its token head, and what the channel mixers see."""

import pytest
import torch

import vision
from vision.models.simba import ConvMlp, SiMBA

COUNTS = {  # millions, to the digits that the paper prints
    "simba_small_mlp": 26.59,
    "simba_small_einfft": 15.31,
    "simba_base_mlp": 40.21,
    "simba_base_einfft": 22.82,
    "simba_large_mlp": 66.76,
    "simba_large_einfft": 36.64,
}
SMALL = {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32), "stem_dim": 8, "num_classes": 5}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = vision.create_model(name, device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == COUNTS[name]


@pytest.mark.parametrize(("size", "millions"), [("small", 18.5), ("base", 26.9), ("large", 42)])
def test_monarch_is_near_the_printed_counts(size, millions):
    """The sources print counts but no structure: within 5 %."""
    model = vision.create_model(f"simba_{size}_monarch", device="meta")
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 / millions - 1) < 0.05


def test_logits_are_the_token_s_and_half_the_loudest_cell_s():
    torch.manual_seed(0)
    model, x = SiMBA(**SMALL).eval(), torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        token, cells = model.forward_token_labels(x)
        assert token.shape == (2, 5)
        assert cells.shape == (2, 3, 2, 5)
        torch.testing.assert_close(model(x), token + 0.5 * cells.flatten(1, 2).amax(1))
    with pytest.raises(ValueError, match="no auxiliary head"):
        SiMBA(**SMALL, global_pool="avg").forward_token_labels(x)


def test_mamba_looks_back_only_and_einfft_sees_all():
    torch.manual_seed(0)
    for kind, whole in (("monarch", False), ("einfft", True)):
        block = SiMBA(**SMALL, channel_mixer=kind).eval().stages[0].blocks[0]
        if whole:  # softshrink leaves nothing of the small initial weights
            for p in block[1].mixer.parameters():
                torch.nn.init.normal_(p, std=0.5)
        x = torch.randn(1, 3, 4, 16)
        later = x.clone()
        later[:, 2, 3] += 1
        with torch.no_grad():
            change = (block(later) - block(x)).abs().amax(-1).flatten()
        assert (change[:-1].max() > 0) == whole


def test_conv_mlp_sees_the_neighbours_only():
    torch.manual_seed(0)
    mixer, grid = ConvMlp(8), {"grid": (5, 5)}
    x = torch.randn(1, 25, 8)
    other = x.clone()
    other[:, 12] += 1
    with torch.no_grad():
        a, b = (mixer(t, shared=grid)[0] for t in (x, other))
    changed = (a - b).abs().amax(-1).view(5, 5) > 1e-6
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1:4, 1:4] = True
    assert torch.equal(changed, expected)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="channel_mixer='fft'"):
        SiMBA(**SMALL, channel_mixer="fft")
    with pytest.raises(ValueError, match="global_pool='max'"):
        SiMBA(**SMALL, global_pool="max")
