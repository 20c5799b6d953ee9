"""SiMBA: counts of the published variants, its token head, and what the channel mixers see."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

import vision
from vision.models.simba import ConvMlp, SiMBA

COUNTS = {  # millions, to the digits that the paper prints
    "simba_small_mlp": 26.59,
    "simba_small_einfft": 15.31,
    "simba_base_mlp": 40.21,
    "simba_base_einfft": 22.82,
    "simba_large_mlp": 66.76,
    "simba_large_einfft": 36.64,
}
SMALL = {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32), "stem_dim": 8, "num_classes": 5}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = vision.create_model(name, device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == COUNTS[name]


@pytest.mark.parametrize(("size", "millions"), [("small", 18.5), ("base", 26.9), ("large", 42)])
def test_monarch_is_near_the_printed_counts(size, millions):
    """The sources print counts but no structure: within 5 %."""
    model = vision.create_model(f"simba_{size}_monarch", device="meta")
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 / millions - 1) < 0.05


def test_logits_are_the_token_s_and_half_the_loudest_cell_s():
    torch.manual_seed(0)
    model, x = SiMBA(**SMALL).eval(), torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        token, cells = model.forward_token_labels(x)
        assert token.shape == (2, 5)
        assert cells.shape == (2, 3, 2, 5)
        torch.testing.assert_close(model(x), token + 0.5 * cells.flatten(1, 2).amax(1))
    with pytest.raises(ValueError, match="no auxiliary head"):
        SiMBA(**SMALL, global_pool="avg").forward_token_labels(x)


def test_mamba_looks_back_only_and_einfft_sees_all():
    torch.manual_seed(0)
    for kind, whole in (("monarch", False), ("einfft", True)):
        block = SiMBA(**SMALL, channel_mixer=kind).eval().stages[0].blocks[0]
        if whole:  # softshrink leaves nothing of the small initial weights
            for p in block[1].mixer.parameters():
                torch.nn.init.normal_(p, std=0.5)
        x = torch.randn(1, 3, 4, 16)
        later = x.clone()
        later[:, 2, 3] += 1
        with torch.no_grad():
            change = (block(later) - block(x)).abs().amax(-1).flatten()
        assert (change[:-1].max() > 0) == whole


def test_conv_mlp_sees_the_neighbours_only():
    torch.manual_seed(0)
    mixer, grid = ConvMlp(8), {"grid": (5, 5)}
    x = torch.randn(1, 25, 8)
    other = x.clone()
    other[:, 12] += 1
    with torch.no_grad():
        a, b = (mixer(t, shared=grid)[0] for t in (x, other))
    changed = (a - b).abs().amax(-1).view(5, 5) > 1e-6
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1:4, 1:4] = True
    assert torch.equal(changed, expected)


def norm(x, w, at, eps):
    return F.layer_norm(x, x.shape[-1:], w[f"{at}.weight"], w[f"{at}.bias"], eps)


def raster_mamba(x, w, n=64):
    """Vanilla Mamba over tokens (l, d), one at a time."""
    u, z = (x @ w["in_proj.weight"].T).chunk(2, -1)
    padded = F.pad(u, (0, 0, 3, 0))
    u = F.silu(sum(padded[k : k + len(x)] * w["conv1d.weight"][:, 0, k] for k in range(4)) + w["conv1d.bias"])
    h, out, rank = torch.zeros_like(w["A_log"]), [], w["dt_proj.weight"].shape[1]
    for token in u:
        low, B, C = (w["x_proj.weight"] @ token).split([rank, n, n])
        dt = F.softplus(w["dt_proj.weight"] @ low + w["dt_proj.bias"])[:, None]
        h = (-dt * w["A_log"].exp()).exp() * h + dt * token[:, None] * B
        out.append(h @ C + w["D"] * token)
    return (torch.stack(out) * F.silu(z)) @ w["out_proj.weight"].T


def spectral(x, w):
    """EinFFT over tokens (l, d): Fourier sums written out over tokens and blocks."""
    blocks = torch.complex(*rearrange(torch.stack([x, 0 * x]), "p l (k w) -> p l k w", k=4))
    steps = [torch.arange(float(s), dtype=torch.float64) for s in (len(x), 4)]
    ahead = [torch.exp(-2j * math.pi * torch.outer(t, t) / len(t)) / len(t) ** 0.5 for t in steps]
    y = torch.einsum("ml,nk,lkw->mnw", *ahead, blocks)
    for i, bend in ((1, F.relu), (2, lambda part: F.softshrink(part, 0.01))):
        weight, bias = (torch.complex(*w[f"complex_{kind}_{i}"]) for kind in ("weight", "bias"))
        y = torch.einsum("lkw,kwv->lkv", y, weight) + bias
        y = torch.complex(bend(y.real), bend(y.imag))
    return torch.einsum("lm,kn,mnw->lkw", *(table.conj() for table in ahead), y).real.flatten(1)


def mix_channels(x, w, grid):
    if "complex_weight_1" in w:
        return spectral(x, w)
    y = F.linear(x, w["fc1.weight"], w["fc1.bias"])
    if grid is not None:
        y = rearrange(y, "(h w) d -> 1 d h w", h=grid[0])
        y = F.conv2d(y, w["dwconv.dwconv.weight"], w["dwconv.dwconv.bias"], padding=1, groups=y.shape[1])
        y = rearrange(y, "1 d h w -> (h w) d")
    return F.linear(F.gelu(y), w["fc2.weight"], w["fc2.bias"])


def oracle_block(x, w, at, grid):
    inner, mlp = (
        {k.removeprefix(at + p): v for k, v in w.items() if k.startswith(at + p)} for p in ("attn.mamba.", "mlp.")
    )
    x = x + raster_mamba(norm(x, w, f"{at}attn.norm", 1e-5), inner)
    return x + mix_channels(norm(x, w, f"{at}norm2", 1e-6), mlp, grid)


def oracle(image, w, depths):
    """WaveViT's network with Mamba in the attention's place, on one image (c, h, w)."""
    x = image[None]
    for place, stride in ((0, 2), (3, 1), (6, 1)):
        weight, at = w[f"patch_embed1.conv.{place}.weight"], f"patch_embed1.conv.{place + 1}"
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        stats = (w[f"{at}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        x = F.relu(F.batch_norm(x, *stats))
    for s, depth in enumerate(depths, 1):
        at = f"patch_embed{s}"
        x = F.conv2d(x, w[f"{at}.proj.weight"], w[f"{at}.proj.bias"], stride=2, padding=1)
        grid = x.shape[2:]
        tokens = norm(x[0].flatten(1).T, w, f"{at}.norm", 1e-5)
        for i in range(depth):
            tokens = oracle_block(tokens, w, f"block{s}.{i}.", grid)
        if s < len(depths):
            tokens = norm(tokens, w, f"norm{s}", 1e-6)
            x = tokens.T.unflatten(1, grid)[None]
    cls = oracle_block(tokens.mean(0, keepdim=True), w, "post_network.0.", None)
    tokens = norm(torch.cat([cls, tokens]), w, "norm4", 1e-6)
    cells = F.linear(tokens[1:], w["aux_head.weight"], w["aux_head.bias"])
    return F.linear(tokens[0], w["head.weight"], w["head.bias"]) + 0.5 * cells.max(0).values


def wavevit_name(name):
    """What a parameter of ours is called in code that comes from WaveViT, with a Mamba in a layer of its own."""
    parts = name.split(".")
    if parts[0] == "patch_embed":
        return (
            "patch_embed1."
            + {"convs": "conv." + parts[2]}.get(parts[1], parts[2].replace("conv", "proj"))
            + "."
            + parts[-1]
        )
    if parts[:2] == ["head", "block"]:
        at, rest = "post_network.0.", ".".join(parts[2:])
    elif parts[0] == "head":
        return {"fc": "head", "aux": "aux_head", "norm": "norm4"}[parts[1]] + "." + parts[2]
    elif parts[2] == "norm":
        return f"norm{int(parts[1]) + 1}.{parts[3]}"
    elif parts[2] == "downsample":
        return f"patch_embed{int(parts[1]) + 1}.{parts[3].replace('conv', 'proj')}.{parts[4]}"
    else:
        at, rest = f"block{int(parts[1]) + 1}.{parts[3]}.", ".".join(parts[4:])
    words = {"0.norm": "attn.norm", "0.mixer": "attn.mamba", "1.norm": "norm2", "1.mixer.in_proj": "mlp.fc1"}
    words |= {"1.mixer.out_proj": "mlp.fc2", "1.mixer.conv": "mlp.dwconv.dwconv", "1.mixer": "mlp"}
    ours = next(word for word in words if rest.startswith(word))
    return at + words[ours] + rest.removeprefix(ours)


@pytest.mark.parametrize("kind", ["mlp", "einfft"])
def test_weights_by_wavevits_names_compute_what_the_oracle_computes(kind):
    g = torch.Generator().manual_seed(0)
    model = SiMBA(**SMALL, channel_mixer=kind).double().eval()
    theirs = {}
    for name, value in model.state_dict().items():
        noise = 0.3 * torch.randn(value.shape, generator=g, dtype=torch.float64) if value.is_floating_point() else 0
        theirs[wavevit_name(name)] = value + (noise.abs() if name.endswith("running_var") else noise)
    assert {"block2.0.attn.mamba.A_log", "post_network.0.norm2.weight", "norm4.bias", "aux_head.weight"} <= set(theirs)
    vision.load_checkpoint(model, {"model": theirs})
    image = torch.randn(3, 64, 96, generator=g, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(image[None])[0], oracle(image, theirs, SMALL["depths"]), rtol=1e-8, atol=1e-8)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="channel_mixer='fft'"):
        SiMBA(**SMALL, channel_mixer="fft")
    with pytest.raises(ValueError, match="global_pool='max'"):
        SiMBA(**SMALL, global_pool="max")
