"""LocalMamba against an oracle in upstream's key names: windows by rearranging, one token at a time, float64."""

import math

import pytest
import torch
from einops import rearrange

import vision
from vision.models.localmamba import LocalVim, LocalVMamba, checkpoint_filter_fn, rotate

F64 = torch.float64
COUNTS = {  # millions; the digits that the reference prints
    "localvim_tiny": (7.994, 3),
    "localvim_tiny_midcls": (7.995, 3),
    "localvim_small": (27.784, 3),
    "localvmamba_tiny": (26, 0),
    "localvmamba_small": (50, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = vision.create_model(name, device="meta")
    count, digits = COUNTS[name]
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, digits) == count


def along(x, direction, h, w):
    """Tokens (l, d) of a grid in the order of a direction; windows are filled up with zeros."""
    kind, _, flip = direction.partition("_")
    x = x.unflatten(0, (h, w))
    if kind == "v":
        x = x.transpose(0, 1)
    if kind[0] == "w":
        k = int(kind[1:])
        x = torch.nn.functional.pad(x, (0, 0, 0, -w % k, 0, -h % k))
        x = rearrange(x, "(i p) (j q) d -> i j p q d", p=k, q=k)
    x = x.reshape(-1, x.shape[-1])
    return x.flip(0) if flip else x


def back(y, direction, h, w):
    kind, _, flip = direction.partition("_")
    y = y.flip(0) if flip else y
    if kind == "v":
        return rearrange(y, "(j i) d -> (i j) d", i=h)
    if kind[0] == "w":
        k = int(kind[1:])
        rows, columns = -(-h // k), -(-w // k)
        y = rearrange(y, "(i j p q) d -> (i p) (j q) d", i=rows, j=columns, p=k, q=k)
        return y[:h, :w].reshape(h * w, -1)
    return y


def s6(u, w, number):
    """The selective scan of one route with its own weights, over (l, d)."""
    rank = w[f"dt_proj_{number}.weight"].shape[1]
    A = -w[f"A_log_{number}"].exp()
    projected = u @ w[f"x_proj_{number}.weight"].T
    dt = projected[:, :rank] @ w[f"dt_proj_{number}.weight"].T + w[f"dt_proj_{number}.bias"]
    dt = torch.nn.functional.softplus(dt)
    B, C = projected[:, rank:].chunk(2, -1)
    h, out = torch.zeros_like(A), []
    for t in range(len(u)):
        h = (dt[t][:, None] * A).exp() * h + (dt[t] * u[t])[:, None] * B[t]
        out.append(h @ C[t] + w[f"D_{number}"] * u[t])
    return torch.stack(out)


def layer_norm(x, weight, bias):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias)


def select(y, w):
    seen = layer_norm(y, w["attn.norm.weight"], w["attn.norm.bias"]).mean(0, keepdim=True)
    low = torch.nn.functional.gelu(seen @ w["attn.global_reduce.weight"].T + w["attn.global_reduce.bias"])
    return y * (low @ w["attn.channel_select.weight"].T + w["attn.channel_select.bias"]).sigmoid()


def vim_mixer(x, w, directions, h, w_, middle):
    """LocalVim's mixer over one image's tokens (l, d)."""
    silu, total = torch.nn.functional.silu, 0
    projected = x @ w["in_proj.weight"].T
    m = (len(x) - 1) // 2
    token = projected[m : m + 1] if middle else None
    patches = torch.cat([projected[:m], projected[m + 1 :]]) if middle else projected
    for number, direction in enumerate(directions):
        route = along(patches, direction, h, w_)
        if middle:
            route = torch.cat([route[:m], token, route[m:]])
        u, z = route.chunk(2, -1)
        taps, width = w[f"conv1d_{number}.weight"][:, 0], w[f"conv1d_{number}.weight"].shape[-1]
        padded = torch.cat([torch.zeros(width - 1, u.shape[1], dtype=F64), u])
        u = silu(sum(padded[k : k + len(u)] * taps[:, k] for k in range(width)) + w[f"conv1d_{number}.bias"])
        y = s6(u, w, number) * silu(z)
        if middle:
            rest = back(torch.cat([y[:m], y[m + 1 :]]), direction, h, w_)
            y = torch.cat([rest[:m], y[m : m + 1], rest[m:]])
        else:
            y = back(y, direction, h, w_)
        total = total + select(y, w)
    return total @ w["out_proj.weight"].T


def random_weights(shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=g, dtype=F64) * 0.3 for name, shape in shapes.items()}


