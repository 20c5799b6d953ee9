"""Checkpoint files: containers, prefixes, averaged weights, and what is said when they do not fit."""

import argparse
import copy
import pickle
import re
import sys
import types

import pytest
import safetensors.torch
import timm
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


def test_plain_weights_where_they_are_asked_for():
    one, two = torch.ones(1), torch.zeros(1)
    assert unwrap({"model": {"model.a": two}, "ema_model": {"module.a": one}}) == {"a": one}
    assert unwrap({"model": {"a": two}, "model_ema": {"a": one}}, use_ema=False)["a"] is two
    source, averaged = model(), model()
    both = {"model": source.state_dict(), "model_ema": averaged.state_dict()}
    for use_ema, want in ((True, averaged), (False, source)):
        loaded = vision.load_checkpoint(model(), both, use_ema=use_ema)
        assert torch.equal(loaded.cls_token, want.cls_token)


def test_settings_saved_beside_the_weights_are_no_hindrance(tmp_path, monkeypatch):
    """VMamba's trainer saves a yacs CfgNode, a dict with attributes, whose package need not be here."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    node = module.CfgNode(MODEL=module.CfgNode(NAME="vssm", DEPTHS=[2, 2]))
    node.__dict__["__immutable__"] = True
    torch.save({"model": {"a": torch.ones(2)}, "config": node}, tmp_path / "vssm.pth")
    monkeypatch.undo()
    given = read(tmp_path / "vssm.pth")
    assert given["config"]["MODEL"]["DEPTHS"] == [2, 2]
    assert unwrap(given)["a"].tolist() == [1, 1]


def upstream(source):
    """A small Vim's weights under upstream's names."""
    renamed = {}
    for name, value in source.state_dict().items():
        name = re.sub(r"^blocks", "layers", name).replace("norm.weight", "norm_f.weight", int(name == "norm.weight"))
        name = re.sub(r"convs\.0", "conv1d", re.sub(r"convs\.1", "conv1d_b", name))
        name = re.sub(r"scans\.0\.", "", re.sub(r"scans\.1\.(\w+_proj|D)", r"\1_b", name))
        renamed[name.replace("scans.1.A_log", "A_b_log")] = value
    return renamed


def test_timms_checkpoint_path_and_load_state_dict_take_upstreams_names(tmp_path):
    source = model()
    theirs = upstream(source)
    assert "layers.0.mixer.x_proj_b.weight" in theirs
    assert "layers.0.mixer.A_b_log" in theirs
    assert "norm_f.weight" in theirs
    torch.save({"model": {f"module.{name}": value for name, value in theirs.items()}}, tmp_path / "vim.pth")
    timms = timm.create_model(
        "vim_tiny_patch16_224", num_classes=4, **OPTIONS, checkpoint_path=str(tmp_path / "vim.pth")
    )
    plain, inside = model(), torch.nn.ModuleDict({"network": model()})
    plain.load_state_dict(theirs)
    inside.load_state_dict({f"network.{name}": value for name, value in theirs.items()})
    for loaded in (timms, plain, inside["network"], copy.deepcopy(plain)):
        assert all(
            torch.equal(a, b) for a, b in zip(source.state_dict().values(), loaded.state_dict().values(), strict=True)
        )
    with pytest.raises(RuntimeError, match="Missing key.*cls_token"):
        plain.load_state_dict({name: value for name, value in theirs.items() if name != "cls_token"})
    copy.deepcopy(plain).load_state_dict(theirs)


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
