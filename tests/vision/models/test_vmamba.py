"""VMamba against a slow oracle under upstream's names: maps channel-first, routes as transposed and flipped copies."""

import math

import pytest
import torch
import torch.nn.functional as F

import vision
from ssmcore.mixers.grid_mamba import GridMambaConfig
from vision.models.vmamba import PatchMerging, VMamba

COUNTS = {  # millions, to the digit that is printed in the reference table
    "vmamba_tiny_s1l8": "30.249",
    "vmamba_tiny_s2l5": "30.706",
    "vmamba_small_s2l15": "50.148",
    "vmamba_small_s1l20": "49.013",
    "vmamba_base_s2l15": "88.558",
    "vmamba_base_s1l20": "86.615",
    "vmamba_tiny_v0": "22.893",
    "vmamba_small_v0": "44.417",
    "vmamba_base_v0": "76",
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    millions = sum(p.numel() for p in vision.create_model(name, device="meta").parameters()) / 1e6
    digits = len(COUNTS[name].partition(".")[2])
    assert f"{millions:.{digits}f}" == COUNTS[name]


def random_weights(second, d=8, stages=2, expand=2, n=3, classes=5):
    """Random float64 weights under the names of upstream's classification code."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"classifier.norm.weight": (d * 2,), "classifier.norm.bias": (d * 2,)}
    shapes |= {"classifier.head.weight": (classes, 2 * d), "classifier.head.bias": (classes,)}
    stem = (
        ((0, (d // 2, 3, 3, 3)), (2, None), (5, (d, d // 2, 3, 3)), (7, None))
        if second
        else ((0, (d, 3, 4, 4)), (2, None))
    )
    for place, shape in stem:
        width = (d // 2 if place < 4 else d) if second else d
        shapes |= {f"patch_embed.{place}.weight": shape or (width,), f"patch_embed.{place}.bias": (width,)}
    if second:
        shapes |= {"layers.0.downsample.1.weight": (2 * d, d, 3, 3), "layers.0.downsample.1.bias": (2 * d,)}
        shapes |= {"layers.0.downsample.3.weight": (2 * d,), "layers.0.downsample.3.bias": (2 * d,)}
    else:
        shapes |= {"layers.0.downsample.1.weight": (4 * d,), "layers.0.downsample.1.bias": (4 * d,)}
        shapes |= {"layers.0.downsample.2.weight": (2 * d, 4 * d)}
    for s in range(stages):
        width = d * 2**s
        inner, rank, at = expand * width, math.ceil(width / 16), f"layers.{s}.blocks.0."
        shapes |= {f"{at}norm.weight": (width,), f"{at}norm.bias": (width,)}
        shapes |= {
            f"{at}op.in_proj.weight": (inner if second else 2 * inner, width),
            f"{at}op.out_proj.weight": (width, inner),
            f"{at}op.conv2d.weight": (inner, 1, 3, 3),
            f"{at}op.x_proj_weight": (4, rank + 2 * n, inner),
            f"{at}op.dt_projs_weight": (4, inner, rank),
            f"{at}op.dt_projs_bias": (4, inner),
            f"{at}op.A_logs": (4 * inner, n),
            f"{at}op.Ds": (4 * inner,),
            f"{at}op.out_norm.weight": (inner,),
            f"{at}op.out_norm.bias": (inner,),
        }
        if second:
            shapes |= {f"{at}norm2.weight": (width,), f"{at}norm2.bias": (width,)}
            shapes |= {f"{at}mlp.fc1.weight": (4 * width, width), f"{at}mlp.fc1.bias": (4 * width,)}
            shapes |= {f"{at}mlp.fc2.weight": (width, 4 * width), f"{at}mlp.fc2.bias": (width,)}
        else:
            shapes[f"{at}op.conv2d.bias"] = (inner,)
    return {k: 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64) for k, shape in shapes.items()}


def norm(x, w, at):
    """LayerNorm over the channels of a map (c, h, w)."""
    return F.layer_norm(x.permute(1, 2, 0), x.shape[:1], w[f"{at}.weight"], w[f"{at}.bias"]).permute(2, 0, 1)


def linear(x, weight, bias=None):
    return F.linear(x.permute(1, 2, 0), weight, bias).permute(2, 0, 1)


def scan(u, w, k):
    """Route k over a sequence (c, l), token by token."""
    inner, rank = u.shape[0], w["dt_projs_weight"].shape[2]
    A = -w["A_logs"].view(4, inner, -1)[k].exp()
    n, h, out = A.shape[1], torch.zeros_like(A), []
    for x in u.T:
        low, B, C = (w["x_proj_weight"][k] @ x).split([rank, n, n])
        dt = F.softplus(w["dt_projs_weight"][k] @ low + w["dt_projs_bias"][k])[:, None]
        h = (dt * A).exp() * h + dt * B * x[:, None]
        out.append(h @ C + w["Ds"].view(4, -1)[k] * x)
    return torch.stack(out, 1)


def oracle_block(x, w, at, second):
    op = {key.removeprefix(f"{at}op."): value for key, value in w.items() if key.startswith(f"{at}op.")}
    u = linear(norm(x, w, f"{at}norm"), op["in_proj.weight"])
    u, z = (u, None) if second else u.chunk(2, 0)
    u = F.silu(F.conv2d(u[None], op["conv2d.weight"], op.get("conv2d.bias"), padding=1, groups=len(u))[0])
    rows, columns = u.flatten(1), u.mT.flatten(1)
    y = scan(rows, op, 0).view_as(u) + scan(columns, op, 1).view_as(u.mT).mT
    y = y + scan(rows.flip(1), op, 2).flip(1).view_as(u) + scan(columns.flip(1), op, 3).flip(1).view_as(u.mT).mT
    y = norm(y, op, "out_norm")
    x = x + linear(y if z is None else y * F.silu(z), op["out_proj.weight"])
    if not second:
        return x
    hidden = F.gelu(linear(norm(x, w, f"{at}norm2"), w[f"{at}mlp.fc1.weight"], w[f"{at}mlp.fc1.bias"]))
    return x + linear(hidden, w[f"{at}mlp.fc2.weight"], w[f"{at}mlp.fc2.bias"])


def oracle(image, w, second):
    def conv(x, at, **options):
        return F.conv2d(x[None], w[f"{at}.weight"], w[f"{at}.bias"], **options)[0]

    if second:
        x = F.gelu(norm(conv(image, "patch_embed.0", stride=2, padding=1), w, "patch_embed.2"))
        x = norm(conv(x, "patch_embed.5", stride=2, padding=1), w, "patch_embed.7")
    else:
        x = norm(conv(image, "patch_embed.0", stride=4), w, "patch_embed.2")
    x = oracle_block(x, w, "layers.0.blocks.0.", second)
    if second:
        x = norm(conv(x, "layers.0.downsample.1", stride=2, padding=1), w, "layers.0.downsample.3")
    else:
        x = torch.cat([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]])
        x = linear(norm(x, w, "layers.0.downsample.1"), w["layers.0.downsample.2.weight"])
    x = norm(oracle_block(x, w, "layers.1.blocks.0.", second), w, "classifier.norm")
    return w["classifier.head.weight"] @ x.mean((1, 2)) + w["classifier.head.bias"]


def model(second, **options):
    ssm = GridMambaConfig(d_state=3, gate=not second, conv_bias=not second)
    kind = {} if second else {"mlp_ratio": 0, "embedding": "separate"}
    sizes = {"depths": (1, 1), "embed_dim": 8, "num_classes": 5, "mixer": ssm}
    return VMamba(**{**sizes, **kind, **options}).double().eval()


def first_release_names(weights):
    """What the first release called things."""
    words = {
        "classifier.norm": "norm",
        "classifier.head": "head",
        "patch_embed.0": "patch_embed.proj",
        "patch_embed.2": "patch_embed.norm",
        "blocks.0.norm.": "blocks.0.ln_1.",
        "blocks.0.op.": "blocks.0.self_attention.",
        "downsample.1": "downsample.norm",
        "downsample.2": "downsample.reduction",
    }
    renamed = {}
    for key, value in weights.items():
        for old, new in words.items():
            key = key.replace(old, new)
        renamed[key] = value
    return renamed


def single_file_names(weights):
    """What upstream's single-file form saves: grouped convolutions, stacked along the output, with axes of length 1."""
    renamed = {}
    for key, value in weights.items():
        if key.endswith(("x_proj_weight", "dt_projs_weight")):
            key, value = key.replace("_weight", ".weight"), value.flatten(0, 1)[..., None]
        elif key.endswith(("op.in_proj.weight", "op.out_proj.weight", "fc1.weight", "fc2.weight")):
            value = value[..., None, None]
        renamed[key] = value
    return renamed


@pytest.mark.parametrize(
    ("second", "names"), [(True, dict), (True, single_file_names), (False, dict), (False, first_release_names)]
)
def test_upstream_weights_compute_what_upstream_computes(second, names):
    weights = random_weights(second)
    loaded = vision.load_checkpoint(model(second), {"model": names(weights)})
    image = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image[None])[0], oracle(image, weights, second), rtol=1e-9, atol=1e-10)


def test_our_own_names_pass_through():
    source = model(True)
    again = vision.load_checkpoint(model(True), source.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_odd_sides_are_merged_with_zeros():
    merging = PatchMerging(2).double()
    x = torch.randn(1, 3, 5, 2, dtype=torch.float64)
    padded = torch.zeros(1, 4, 6, 2, dtype=torch.float64)
    padded[:, :3, :5] = x
    assert merging(x).shape == (1, 2, 3, 4)
    torch.testing.assert_close(merging(x), merging(padded))


@pytest.mark.parametrize(
    "mixer", ["s5", {"name": "mamba", "d_state": 4}, "attention", {"name": "scan_order", "mixer": "gru"}]
)
def test_any_mixer_can_stand_in_for_the_ssm(mixer):
    made = VMamba(depths=(1, 1), embed_dim=16, num_classes=4, mixer=mixer)
    y = made(torch.randn(2, 3, 32, 48))
    y.sum().backward()
    assert y.shape == (2, 4)
    assert [key for key, p in made.named_parameters() if p.grad is None] == []


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="embedding"):
        VMamba(embedding="v1")
    with pytest.raises(ValueError, match="output_fmt"):
        VMamba(depths=(1,)).forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC")
