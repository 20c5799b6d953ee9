"""What timm asks of every model, for every name of ours: the per-model checks of timm's own suite, written anew."""

import functools
import math

import pytest
import timm
import torch
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules
from timm.optim import param_groups_layer_decay
from torchvision.models.feature_extraction import NodePathTracer
from torchvision.models.feature_extraction import create_feature_extractor as extractor

import vision
from vision.models.localmamba import VIM_ROUTES, VMAMBA_TINY_ROUTES

NAMES = vision.list_models()
STAGES = (1, 1, 2, 1)
SHORT = {
    "vim_tiny_patch16_224": {"depth": 4},
    "vmamba_tiny_s1l8": {"depths": STAGES},
    "vmamba_tiny_v0": {"depths": STAGES},
    "plainmamba_l1": {"depth": 4},
    "localvim_tiny": {"routes": VIM_ROUTES[:4]},
    "localvim_tiny_midcls": {"routes": VIM_ROUTES[:4]},
    "localvmamba_tiny": {"depths": STAGES, "routes": VMAMBA_TINY_ROUTES[:5]},
    "mambavision_tiny": {"depths": (1, 1, 2, 2)},
    "simba_small_einfft": {"depths": STAGES},
    "simba_small_mlp": {"depths": STAGES},
    "s4nd_vit_base_patch16_224": {"depth": 4, "embed_dim": 192},
    "s4nd_convnext_tiny": {"depths": STAGES},
}
"""One size of each architecture with fewer blocks; every name as it is runs in the slow tier."""
QUICK = [pytest.param(functools.partial(timm.create_model, name, **SHORT[name]), id=f"{name}-short") for name in SHORT]
WHOLE = [pytest.param(functools.partial(timm.create_model, name), id=name, marks=pytest.mark.slow) for name in NAMES]
SMALL = 64
every_model = pytest.mark.parametrize("build", [*QUICK, *WHOLE])


def image(batch=1, size=SMALL, chans=3):
    return torch.randn(batch, chans, size, size, generator=torch.Generator().manual_seed(0))


def is_map(model):
    """Whether forward_features gives a map with two spatial axes and not tokens."""
    return hasattr(model, "output_fmt")


def test_some_of_each_architecture_are_quick():
    assert {name.split("_")[0] for name in NAMES} == {name.split("_")[0] for name in SHORT}


@every_model
def test_forward_with_and_without_checkpointing(build):
    model = build().eval()
    with torch.no_grad():
        y = model(image())
    assert y.shape == (1, 1000)
    assert y.isfinite().all()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(image()), y, rtol=1e-4, atol=1e-5)


@every_model
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient(build, checkpointing):
    model = build(num_classes=42, drop_path_rate=0.1).train()
    model.set_grad_checkpointing(checkpointing)
    y = model(image(2))
    assert y.shape == (2, 42)
    y.mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@every_model
