"""PlainMamba against a slow oracle under upstream's names that walks the snakes cell by cell."""

import pytest
import torch
import torch.nn.functional as F

import vision
from ssmcore.orders import inverse
from vision.models.plainmamba import PlainMamba, SnakeMamba, snake_routes

COUNTS = {"plainmamba_l1": 7.552, "plainmamba_l2": 26.146, "plainmamba_l3": 50.956}
RIGHT, LEFT, UP, DOWN = 1, 2, 3, 4


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = vision.create_model(name, device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == COUNTS[name]


def walk(h, w, at, ahead, aside):
    """Cells of a snake and the moves into them: go ahead until the border, one aside, and back."""
    names = {(0, 1): RIGHT, (0, -1): LEFT, (-1, 0): UP, (1, 0): DOWN}
    cells, moves = [at], [0]
    while len(cells) < h * w:
        step = ahead
        if not (0 <= at[0] + step[0] < h and 0 <= at[1] + step[1] < w):
            step, ahead = aside, (-ahead[0], -ahead[1])
        at = (at[0] + step[0], at[1] + step[1])
        cells.append(at)
        moves.append(names[step])
    return cells, moves


def snakes(h, w):
    """The four routes as the paper describes them; the way back starts where the way there ends."""
    last_row = ((h - 1, w - 1), (0, -1)) if h % 2 else ((h - 1, 0), (0, 1))
    last_column = ((h - 1, w - 1), (-1, 0)) if w % 2 else ((0, w - 1), (1, 0))
    return [
        walk(h, w, (0, 0), (0, 1), (1, 0)),
        walk(h, w, *last_row, (-1, 0)),
        walk(h, w, (0, 0), (1, 0), (0, 1)),
        walk(h, w, *last_column, (0, -1)),
    ]


@pytest.mark.parametrize(("h", "w"), [(2, 2), (3, 4), (4, 3), (5, 5), (1, 4), (4, 1), (1, 1)])
def test_routes(h, w):
    orders, back, directions = snake_routes(h, w)
    for k, (cells, moves) in enumerate(snakes(h, w)):
        assert orders[k].tolist() == [i * w + j for i, j in cells]
        assert directions[k].tolist() == moves
        assert torch.equal(back[k], inverse(orders[k]))


def random_weights(d=8, depth=2, n=3, side=(3, 4), classes=5):
    """Random float64 weights under upstream's names, the first layer with its convolution."""
    inner, rank = 2 * d, 1
    shapes = {
        "backbone.pos_embed": (1, side[0] * side[1], d),
        "backbone.patch_embed.stem.0.weight": (64, 3, 7, 7),
        "backbone.patch_embed.convs.0.weight": (64, 64, 3, 3),
        "backbone.patch_embed.projection.weight": (d, 64, 8, 8),
        "backbone.patch_embed.projection.bias": (d,),
        "backbone.ln1.weight": (d,),
        "backbone.ln1.bias": (d,),
        "backbone.layers.0.dw.0.weight": (d, 1, 3, 3),
        "head.fc.weight": (classes, d),
        "head.fc.bias": (classes,),
    }
    for at, width in (("patch_embed.stem.1", 64), ("patch_embed.convs.1", 64), ("layers.0.dw.1", d)):
        shapes |= {f"backbone.{at}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")}
    for i in range(depth):
        at = f"backbone.layers.{i}."
        shapes |= {
            f"{at}norm.weight": (d,),
            f"{at}norm.bias": (d,),
            f"{at}mamba.A_log": (inner, n),
            f"{at}mamba.D": (inner,),
        }
        shapes |= {f"{at}mamba.in_proj.weight": (2 * inner, d), f"{at}mamba.in_proj.bias": (2 * inner,)}
        shapes |= {f"{at}mamba.out_proj.weight": (d, inner), f"{at}mamba.out_proj.bias": (d,)}
        shapes |= {f"{at}mamba.conv2d.weight": (inner, 1, 7, 7), f"{at}mamba.conv2d.bias": (inner,)}
        shapes |= {f"{at}mamba.x_proj.weight": (rank + 2 * n, inner), f"{at}mamba.direction_Bs": (5, n)}
        shapes |= {f"{at}mamba.dt_proj.weight": (inner, rank), f"{at}mamba.dt_proj.bias": (inner,)}
    generator = torch.Generator().manual_seed(0)
    made = {k: 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64) for k, shape in shapes.items()}
    counts = {
        k.replace("running_var", "num_batches_tracked"): torch.tensor(1) for k in made if k.endswith("running_var")
    }
    return {k: v.abs() + 0.5 if k.endswith("running_var") else v for k, v in made.items()} | counts


