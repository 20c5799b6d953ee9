"""S4ND in ViT and ConvNeXt: the printed sizes, and that every token sees every other one."""

import pytest
import torch

import vision
from vision.models.s4nd import S4NDConvNeXt, S4NDViT


@pytest.mark.parametrize(("name", "millions"), [("s4nd_vit_base_patch16_224", 89), ("s4nd_convnext_tiny", 30)])
def test_parameter_counts(name, millions):
    model = vision.create_model(name, device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_any_size_and_a_view_of_the_whole_image(kind):
    torch.manual_seed(0)
    if kind == "vit":
        model = S4NDViT(embed_dim=32, depth=1, num_classes=5).eval()
    else:
        model = S4NDConvNeXt(embed_dim=16, depths=(2, 1), num_classes=5).eval()
        for stage in model.stages:
            for block in stage.blocks:
                torch.nn.init.ones_(block.gamma)  # at its first value the branch is hardly there
    x = torch.randn(1, 3, 64, 96)
    changed = x.clone()
    changed[..., :4, :4] += 3
    with torch.no_grad():
        assert model(x).shape == (1, 5)
        assert model(x[..., :40, :33]).shape == (1, 5)
        moved = (model.forward_features(changed) - model.forward_features(x)).abs().flatten(1, -2).amax(-1)
    assert (moved > 1e-6).all()


def test_another_mixer():
    with torch.no_grad():
        model = S4NDConvNeXt(embed_dim=16, depths=(1, 1), num_classes=5, mixer="gru").eval()
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)
        assert S4NDViT(embed_dim=32, depth=1, num_classes=5, mixer="grid_mamba")(torch.randn(1, 3, 32, 48)).shape == (
            1,
            5,
        )
