"""Checkpoint files: containers, prefixes, averaged weights, and what is said when they do not fit."""

import argparse
import pickle

import pytest
import safetensors.torch
import torch

import vision
from vision.models.checkpoint import read, unwrap

OPTIONS = {"depth": 1, "embed_dim": 16}


def model(**options):
    return vision.create_model("vim_tiny_patch16_224", **{"num_classes": 4, **OPTIONS, **options})


def test_averaged_weights_come_first():
    one, two = torch.ones(1), torch.zeros(1)
    assert unwrap({"model": {"a": two}, "model_ema": {"a": one}})["a"] is one
    assert unwrap({"state_dict": {"module.backbone.a": one}, "epoch": 3}) == {"a": one}
    assert unwrap({"a": one, "model_ema": None}) == {"a": one}
    with pytest.raises(ValueError, match="no tensors, only epoch"):
        unwrap({"epoch": 3})


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_files(tmp_path, suffix):
    source, path = model(), tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"model": source.state_dict(), "args": argparse.Namespace(lr=0.1)}, path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    loaded = vision.load_checkpoint(model(), path)
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_files_run_no_code(tmp_path):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    torch.save({"model": Harm()}, tmp_path / "harm.pth")
    with pytest.raises(pickle.UnpicklingError):
        read(tmp_path / "harm.pth")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere.pth")


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"head.weight is \(4, 16\), expected \(7, 16\).*has 4 classes, the model 7"):
        vision.load_checkpoint(model(num_classes=7), model().state_dict())
    weights = model().state_dict()
    weights["extra"] = weights.pop("cls_token")
    before = model()
    kept = {key: value.clone() for key, value in before.state_dict().items()}
    with pytest.raises(ValueError, match="cls_token is missing; extra is unknown"):
        vision.load_checkpoint(before, weights)
    assert all(torch.equal(value, kept[key]) for key, value in before.state_dict().items())
    with pytest.raises(ValueError, match="and 12 more"):
        vision.load_checkpoint(model(depth=2), model().state_dict())
    with pytest.raises(ValueError, match="model is a Linear, expected a model of vision.models"):
        vision.load_checkpoint(torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})