def oracle_mixer(x, w):
    """A map (h, w, d), one route and one token after another; dt, B and C are those of row-major step t."""
    height, width, _ = x.shape
    n = w["A_log"].shape[1]
    u, z = F.linear(x, w["in_proj.weight"], w["in_proj.bias"]).chunk(2, -1)
    conv = F.conv2d(u.permute(2, 0, 1)[None], w["conv2d.weight"], w["conv2d.bias"], padding=3, groups=u.shape[-1])
    u = F.silu(conv[0].permute(1, 2, 0))
    flat = u.flatten(0, 1)
    total = torch.zeros_like(u)
    for cells, moves in snakes(height, width):
        h = torch.zeros_like(w["A_log"])
        for t, ((i, j), move) in enumerate(zip(cells, moves, strict=True)):
            low, B, C = (w["x_proj.weight"] @ flat[t]).split([1, n, n])
            dt = F.softplus(w["dt_proj.weight"] @ low + w["dt_proj.bias"] + w["dt_proj.bias"])[:, None]
            h = (-dt * w["A_log"].exp()).exp() * h + dt * (B + w["direction_Bs"][move]) * u[i, j][:, None]
            total[i, j] += h @ C + w["D"] * u[i, j]
    return F.linear(total * F.silu(z), w["out_proj.weight"], w["out_proj.bias"])


def batch_norm(x, w, at):
    at = f"backbone.{at}."
    return F.batch_norm(x, w[f"{at}running_mean"], w[f"{at}running_var"], w[f"{at}weight"], w[f"{at}bias"])


def oracle(image, w, depth=2):
    d = w["backbone.ln1.weight"].shape[0]
    x = F.conv2d(image[None], w["backbone.patch_embed.stem.0.weight"], stride=2, padding=3)
    x = F.relu(batch_norm(x, w, "patch_embed.stem.1"))
    x = F.relu(batch_norm(F.conv2d(x, w["backbone.patch_embed.convs.0.weight"], padding=1), w, "patch_embed.convs.1"))
    at = "backbone.patch_embed.projection"
    x = F.conv2d(x, w[f"{at}.weight"], w[f"{at}.bias"], stride=8)[0].permute(1, 2, 0)
    x = x + w["backbone.pos_embed"].view_as(x)
    for i in range(depth):
        at = f"backbone.layers.{i}."
        mixer = {k.removeprefix(f"{at}mamba."): v for k, v in w.items() if k.startswith(f"{at}mamba.")}
        x = x + oracle_mixer(F.layer_norm(x, (d,), w[f"{at}norm.weight"], w[f"{at}norm.bias"]), mixer)
        if i == 0:
            local = F.conv2d(x.permute(2, 0, 1)[None], w[f"{at}dw.0.weight"], padding=1, groups=d)
            x = F.gelu(batch_norm(local, w, "layers.0.dw.1"))[0].permute(1, 2, 0)
    x = F.layer_norm(x, (d,), w["backbone.ln1.weight"], w["backbone.ln1.bias"], eps=1e-6)
    return w["head.fc.weight"] @ x.mean((0, 1)) + w["head.fc.bias"]


def small(**options):
    sizes = {"img_size": (48, 64), "embed_dim": 8, "depth": 2, "num_classes": 5, "stem_convs": 1, "local_first": True}
    return PlainMamba(**{**sizes, **options}).eval()


def with_state(n):
    return lambda d: SnakeMamba(d, SnakeMamba.Config(d_state=n))


def test_upstream_weights_compute_what_upstream_computes():
    weights = random_weights()
    model = small(mixer=with_state(3)).double()
    vision.load_checkpoint(model, {"state_dict": weights, "meta": {"epoch": 300}})
    image = torch.randn(3, 48, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(image[None])[0], oracle(image, weights), rtol=1e-9, atol=1e-10)


def test_our_own_names_pass_through():
    source = small()
    again = vision.load_checkpoint(small(), source.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_checkpoint_of_another_resolution():
    model = small(mixer=with_state(3), img_size=64)
    weights = random_weights(side=(2, 2))
    vision.load_checkpoint(model.double(), weights)
    assert model.pos_embed.shape == (1, 16, 8)


@pytest.mark.parametrize("mixer", ["mamba", {"name": "s5", "d_state": 4}, "attention"])
def test_any_mixer_can_stand_in_for_the_ssm(mixer):
    model = small(mixer=mixer)
    y = model(torch.randn(2, 3, 32, 48))
    y.sum().backward()
    assert y.shape == (2, 5)
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="output_fmt"):
        small().forward_intermediates(torch.randn(1, 3, 48, 64), output_fmt="NHWC")
    with pytest.raises(ValueError, match="grid"):
        SnakeMamba(8)(torch.randn(1, 12, 8))
