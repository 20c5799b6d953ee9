"""Maps by gradient against what must hold: completeness, exactness for linear models, and what a scan cannot see."""

import pytest
import timm
import torch
from torch import nn

import vision.models  # noqa: F401
from vision.errors import DataError
from vision.influence import cells, influence, receptive_field

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 3}


def test_a_linear_model_is_explained_exactly():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    image = torch.randn(1, 3, 8, 8)
    expected = (image.flatten() * model[1].weight[2]).view(3, 8, 8).sum(0)
    torch.testing.assert_close(influence(model, image, 2, steps=3), expected)


@pytest.mark.parametrize("name", ["vim_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_influence_adds_up_to_the_logit(name):
    model = timm.create_model(name, **SMALL, **({"num_heads": 2} if "vit" in name else {})).double().eval()
    image = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        difference = (model(image) - model(torch.zeros_like(image)))[0, 1].item()
    error = [abs(influence(model, image, 1, steps).sum().item() - difference) for steps in (8, 256)]
    assert error[1] < 1e-3 * abs(difference)
    assert error[1] < error[0]


def test_chunks_do_not_matter():
    model, image = timm.create_model("vim_tiny_patch16_224", **SMALL), torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(influence(model, image, 0, 6, chunk=1), influence(model, image, 0, 6, chunk=6))


def test_refusals():
    with pytest.raises(ValueError, match="expected one image"):
        influence(nn.Flatten(), torch.zeros(2, 3, 4, 4), 0)
    with pytest.raises(DataError, match="Flatten does not give its maps"):
        receptive_field(nn.Flatten(), torch.zeros(1, 3, 4, 4))


def test_a_scan_in_both_directions_sees_everything_and_one_direction_half():
    """Cell (2, 2) of a 4 x 4 grid is number 10: from the left alone it sees the cells 0 to 10."""
    images = torch.randn(2, 3, 16, 16)
    both = timm.create_model("vim_tiny_patch16_224", **SMALL)
    seen = cells(receptive_field(both, images), 4).flatten()
    assert (seen > 0).all()
    for block in both.blocks:
        scans = block.mixer
        with torch.no_grad():
            for name, parameter in scans.named_parameters():
                if name.startswith(("scans.1.", "convs.1.")):
                    parameter.zero_()  # the reversed direction gives nothing
    seen = cells(receptive_field(both, images), 4).flatten()
    assert (seen[:11] > 0).all()
    assert (seen[11:] == 0).all()


def test_the_field_has_one_as_its_largest_value():
    field = receptive_field(timm.create_model("vmamba_tiny_s1l8", depths=(1,), embed_dim=8), torch.randn(1, 3, 32, 48))
    assert field.shape == (32, 48)
    assert field.max() == 1


def test_cells_are_means():
    values = torch.arange(64.0).view(8, 8)
    torch.testing.assert_close(cells(values, 4)[0, 0], values[:2, :2].mean())
    assert cells(torch.ones(224, 100)).shape == (28, 12)