def test_default_configuration(build):
    model = build().eval()
    cfg = model.default_cfg
    assert cfg["num_classes"] == model.num_classes == 1000
    state = model.state_dict()
    heads = (cfg["classifier"],) if isinstance(cfg["classifier"], str) else cfg["classifier"]
    assert {f"{key}.weight" for key in (*heads, cfg["first_conv"])} <= set(state)
    assert model.get_classifier() is model.get_submodule(heads[0])
    with torch.no_grad():
        features = model.forward_features(image())
        pooled = model.forward_head(features, pre_logits=True)
        axis = 1 if is_map(model) and model.output_fmt == "NCHW" else -1
        assert features.shape[axis] == model.num_features
        assert pooled.shape == (1, model.head_hidden_size)
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(image()), pooled)
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(image()), features)
        model.reset_classifier(7, "avg")
        assert model(image()).shape == (1, 7)
        bare = build(num_classes=0, global_pool="").eval()
        assert bare(image()).shape == features.shape
        if is_map(model):
            height, width = (SMALL * side // 224 for side in cfg["pool_size"])
            assert features.shape[1:3] == (height, width)


@every_model
@pytest.mark.parametrize("options", [{}, {"feature_cls": "getter"}])
def test_features_only(build, options):
    model = build(features_only=True, **options).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(channels) >= 3
    with torch.no_grad():
        maps = model(image(size=96))
    assert len(maps) == len(channels)
    for y, c, r in zip(maps, channels, reductions, strict=True):
        assert y.shape[:2] == (1, c)
        assert all(side <= math.ceil(96 / r) + 1 for side in y.shape[2:])
        assert y.isfinite().all()


@every_model
def test_forward_intermediates(build):
    model = build().eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    with torch.no_grad():
        features = model.forward_features(image())
        last, maps = model.forward_intermediates(image())
        torch.testing.assert_close(last, features)
        assert [y.shape[1] for y in maps] == info.channels()
        assert all(
            s <= math.ceil(SMALL / r) + 1 for y, r in zip(maps, info.reduction(), strict=True) for s in y.shape[2:]
        )
        some = model.forward_intermediates(image(), indices=[0, 2], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(some, [maps[0], maps[2]])
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(image())[0], features, rtol=1e-4, atol=1e-5)


def traced(model):
    rules = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    last = list(NodePathTracer(**rules).trace(model).nodes)[-2].name
    names = NodePathTracer(**rules)
    names.trace(model)
    path = {node.name: path for node, path in names.node_to_qualname.items()}[last]
    return extractor(model, [path], tracer_kwargs=rules)


@every_model
def test_fx_graph_computes_the_same(build):
    model = build().eval()
    with torch.inference_mode():
        y = model(image(size=96))
        (traced_y,) = traced(model)(image(size=96)).values()
    assert torch.equal(traced_y, y)


@every_model
def test_fx_graph_has_every_gradient(build):
    model = build(num_classes=42).train()
    graph = traced(model)
    (y,) = graph(image(2)).values()
    y.mean().backward()
    assert y.shape == (2, 42)
    assert [key for key, p in graph.named_parameters() if p.grad is None] == []


@every_model
def test_other_numbers_of_channels_and_classes(build):
    one = build(in_chans=1, num_classes=5).eval()
    none = build(in_chans=4, num_classes=0).eval()
    with torch.no_grad():
        assert one(image(chans=1)).shape == (1, 5)
        assert none(image(chans=4)).shape == (1, none.num_features)


@every_model
def test_any_size_and_shape_of_image(build):
    model = build().eval()
    with torch.no_grad():
        for height, width in ((64, 96), (70, 45), (33, 97)):
            y = model(torch.randn(1, 3, height, width))
            assert y.shape == (1, 1000)
            assert y.isfinite().all()


@every_model
def test_parameter_groups(build):
    model = build()
    names = dict(model.named_parameters())
    no_decay = model.no_weight_decay()
    assert no_decay <= set(names)
    for key in names:
        if key.endswith(("A_log", ".D", "dt_proj.bias", "pos_embed", "cls_token", "direction_Bs")):
            assert key in no_decay, key
    layers = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.9)
    assert sum(len(group["params"]) for group in layers) == len(names)
    assert len({group["lr_scale"] for group in layers}) > 4


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(build, dtype):
    model = build(num_classes=10).train()
    with torch.autocast("cpu", dtype):
        y = model(image(2))
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_local_weights_through_timm(build, tmp_path):
    model = build().eval()
    file = tmp_path / "weights.pth"
    torch.save({"model": {f"module.{key}": value for key, value in model.state_dict().items()}, "epoch": 3}, file)
    again = build(pretrained=True, pretrained_cfg_overlay={"file": str(file)}).eval()
    fewer = build(pretrained=True, pretrained_cfg_overlay={"file": str(file)}, num_classes=5, in_chans=1)
    with torch.no_grad():
        torch.testing.assert_close(again(image()), model(image()))
        assert fewer(image(chans=1)).shape == (1, 5)
