"""Vim against a slow oracle that knows upstream's names only; its class token, positions and directions."""

import math

import numpy as np
import pytest
import torch

import vision
from ssmcore import create_mixer
from vision.models.tokens import join_middle, resample_positions, split_middle
from vision.models.vim import Vim, checkpoint_filter_fn

COUNTS = {  # millions, to the digit that is printed in the reference table
    "vim_tiny_patch16_224": 7.148,
    "vim_tiny_patch16_stride8_224": 7.250,
    "vim_small_patch16_224": 25.797,
    "vim_base_patch16_224": 97.598,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = vision.create_model(name, device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == COUNTS[name]


# The oracle: numpy, one token at a time, float64, written from the paper's Algorithm 1 and upstream's key names.


def silu(x):
    return x / (1 + np.exp(-x))


def rms(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def one_direction(tokens, w, suffix, pole):
    """A gated S6 pass over tokens (l, 2 d) that are already projected, first to last."""
    inner = tokens.shape[1] // 2
    x, z = tokens[:, :inner], tokens[:, inner:]
    taps, bias = w[f"conv1d{suffix}.weight"][:, 0], w[f"conv1d{suffix}.bias"]
    rank = w[f"dt_proj{suffix}.weight"].shape[1]
    A = -np.exp(w[pole])
    h, out = np.zeros_like(A), []
    for t in range(len(x)):
        window = [x[s] if s >= 0 else 0 * x[0] for s in range(t - taps.shape[1] + 1, t + 1)]
        u = silu(bias + sum(taps[:, k] * value for k, value in enumerate(window)))
        projected = w[f"x_proj{suffix}.weight"] @ u
        low, B, C = projected[:rank], projected[rank : rank + A.shape[1]], projected[rank + A.shape[1] :]
        dt = np.log1p(np.exp(w[f"dt_proj{suffix}.weight"] @ low + w[f"dt_proj{suffix}.bias"]))
        h = np.exp(dt[:, None] * A) * h + dt[:, None] * B * u[:, None]
        out.append((h @ C + w[f"D{suffix}"] * u) * silu(z[t]))
    return np.array(out)


def oracle_block(x, w):
    xz = x @ w["in_proj.weight"].T
    ahead = one_direction(xz, w, "", "A_log")
    back = one_direction(xz[::-1], w, "_b", "A_b_log")[::-1]
    return (ahead + back) / 2 @ w["out_proj.weight"].T


def oracle_model(image, w, depth, patch, stride):
    c, height, width = image.shape
    kernel = w["patch_embed.proj.weight"].reshape(-1, c * patch * patch)
    cells = [
        kernel @ image[:, i : i + patch, j : j + patch].ravel() + w["patch_embed.proj.bias"]
        for i in range(0, height - patch + 1, stride)
        for j in range(0, width - patch + 1, stride)
    ]
    m = len(cells) // 2
    stream = np.array([*cells[:m], w["cls_token"][0, 0], *cells[m:]]) + w["pos_embed"][0]
    for i in range(depth):
        block = {k.removeprefix(f"layers.{i}.mixer."): v for k, v in w.items() if k.startswith(f"layers.{i}.mixer.")}
        stream = stream + oracle_block(rms(stream, w[f"layers.{i}.norm.weight"]), block)
    return rms(stream[m], w["norm_f.weight"]) @ w["head.weight"].T + w["head.bias"]


def upstream_weights(d=16, depth=2, tokens=13, patch=4, classes=5, n=16, seed=0):
    """Random weights under the names that upstream's VisionMamba has."""
    rng, inner, rank = np.random.default_rng(seed), 2 * d, math.ceil(d / 16)
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, tokens, d),
        "patch_embed.proj.weight": (d, 3, patch, patch),
        "patch_embed.proj.bias": (d,),
        "norm_f.weight": (d,),
        "head.weight": (classes, d),
        "head.bias": (classes,),
    }
    for i in range(depth):
        at = f"layers.{i}.mixer."
        shapes |= {
            f"layers.{i}.norm.weight": (d,),
            f"{at}in_proj.weight": (2 * inner, d),
            f"{at}out_proj.weight": (d, inner),
        }
        for suffix, pole in (("", "A_log"), ("_b", "A_b_log")):
            shapes |= {
                f"{at}conv1d{suffix}.weight": (inner, 1, 4),
                f"{at}conv1d{suffix}.bias": (inner,),
                f"{at}x_proj{suffix}.weight": (rank + 2 * n, inner),
                f"{at}dt_proj{suffix}.weight": (inner, rank),
                f"{at}dt_proj{suffix}.bias": (inner,),
                f"{at}{pole}": (inner, n),
                f"{at}D{suffix}": (inner,),
            }
    return {name: rng.normal(size=shape) * 0.3 for name, shape in shapes.items()}


def as_tensors(weights):
    return {name: torch.from_numpy(value) for name, value in weights.items()}


SIZE = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5}


