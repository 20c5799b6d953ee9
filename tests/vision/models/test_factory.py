"""Names of models: ours alone, timm's registry, near misses."""

import pytest
import timm

import vision


def test_names():
    assert {f"vim_{size}_patch16_224" for size in ("tiny", "small", "base")} <= set(vision.list_models())
    assert all(name.startswith("vim_") for name in vision.list_models("vim*"))
    assert set(vision.list_models()) <= set(timm.list_models())
    assert "resnet18" not in vision.list_models()


def test_create_model_takes_timm_s_options():
    model = vision.create_model("vim_tiny_patch16_224.in1k", num_classes=3, depth=1)
    assert model.num_classes == 3
    assert model.pretrained_cfg["tag"] == "in1k"


def test_unknown_names_and_options():
    with pytest.raises(
        ValueError, match="unknown vision model 'vim_tiny_patch16'; did you mean 'vim_tiny_patch16_224'"
    ):
        vision.create_model("vim_tiny_patch16")
    with pytest.raises(TypeError, match="widht"):
        vision.create_model("vim_tiny_patch16_224", widht=3)
