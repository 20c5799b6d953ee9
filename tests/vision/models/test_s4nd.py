"""S4ND in ViT and ConvNeXt: the printed sizes, and that every token sees every other one."""

import pytest
import torch
import torch.nn.functional as F

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


def filtered(x, layer, axis, k):
    """Two-sided convolution along one axis of (h, w, d), term by term; the present counts once."""
    length = x.shape[axis]
    ahead, back = (layer.kernel(k, way, 0, length) for way in (0, 1))
    lines, out = x.movedim(axis, 0), []
    for t in range(length):
        past = sum(ahead[t - s] * lines[s] for s in range(t + 1))
        out.append(past + sum(back[s - t - 1] * lines[s] for s in range(t + 1, length)))
    return torch.stack(out).movedim(0, axis)


def test_vit_computes_what_the_paper_says():
    torch.manual_seed(0)
    model = S4NDViT(embed_dim=8, depth=2, num_classes=5).double().eval()
    image = torch.randn(3, 48, 64, dtype=torch.float64)
    with torch.no_grad():
        x = model.patch_embed(image[None])[0].flatten(0, 1)
        for block in model.blocks:
            layer, mlp = block.mixer.mixer, block.mlp.mixer
            u = F.layer_norm(x, (8,), block.mixer.norm.weight, block.mixer.norm.bias).repeat(1, 2)
            y = F.gelu(filtered(u[:, None], layer, 0, 0)[:, 0] + layer.D * u)
            x = x + F.glu(layer.out_proj(y), -1)
            u = F.layer_norm(x, (8,), block.mlp.norm.weight, block.mlp.norm.bias)
            x = x + mlp.out_proj(F.gelu(mlp.in_proj(u)))
        x = F.layer_norm(x, (8,), model.norm.weight, model.norm.bias).mean(0)
        torch.testing.assert_close(model(image[None])[0], model.head(x))


def test_convnext_computes_what_the_paper_says():
    torch.manual_seed(0)
    model = S4NDConvNeXt(embed_dim=8, depths=(2, 1), num_classes=5).double().eval()
    image = torch.randn(3, 24, 40, dtype=torch.float64)
    with torch.no_grad():
        embed = model.patch_embed
        x = F.conv2d(image[None], embed.conv.weight, embed.conv.bias, stride=4)[0].permute(1, 2, 0)
        x = F.layer_norm(x, (8,), embed.norm.weight, embed.norm.bias, 1e-6)
        for s, stage in enumerate(model.stages):
            if s:
                x = F.layer_norm(x, x.shape[-1:], stage.downsample.norm.weight, stage.downsample.norm.bias, 1e-6)
                x = F.conv2d(
                    x.permute(2, 0, 1)[None], stage.downsample.conv.weight, stage.downsample.conv.bias, stride=2
                )
                x = x[0].permute(1, 2, 0)
            for block in stage.blocks:
                torch.nn.init.normal_(block.gamma)
                y = filtered(filtered(x, block.mixer, 0, 0), block.mixer, 1, 1) + block.mixer.D * x
                y = F.layer_norm(y, y.shape[-1:], block.norm.weight, block.norm.bias, 1e-6)
                x = x + block.gamma * block.mlp.out_proj(F.gelu(block.mlp.in_proj(y)))
        x = F.layer_norm(x, x.shape[-1:], model.norm.weight, model.norm.bias, 1e-6).mean((0, 1))
        torch.testing.assert_close(model(image[None])[0], model.head.fc(x))


def test_another_mixer():
    with torch.no_grad():
        model = S4NDConvNeXt(embed_dim=16, depths=(1, 1), num_classes=5, mixer="gru").eval()
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)
        assert S4NDViT(embed_dim=32, depth=1, num_classes=5, mixer="grid_mamba")(torch.randn(1, 3, 32, 48)).shape == (
            1,
            5,
        )