@pytest.mark.parametrize(("img_size", "stride", "tokens"), [((12, 16), 4, 13), ((12, 12), 2, 26)])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_upstream_weights_compute_what_upstream_computes(img_size, stride, tokens, prefix):
    weights = upstream_weights(tokens=tokens)
    model = Vim(img_size=img_size, stride=stride, dtype=torch.float64, **SIZE).eval()
    saved = {"model": {prefix + name: value for name, value in as_tensors(weights).items()}, "epoch": 300}
    assert vision.load_checkpoint(model, saved) is model
    image = np.random.default_rng(1).normal(size=(3, *img_size))
    with torch.no_grad():
        y = model(torch.from_numpy(image)[None])[0]
    np.testing.assert_allclose(y.numpy(), oracle_model(image, weights, 2, 4, stride), rtol=1e-9, atol=1e-10)


def test_checkpoint_round_trip(tmp_path):
    model = Vim(img_size=(12, 16), dtype=torch.float64, **SIZE)
    vision.load_checkpoint(model, as_tensors(upstream_weights()))
    torch.save({"model": model.state_dict(), "args": None}, tmp_path / "ours.pth")
    again = vision.load_checkpoint(Vim(img_size=(12, 16), dtype=torch.float64, **SIZE), tmp_path / "ours.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_checkpoint_of_another_resolution_keeps_the_class_token():
    weights = as_tensors(upstream_weights(tokens=17))
    model = Vim(img_size=(24, 12), dtype=torch.float64, **SIZE)
    mapped = checkpoint_filter_fn(weights, model)["pos_embed"]
    assert mapped.shape == (1, 6 * 3 + 1, 16)
    torch.testing.assert_close(mapped[:, 9], weights["pos_embed"][:, 8])


# Positions and the class token


def test_the_class_token_is_in_the_middle():
    model, x = Vim(img_size=12, **SIZE).eval(), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        patches = model.patch_embed(x).flatten(1, 2)
        tokens = model._embed(model.patch_embed(x))
        torch.testing.assert_close(tokens[:, 4], (model.cls_token + model.pos_embed[:, 4])[0].expand(2, -1))
        torch.testing.assert_close(tokens[:, 5:], patches[:, 4:] + model.pos_embed[:, 5:])
        model.head = torch.nn.Identity()
        torch.testing.assert_close(model(x), model.forward_features(x)[:, 4])


@pytest.mark.parametrize("patches", [1, 2, 8, 9])
def test_split_undoes_join(patches):
    x, token = torch.randn(2, patches, 3), torch.randn(1, 1, 3)
    rest, middle = split_middle(join_middle(x, token))
    torch.testing.assert_close(rest, x)
    torch.testing.assert_close(middle, token.expand(2, -1, -1))


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((4, 4), (3, 7)), ((3, 5), (5, 3)), ((14, 14), (48, 48))])
def test_positions_are_resampled_around_the_class_token(old, new):
    """A field that is linear in the row and the column stays so inside; the class token's vector is not touched."""
    rows, columns = torch.meshgrid(torch.arange(old[0]) + 0.5, torch.arange(old[1]) + 0.5, indexing="ij")
    field = torch.stack([rows / old[0], columns / old[1]], -1).view(1, -1, 2)
    token = torch.tensor([[[50.0, -50.0]]])
    got, middle = split_middle(resample_positions(join_middle(field, token), old, new))
    assert torch.equal(middle, token)
    assert got.abs().max() < 1.2  # nothing of the token has leaked into a patch
    inside = got.view(*new, 2)[new[0] // 2, new[1] // 2]
    want = torch.tensor([(new[0] // 2 + 0.5) / new[0], (new[1] // 2 + 0.5) / new[1]])
    torch.testing.assert_close(inside, want, atol=0.02, rtol=0)


def test_unchanged_grids_keep_their_positions():
    positions = torch.randn(1, 13, 4)
    assert resample_positions(positions, (3, 4), (3, 4)) is positions
    with pytest.raises(ValueError, match="3 \\* 3 tokens"):
        resample_positions(positions, (3, 3), (3, 4))


def test_input_size_can_be_made_the_model_s_own():
    model, x = Vim(img_size=12, **SIZE).eval(), torch.randn(1, 3, 24, 16)
    with torch.no_grad():
        before = model(x)
        model.set_input_size((24, 16))
        assert model.pos_embed.shape == (1, 25, 16)
        torch.testing.assert_close(model(x), before)


# Directions


def test_exchanged_directions_are_a_flipped_sequence():
    mixer, x = create_mixer_of(16), torch.randn(2, 9, 16)
    with torch.no_grad():
        want = mixer(x.flip(1))[0].flip(1)
        mixer.convs = torch.nn.ModuleList([mixer.convs[1], mixer.convs[0]])
        mixer.scans = torch.nn.ModuleList([mixer.scans[1], mixer.scans[0]])
        torch.testing.assert_close(mixer(x)[0], want)


def create_mixer_of(d):
    return Vim(embed_dim=d, depth=1, img_size=16).blocks[0].mixer


@pytest.mark.parametrize("mixer", ["mamba", "s5", {"name": "s4d", "d_state": 4}, "gru", "attention"])
def test_any_mixer_can_stand_in_for_the_ssm(mixer):
    model = vision.create_model("vim_tiny_patch16_224", depth=2, embed_dim=32, num_classes=4, mixer=mixer)
    y = model(torch.randn(2, 3, 32, 48))
    y.sum().backward()
    assert y.shape == (2, 4)
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    # Every token may influence the class token: the last patch does.
    x = torch.randn(1, 3, 32, 48, requires_grad=True)
    model.eval()(x).sum().backward()
    assert x.grad[..., -16:, -16:].abs().max() > 0
    assert x.grad[..., :16, :16].abs().max() > 0


def test_a_function_may_make_the_mixer():
    model = Vim(mixer=lambda d: create_mixer("lru", d), **SIZE)
    assert type(model.blocks[0].mixer).__name__ == "Bidirectional"


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="global_pool='max'"):
        Vim(global_pool="max", **SIZE)
    with pytest.raises(ValueError, match="are no grid"):
        Vim(mixer="scan_order", **SIZE)
    with pytest.raises(ValueError, match="unknown mixer"):
        Vim(mixer="mambo", **SIZE)
    with pytest.raises(ValueError, match="output_fmt"):
        Vim(**SIZE).forward_intermediates(torch.randn(1, 3, 16, 16), output_fmt="NHWC")


# Narrow types


def small():
    return Vim(img_size=32, patch_size=8, embed_dim=16, depth=2, num_classes=5).eval()


def test_stream_stays_float32_in_a_bfloat16_model():
    model = small().to(torch.bfloat16)
    seen = []
    model.blocks[1].norm.register_forward_pre_hook(lambda module, given: seen.append(given[0].dtype))
    y = model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))
    assert seen == [torch.float32]
    assert y.dtype == torch.bfloat16
