"""MambaVision: counts, its mixer against a slow form, windows, and the names of published weights."""

import pytest
import torch
import torch.nn.functional as F

import vision
from vision.models.mambavision import MambaVision, SplitMamba, WindowBlock, checkpoint_filter_fn

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
    block = WindowBlock(SplitMamba(8), 2, 0.0, None).eval()
    x = torch.randn(1, 3, 5, 8)
    with torch.no_grad():
        y = block(x)
        assert y.shape == x.shape
        torch.testing.assert_close(block(x[:, :2, :2]), y[:, :2, :2])
        moved = x.clone()
        moved[:, 2:] += 1
        torch.testing.assert_close(block(moved)[:, :2], y[:, :2])


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


def test_another_mixer():
    model = MambaVision(**SMALL, mixer="mamba2").eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 40, 33)).shape == (1, 5)
