"""A small model of each architecture through torch.compile, torch.export and torch.jit.trace, and in narrow types."""

import pytest
import timm
import torch

import vision
from vision.models.localmamba import VIM_ROUTES, VMAMBA_TINY_ROUTES

PLAIN = {"depth": 1, "embed_dim": 16}
STAGES = {"depths": (1, 1), "embed_dim": 16}
SIMBA = {"depths": (1, 1, 1, 1), "dims": (16, 16, 16, 32), "stem_dim": 8}
SMALL = {
    "vim_tiny_patch16_224": PLAIN,
    "vmamba_tiny_s1l8": STAGES,
    "vmamba_tiny_v0": STAGES,
    "plainmamba_l1": PLAIN,
    "localvim_tiny": {"embed_dim": 16, "routes": VIM_ROUTES[:1]},
    "localvim_tiny_midcls": {"embed_dim": 16, "routes": VIM_ROUTES[:1]},
    "localvmamba_tiny": {**STAGES, "routes": VMAMBA_TINY_ROUTES[:2]},
    "mambavision_tiny": {"depths": (1, 1, 2, 2), "embed_dim": 16, "stem_dim": 8, "num_heads": (2, 4)},
    "simba_small_mlp": SIMBA,
    "simba_small_einfft": SIMBA,
    "simba_small_monarch": SIMBA,
    "s4nd_vit_base_patch16_224": PLAIN,
    "s4nd_convnext_tiny": STAGES,
}
every_architecture = pytest.mark.parametrize("name", SMALL)


def small(name, **options):
    torch.manual_seed(0)
    return vision.create_model(name, **{"num_classes": 5, **SMALL[name], **options})


def image(batch=2):
    return torch.randn(batch, 3, 64, 48, generator=torch.Generator().manual_seed(1))


def test_no_family_is_forgotten():
    families = {name.split("_")[0] for name in vision.list_models()}
    assert {name.split("_")[0] for name in SMALL} == families


@every_architecture
def test_compiles_without_a_graph_break(name):
    """Forward and backward; aot_eager runs all of the compiler but the making of kernels."""
    model, x = small(name), image()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, again = model.eval()(x), compiled.eval()(x)
    torch.testing.assert_close(again, y)
    found = torch.autograd.grad(again.square().sum(), list(model.parameters()), allow_unused=True)
    expected = torch.autograd.grad(y.square().sum(), list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@every_architecture
def test_exports_with_any_batch(name):
    model = small(name).eval()
    program = torch.export.export(model, (image(),), dynamic_shapes=({0: torch.export.Dim("b", min=1, max=64)},))
    for batch in (1, 3):
        torch.testing.assert_close(program.module()(image(batch)), model(image(batch)))


@every_architecture
def test_a_trace_can_be_saved_and_computes_the_same(name, tmp_path):
    """TorchScript by tracing, for one size of image; the models are not written in its language (torch.jit.script)."""
    model = small(name).eval()
    torch.jit.trace(model, image(), check_trace=False).save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    other = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(loaded(other), model(other))


def train_narrowly(name, dtype, steps):
    """Losses of training on one batch under autocast; stops at the first gradient that is not finite."""
    model = small(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    x, target = image(8), torch.arange(8) % 5
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", dtype):
            loss = torch.nn.functional.cross_entropy(model(x).float(), target)
        optimizer.zero_grad()
        loss.backward()
        bad = [key for key, p in model.named_parameters() if not p.grad.isfinite().all()]
        assert bad == []
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow  # a core without bfloat16 units takes minutes for convolutions; test_timm.py has one step of each
@every_architecture
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_over_many_steps(name, dtype):
    losses = train_narrowly(name, dtype, 40)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
@every_architecture
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_over_a_thousand_steps(name, dtype):
    assert train_narrowly(name, dtype, 1000)[-1] < 0.1


@every_architecture
def test_positions_follow_the_image(name):
    """A grid of another shape, made the model's own, gives what resampling on the way gives."""
    model, x = small(name, **({"img_size": 64} if "patch" in name or "plain" in name or "vim" in name else {})), image()
    model.eval()
    with torch.no_grad():
        before = model(x)
        if hasattr(model, "set_input_size"):
            model.set_input_size((64, 48))
        torch.testing.assert_close(model(x), before)


@every_architecture
def test_weights_of_another_size_of_image_load(name, tmp_path):
    """timm's checkpoint_path and ours, from 64 to 96 pixels: the class token's own position is not touched."""
    sized = hasattr(small(name), "set_input_size")
    source = small(name, **({"img_size": 64} if sized else {})).eval()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    options = {"num_classes": 5, **SMALL[name], **({"img_size": 96} if sized else {})}
    loaded = timm.create_model(name, checkpoint_path=str(tmp_path / "w.pth"), **options).eval()
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), source(x))
    if getattr(source, "cls_token", None) is not None:
        assert torch.equal(loaded.pos_embed[:, 36 // 2], source.pos_embed[:, 16 // 2])
