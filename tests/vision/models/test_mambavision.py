"""MambaVision: counts, its mixer against a slow form, windows, and the names of published weights."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

import vision
from vision.models.blocks import TransformerBlock
from vision.models.mambavision import MambaVision, SplitMamba, WindowStage, checkpoint_filter_fn

COUNTS = {"tiny": 31.794, "tiny2": 35.104, "small": 50.141, "base": 97.685}
SMALL = {"depths": (1, 1, 3, 2), "embed_dim": 16, "stem_dim": 8, "num_heads": (2, 4), "num_classes": 5}


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts(size):
    model = vision.create_model(f"mambavision_{size}", device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == COUNTS[size]


@pytest.mark.parametrize(("name", "millions"), [("large", 227.9), ("large2", 241.5)])
def test_large_models_have_the_printed_size(name, millions):
    count = sum(p.numel() for p in vision.create_model(f"mambavision_{name}", device="meta").parameters())
    assert int(count / 1e5) / 10 == millions  # the source cuts, 227.961 and 241.555, where it does not round


def test_the_mixer_is_the_paper_s():
    torch.manual_seed(0)
    mixer = SplitMamba(8).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    u, z = mixer.in_proj(x).chunk(2, -1)
    padded = [F.pad(part, (0, 0, 1, 1)) for part in (u, z)]
    taps = [conv.weight[:, 0] for conv in (mixer.conv_x, mixer.conv_z)]
    u, z = (F.silu(sum(p[:, k : k + 5] * t[:, k] for k in range(3))) for p, t in zip(padded, taps, strict=True))
    scan, states, ys = mixer.scan, torch.zeros(2, 4, 8, dtype=torch.float64), []
    for t in range(5):
        low, B, C = scan.x_proj(u[:, t]).split([1, 8, 8], -1)
        dt = F.softplus(scan.dt_proj(low))
        states = (dt[..., None] * -scan.A_log.exp()).exp() * states + (dt * u[:, t])[..., None] * B[:, None]
        ys.append((states * C[:, None]).sum(-1) + scan.D * u[:, t])
    expected = mixer.out_proj(torch.cat([torch.stack(ys, 1), z], -1))
    torch.testing.assert_close(mixer(x)[0], expected)


def test_first_half_of_the_blocks_is_mamba():
    model = MambaVision(**SMALL)
    kinds = [[type(block.mixer.mixer).__name__ for block in stage.blocks] for stage in model.stages[2:]]
    assert kinds == [["SplitMamba", "SplitMamba", "Attention"], ["SplitMamba", "Attention"]]


def test_windows_do_not_meet_and_padding_stays_inside():
    torch.manual_seed(0)
    stage = WindowStage(torch.nn.Identity(), [TransformerBlock(SplitMamba(8), 0.0) for _ in range(2)], 2).eval()
    x = torch.randn(1, 3, 5, 8)
    with torch.no_grad():
        y = stage(x)
        assert y.shape == x.shape
        torch.testing.assert_close(stage(x[:, :2, :2]), y[:, :2, :2])
        moved = x.clone()
        moved[:, 2:] += 1
        torch.testing.assert_close(stage(moved)[:, :2], y[:, :2])
        # The map is filled up once, before the first block, and cut after the last.
        filled = F.pad(x, (0, 0, 0, 1, 0, 1))
        torch.testing.assert_close(stage(filled)[:, :3, :5], y)


def upstream_names(weights):
    """The weights of our model as upstream calls them, written by hand for each kind of parameter."""
    theirs = {}
    for name, value in weights.items():
        parts = name.split(".")
        if parts[0] == "patch_embed":
            place = {"conv1": "0", "norm1": "1", "conv2": "3", "norm2": "4"}[parts[1]]
            theirs[f"patch_embed.conv_down.{place}.{parts[2]}"] = value
        elif "downsample" in name:
            theirs[f"levels.{int(parts[1]) - 1}.downsample.reduction.0.weight"] = value
        elif parts[0] == "stages" and parts[1] in "01":
            theirs[f"levels.{parts[1]}.{'.'.join(parts[2:])}"] = value
        elif parts[0] == "stages":
            at, rest = f"levels.{parts[1]}.blocks.{parts[3]}.", ".".join(parts[4:])
            if rest.startswith("mixer.mixer.q_proj"):
                kind = rest.rsplit(".", 1)[1]
                other = [weights[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
                theirs[f"{at}mixer.qkv.{kind}"] = torch.cat(other)
                continue
            if rest.startswith(("mixer.mixer.k_proj", "mixer.mixer.v_proj")):
                continue
            attention = name.replace(rest, "mixer.mixer.q_proj.weight") in weights
            rest = rest.replace("mixer.mixer.out_proj", "mixer.proj" if attention else "mixer.out_proj")
            changes = {"mixer.mixer.scan.": "mixer.", "mixer.mixer.conv_": "mixer.conv1d_", "mixer.mixer.": "mixer."}
            changes |= {"mlp.mixer.in_proj": "mlp.fc1", "mlp.mixer.out_proj": "mlp.fc2", "mlp.norm": "norm2"}
            changes |= {"mixer.norm": "norm1", "mixer.gamma": "gamma_1", "mlp.gamma": "gamma_2"}
            for ours, upstream in changes.items():
                if rest.startswith(ours):
                    rest = upstream + rest.removeprefix(ours)
                    break
            theirs[at + rest] = value / 2 if rest == "mixer.dt_proj.bias" else value
        else:
            theirs[name.replace("norm.norm.", "norm.").replace("head.fc.", "head.")] = value
    return theirs


def test_published_names_find_their_places():
    model = MambaVision(**SMALL, layer_scale=1e-5).eval()
    theirs = upstream_names(model.state_dict())
    assert "levels.2.blocks.0.mixer.conv1d_x.weight" in theirs
    assert "levels.3.blocks.1.mixer.qkv.weight" in theirs
    mapped = checkpoint_filter_fn({"state_dict": theirs}, model)
    assert set(mapped) == set(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(mapped[name], value)


def s6(u, w):
    """The scan over (l, d), one token at a time; the bias of dt is added twice."""
    rank = w["dt_proj.weight"].shape[1]
    h, out = torch.zeros_like(w["A_log"]), []
    for token in u:
        low, B, C = (w["x_proj.weight"] @ token).split([rank, 8, 8])
        dt = F.softplus(w["dt_proj.weight"] @ low + 2 * w["dt_proj.bias"])[:, None]
        h = (-dt * w["A_log"].exp()).exp() * h + dt * token[:, None] * B
        out.append(h @ C + w["D"] * token)
    return torch.stack(out)


def mamba(x, w):
    u, z = (x @ w["in_proj.weight"].T).chunk(2, -1)
    padded = [F.pad(part, (0, 0, 1, 1)) for part in (u, z)]
    taps = [w[f"conv1d_{part}.weight"][:, 0] for part in "xz"]
    u, z = (F.silu(sum(p[k : k + len(x)] * t[:, k] for k in range(3))) for p, t in zip(padded, taps, strict=True))
    return torch.cat([s6(u, w), z], -1) @ w["out_proj.weight"].T


def attention(x, w, heads):
    q, k, v = rearrange(F.linear(x, w["qkv.weight"], w["qkv.bias"]), "l (p h d) -> p h l d", p=3, h=heads)
    shares = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return F.linear(rearrange(shares @ v, "h l d -> l (h d)"), w["proj.weight"], w["proj.bias"])


def window_block(x, w, heads):
    d = x.shape[-1]
    own = {k.removeprefix("mixer."): v for k, v in w.items() if k.startswith("mixer.")}
    y = F.layer_norm(x, (d,), w["norm1.weight"], w["norm1.bias"])
    x = x + w["gamma_1"] * (attention(y, own, heads) if "qkv.weight" in own else mamba(y, own))
    y = F.layer_norm(x, (d,), w["norm2.weight"], w["norm2.bias"])
    y = F.gelu(F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    return x + w["gamma_2"] * F.linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"])


def batch_norm(x, w, at, eps=1e-5):
    return F.batch_norm(x, w[f"{at}.running_mean"], w[f"{at}.running_var"], w[f"{at}.weight"], w[f"{at}.bias"], eps=eps)


def oracle(image, w, depths, windows, heads):
    """Upstream's network, under upstream's names, on one image (c, h, w)."""
    x = image[None]
    for place in (0, 3):
        x = F.conv2d(x, w[f"patch_embed.conv_down.{place}.weight"], stride=2, padding=1)
        x = F.relu(batch_norm(x, w, f"patch_embed.conv_down.{place + 1}", 1e-4))
    for s, depth in enumerate(depths):
        blocks = []
        for i in range(depth):
            at = f"levels.{s}.blocks.{i}."
            blocks.append({k.removeprefix(at): v for k, v in w.items() if k.startswith(at)})
        if s < 2:
            for b in blocks:
                y = batch_norm(F.conv2d(x, b["conv1.weight"], b["conv1.bias"], padding=1), b, "norm1")
                y = F.conv2d(F.gelu(y, approximate="tanh"), b["conv2.weight"], b["conv2.bias"], padding=1)
                x = x + batch_norm(y, b, "norm2")
        else:
            k, (height, width) = windows[s - 2], x.shape[2:]
            x = F.pad(x, (0, -width % k, 0, -height % k))
            rows = x.shape[2] // k
            parts = rearrange(x, "1 d (i p) (j q) -> (i j) (p q) d", p=k, q=k)
            for b in blocks:
                parts = torch.stack([window_block(part, b, heads[s - 2]) for part in parts])
            x = rearrange(parts, "(i j) (p q) d -> 1 d (i p) (j q)", i=rows, p=k)[..., :height, :width]
        if s < 3:
            x = F.conv2d(x, w[f"levels.{s}.downsample.reduction.0.weight"], stride=2, padding=1)
    return F.linear(batch_norm(x, w, "norm").mean((2, 3))[0], w["head.weight"], w["head.bias"])


@pytest.mark.parametrize("size", [(64, 64), (90, 70)])
def test_upstream_weights_compute_what_upstream_computes(size):
    """Windows of 3 and 2 on maps of 4 x 4 and 2 x 2, and of 6 x 5 and 3 x 3: some have to be filled up."""
    g = torch.Generator().manual_seed(0)
    model = MambaVision(**SMALL, layer_scale=0.5, windows=(3, 2)).double().eval()
    theirs = upstream_names(model.state_dict())
    for name, value in theirs.items():
        if value.is_floating_point():
            noise = 0.3 * torch.randn(value.shape, generator=g, dtype=torch.float64)
            theirs[name] = value + (noise.abs() if name.endswith("running_var") else noise)
    vision.load_checkpoint(model, {"state_dict": {f"module.{name}": value for name, value in theirs.items()}})
    image = torch.randn(3, *size, generator=g, dtype=torch.float64)
    expected = oracle(image, theirs, SMALL["depths"], (3, 2), SMALL["num_heads"])
    with torch.no_grad():
        torch.testing.assert_close(model(image[None])[0], expected, rtol=1e-8, atol=1e-8)


def test_another_mixer():
    model = MambaVision(**SMALL, mixer="mamba2").eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 40, 33)).shape == (1, 5)