def vim_weights(d, tokens, depth, patch=16, state=16):
    inner, rank = 2 * d, math.ceil(d / 16)
    shapes = {"patch_embed.proj.weight": (d, 3, patch, patch), "patch_embed.proj.bias": (d,)}
    shapes |= {"pos_embed": (1, tokens, d), "norm_f.weight": (d,), "head.weight": (5, d), "head.bias": (5,)}
    if tokens % 2:
        shapes["cls_token"] = (1, 1, d)
    for i in range(depth):
        at = f"layers.{i}.mixer."
        shapes |= {f"layers.{i}.norm.weight": (d,), at + "in_proj.weight": (2 * inner, d)}
        shapes |= {
            at + "out_proj.weight": (d, inner),
            at + "attn.norm.weight": (inner,),
            at + "attn.norm.bias": (inner,),
        }
        shapes |= {at + "attn.global_reduce.weight": (inner // 8, inner), at + "attn.global_reduce.bias": (inner // 8,)}
        shapes |= {at + "attn.channel_select.weight": (inner, inner // 8), at + "attn.channel_select.bias": (inner,)}
        for k in range(4):
            shapes |= {at + f"A_log_{k}": (inner, state), at + f"D_{k}": (inner,)}
            shapes |= {at + f"conv1d_{k}.weight": (inner, 1, 4), at + f"conv1d_{k}.bias": (inner,)}
            shapes |= {at + f"x_proj_{k}.weight": (rank + 2 * state, inner)}
            shapes |= {at + f"dt_proj_{k}.weight": (inner, rank), at + f"dt_proj_{k}.bias": (inner,)}
    return random_weights(shapes)


def rotary(x, h, w):
    """EVA's tables, written out: neighbouring channels are pairs; the first half knows rows, the second columns."""
    d = x.shape[1]
    speed = 10000 ** (-torch.arange(0, d // 2, 2, dtype=F64) / (d // 2))
    rows = torch.outer(torch.arange(h, dtype=F64) * 14 / h, speed).repeat_interleave(2, 1)
    columns = torch.outer(torch.arange(w, dtype=F64) * 14 / w, speed).repeat_interleave(2, 1)
    angle = torch.cat([rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)], -1).reshape(h * w, d)
    turned = torch.stack([-x[:, 1::2], x[:, ::2]], -1).reshape(x.shape)
    return x * angle.cos() + turned * angle.sin()


ROUTES = (
    ("raster", "column_reversed", "window7", "window7_reversed"),
    ("column", "window2", "window2_reversed", "raster"),
)
NAMES = (("h", "v_flip", "w7", "w7_flip"), ("v", "w2", "w2_flip", "h"))


@pytest.mark.parametrize("middle", [False, True])
@pytest.mark.parametrize("grid", [(2, 2), (4, 6)])
def test_local_vim_computes_what_upstream_computes(middle, grid):
    (h, w), d = grid, 16
    weights = vim_weights(d, h * w + middle, 2)
    model = LocalVim((16 * h, 16 * w), embed_dim=d, routes=ROUTES, class_token=middle, num_classes=5).double().eval()
    model.load_state_dict(checkpoint_filter_fn({"model": weights}, model))
    image = torch.randn(1, 3, 16 * h, 16 * w, dtype=F64, generator=torch.Generator().manual_seed(3))
    cells = rearrange(image[0], "c (i p) (j q) -> (i j) (c p q)", p=16, q=16)
    x = cells @ weights["patch_embed.proj.weight"].flatten(1).T + weights["patch_embed.proj.bias"]
    m = len(x) // 2
    if middle:
        x = torch.cat([x[:m], weights["cls_token"][0], x[m:]])
    x = x + weights["pos_embed"][0]
    for i, directions in enumerate(NAMES):
        own = {
            k.removeprefix(f"layers.{i}.mixer."): v for k, v in weights.items() if k.startswith(f"layers.{i}.mixer.")
        }
        x = x if middle else rotary(x, h, w)
        norm = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"layers.{i}.norm.weight"]
        x = x + vim_mixer(norm, own, directions, h, w, middle)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights["norm_f.weight"]
    logits = (x[m] if middle else x.mean(0)) @ weights["head.weight"].T + weights["head.bias"]
    with torch.no_grad():
        torch.testing.assert_close(model(image)[0], logits, rtol=1e-6, atol=1e-6)


def grid_mixer(x, w, directions, h, w_):
    """LocalVMamba's SS2D over one map's tokens (l, d)."""
    silu, inner = torch.nn.functional.silu, w["out_norm.weight"].shape[0]
    u, z = (x @ w["in_proj.weight"].T).chunk(2, -1)
    u = u.T.unflatten(1, (h, w_))[None]
    u = (
        silu(torch.nn.functional.conv2d(u, w["conv2d.weight"], w["conv2d.bias"], padding=1, groups=inner))[0]
        .flatten(1)
        .T
    )
    total = 0
    for k, direction in enumerate(directions):
        route = {f"x_proj_{k}.weight": w["x_proj_weight"][k], f"dt_proj_{k}.weight": w["dt_projs_weight"][k]}
        route |= {f"dt_proj_{k}.bias": w["dt_projs_bias"][k], f"A_log_{k}": w["A_logs"].unflatten(0, (4, -1))[k]}
        route[f"D_{k}"] = w["Ds"].unflatten(0, (4, -1))[k]
        attention = {n.replace("multi_scan.", ""): v for n, v in w.items() if n.startswith("multi_scan.")}
        total = total + select(back(s6(along(u, direction, h, w_), route, k), direction, h, w_), attention)
    y = layer_norm(total, w["out_norm.weight"], w["out_norm.bias"]) * silu(z)
    return y @ w["out_proj.weight"].T


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_local_vmamba_computes_what_upstream_computes(grid):
    """One stage of two blocks, on maps that windows divide and do not."""
    (h, w), d, inner, state = grid, 16, 32, 16
    shapes = {"patch_embed.0.weight": (d, 3, 4, 4), "patch_embed.0.bias": (d,), "patch_embed.2.weight": (d,)}
    shapes |= {"patch_embed.2.bias": (d,), "classifier.norm.weight": (d,), "classifier.norm.bias": (d,)}
    shapes |= {"classifier.head.weight": (5, d), "classifier.head.bias": (5,)}
    for i in range(2):
        at = f"layers.0.blocks.{i}.op."
        shapes |= {f"layers.0.blocks.{i}.norm.weight": (d,), f"layers.0.blocks.{i}.norm.bias": (d,)}
        shapes |= {at + "in_proj.weight": (2 * inner, d), at + "out_proj.weight": (d, inner)}
        shapes |= {at + "conv2d.weight": (inner, 1, 3, 3), at + "conv2d.bias": (inner,)}
        shapes |= {at + "out_norm.weight": (inner,), at + "out_norm.bias": (inner,)}
        shapes |= {at + "x_proj_weight": (4, 1 + 2 * state, inner), at + "dt_projs_weight": (4, inner, 1)}
        shapes |= {at + "dt_projs_bias": (4, inner), at + "A_logs": (4 * inner, state), at + "Ds": (4 * inner,)}
        at += "multi_scan.attn."
        shapes |= {at + "norm.weight": (inner,), at + "norm.bias": (inner,), at + "channel_select.bias": (inner,)}
        shapes |= {at + "global_reduce.weight": (inner // 8, inner), at + "global_reduce.bias": (inner // 8,)}
        shapes |= {at + "channel_select.weight": (inner, inner // 8)}
    weights = random_weights(shapes)
    model = LocalVMamba(ROUTES, depths=(2,), embed_dim=d, num_classes=5).double().eval()
    model.load_state_dict(checkpoint_filter_fn(weights, model))
    image = torch.randn(1, 3, 4 * h, 4 * w, dtype=F64, generator=torch.Generator().manual_seed(3))
    cells = rearrange(image[0], "c (i p) (j q) -> (i j) (c p q)", p=4, q=4)
    x = cells @ weights["patch_embed.0.weight"].flatten(1).T + weights["patch_embed.0.bias"]
    x = layer_norm(x, weights["patch_embed.2.weight"], weights["patch_embed.2.bias"])
    for i, directions in enumerate(NAMES):
        at = f"layers.0.blocks.{i}."
        own = {k.removeprefix(at + "op."): v for k, v in weights.items() if k.startswith(at + "op.")}
        x = x + grid_mixer(layer_norm(x, weights[at + "norm.weight"], weights[at + "norm.bias"]), own, directions, h, w)
    x = layer_norm(x, weights["classifier.norm.weight"], weights["classifier.norm.bias"]).mean(0)
    logits = x @ weights["classifier.head.weight"].T + weights["classifier.head.bias"]
    with torch.no_grad():
        torch.testing.assert_close(model(image)[0], logits, rtol=1e-6, atol=1e-6)


def test_rotation_is_by_place_and_keeps_lengths():
    x = torch.randn(2, 6, 8)
    y = rotate(x, 2, 3)
    torch.testing.assert_close(y[:, 0], x[:, 0])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    # A step to the right turns the second half of the channels only.
    torch.testing.assert_close(y[:, 1, :4], x[:, 1, :4])


def test_what_fills_no_patch_is_filled_up():
    model = LocalVim(64, embed_dim=16, routes=ROUTES, num_classes=5).eval()
    x = torch.randn(1, 3, 50, 33)
    with torch.no_grad():
        assert model.forward_features(x).shape == (1, 4 * 3, 16)
        torch.testing.assert_close(model(torch.nn.functional.pad(x, (0, 15, 0, 14))), model(x))
    assert LocalVim((50, 33), embed_dim=16, routes=ROUTES).pos_embed.shape[1] == 12


def test_another_mixer_in_every_block():
    model = vision.create_model("localvim_tiny", mixer={"name": "s5"}, num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 48, 32)).shape == (1, 3)
    with pytest.raises(ValueError, match="no grid"):
        vision.create_model("localvim_tiny_midcls", mixer="grid_mamba")
