"""Steps: who decays, who learns how fast, what is mixed, averaged and clipped."""

from types import SimpleNamespace

import pytest
import timm
import torch

import vision.models  # noqa: F401
from vision.config import TrainConfig
from vision.data import Batch
from vision.task import ClassifyTask, named_groups

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 3}


def vim(**options):
    return timm.create_model("vim_tiny_patch16_224", **{**SMALL, **options})


def task(**options):
    config = TrainConfig(**{"epochs": 2, "warmup_epochs": 0, "lr": 1e-2, **options})
    return ClassifyTask(vim(), config, 3, updates_per_epoch=5, batch=8)


def batch(n=8):
    return Batch(torch.randn(n, 3, 16, 16), torch.arange(n) % 3, [])


MODELS = {
    "vim_tiny_patch16_224": SMALL,
    "vmamba_tiny_s1l8": {"depths": (1, 1), "embed_dim": 16},
    "plainmamba_l1": {"embed_dim": 16, "depth": 2, "img_size": 32},
    "vit_tiny_patch16_224": {**SMALL, "num_heads": 2},
}


@pytest.mark.parametrize("name", MODELS)
def test_groups_are_a_partition_and_keep_what_must_not_decay(name):
    model = timm.create_model(name, **MODELS[name])
    groups = named_groups(model, TrainConfig(weight_decay=0.1))
    names = [name for group in groups for name in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    decay = {name: group["weight_decay"] for group in groups for name in group["params"]}
    free = ("A_log", ".D", "bias", "pos_embed", "cls_token", "directions", "norm.weight")
    for parameter, value in decay.items():
        if parameter.endswith(free):
            assert value == 0.0, parameter
    assert any(value == 0.1 for value in decay.values())
    assert {decay[name] for name in decay if name.endswith(("in_proj.weight", "qkv.weight"))} == {0.1}


def test_a_mixers_own_pace_and_the_layers_multiply():
    model = vim(mixer="s5")
    groups = named_groups(model, TrainConfig(layer_decay=0.5))
    scale = {name: group["lr_scale"] for group in groups for name in group["params"]}
    own = {name: s for name, s in scale.items() if ".mixer." in name}
    assert scale["head.weight"] == 1.0
    block = [{s for name, s in own.items() if name.startswith(f"blocks.{i}.")} for i in (0, 1)]
    assert max(block[0]) == max(block[1]) / 2
    assert min(block[1]) == max(block[1]) / 4  # S5's poles learn at a quarter of the pace
    assert scale["patch_embed.proj.weight"] == max(block[0]) / 2


def test_optimiser_and_schedule_are_timms(monkeypatch):
    one = task(opt="sgd", sched="cosine", weight_decay=0.1, min_lr=0.0)
    made = one.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert type(optimizer) is torch.optim.SGD
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(one.model.parameters()))
    rates = []
    for update in range(11):
        schedule.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-2)
    assert rates[5] == pytest.approx(5e-3)
    assert rates[10] == pytest.approx(0.0)
    with pytest.raises(ValueError, match=r"--opt nonsense"):
        task(opt="nonsense").configure_optimizers()


def test_the_learning_rate_follows_the_batch():
    config = TrainConfig(lr_base=1e-3, lr_base_size=256)
    assert ClassifyTask(vim(), config, 3, 5, batch=1024).lr == pytest.approx(4e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"smoothing": 0.0}, {"mixup": 0.8, "cutmix": 1.0}, {"bce_loss": True}, {"bce_loss": True, "mixup": 1.0}],
    ids=["smooth", "plain", "mixed", "bce", "bce mixed"],
)
@pytest.mark.parametrize("n", [7, 8])
def test_every_loss_is_finite_and_has_gradients(options, n):
    one = task(**options)
    loss = one.training_step(batch(n), 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in one.model.parameters())


def test_plain_loss_is_cross_entropy():
    one, given = task(smoothing=0.0), batch()
    expected = torch.nn.functional.cross_entropy(one.model(given.images), given.labels)
    torch.testing.assert_close(one.training_step(given, 0), expected)


def test_mixing_ends_when_told(monkeypatch):
    one = task(mixup=1.0, mixup_off_epoch=1)
    monkeypatch.setattr(one, "mixing", lambda images, labels: pytest.fail("mixed"))
    monkeypatch.setattr(ClassifyTask, "current_epoch", 1)
    one.training_step(batch(), 0)


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
def test_clipping(mode):
    one = task(clip_grad=1e-3, clip_mode=mode)
    (1e3 * one.training_step(batch(), 0)).backward()
    optimizer = one.configure_optimizers()["optimizer"]
    before = {name: p.grad.norm().item() for name, p in one.model.named_parameters()}
    one._trainer = SimpleNamespace(  # what clip_gradients asks the Trainer for
        gradient_clip_val=None,
        gradient_clip_algorithm=None,
        precision_plugin=__import__("lightning").pytorch.plugins.Precision(),
    )
    one.configure_gradient_clipping(optimizer)
    after = {name: p.grad for name, p in one.model.named_parameters()}
    if mode == "norm":
        assert torch.nn.utils.get_total_norm(after.values()) <= 1.001e-3
    elif mode == "value":
        assert max(g.abs().max() for g in after.values()) <= 1.001e-3
    else:
        assert all(after[name].norm() < before[name] for name in before if name.endswith("in_proj.weight"))
        assert after["head.weight"].norm().item() == pytest.approx(before["head.weight"])


def test_averaged_weights_follow(monkeypatch):
    one = task(model_ema=True, model_ema_decay=0.75)
    assert one.weights_prefix == "ema.module."
    assert not any(p.requires_grad for p in one.ema.parameters())
    start = one.model.head.weight.detach().clone()
    one.ema.set(one.model)
    with torch.no_grad():
        one.model.head.weight.add_(4.0)
    one.ema.update(one.model, step=5)
    torch.testing.assert_close(one.ema.module.head.weight, start + 1.0)
