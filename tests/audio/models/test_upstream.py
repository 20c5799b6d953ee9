"""Weights by upstream's names: against a forward pass written here from the SaShiMi paper, with those names."""

import pytest
import torch
import torch.nn.functional as F

from audio import AudioError, load_upstream
from audio.models import upstream
from audio.models.upstream import checkpoint_filter_fn
from ssmcore import create_mixer
from ssmcore.mixer import Context

H, N, L, P = 8, 4, 64, 4
"""Channels, complex poles, samples, pooling factor; one pool."""


def upstream_weights(kind, unet, n_ssm=None, prefix="", glu=True):
    """Random weights with the names and shapes of the standalone backbone of release 4."""
    torch.manual_seed(0)
    w = {}

    def residual(name, d, core):
        w[f"{name}.norm.weight"], w[f"{name}.norm.bias"] = 1 + 0.2 * torch.randn(d), 0.2 * torch.randn(d)
        if not core:
            w[f"{name}.layer.ff.0.0.weight"], w[f"{name}.layer.ff.0.0.bias"] = (
                torch.randn(2 * d, d, 1) / d**0.5,
                torch.randn(2 * d),
            )
            w[f"{name}.layer.ff.2.weight"], w[f"{name}.layer.ff.2.bias"] = (
                torch.randn(d, 2 * d, 1) / d**0.5,
                torch.randn(d),
            )
            return
        s, k = n_ssm or d, f"{name}.layer.layer.kernel."
        w[f"{name}.layer.layer.D"] = torch.randn(1, d)
        w[k + "inv_dt"] = torch.rand(d, 1) * 2 - 4
        w[k + "A_real"], w[k + "A_imag"] = torch.rand(s, N) - 1.5, torch.rand(s, N) * 6
        w[k + "B"], w[k + "C"] = torch.randn(1, s, N, 2), torch.randn(1, d, N, 2)
        if kind == "s4":
            w[k + "P"], w[k + "l_kernel"] = torch.randn(1, s, N, 2), torch.tensor(0)
        rows = 2 * d if glu else d
        w[f"{name}.layer.output_linear.0.weight"], w[f"{name}.layer.output_linear.0.bias"] = (
            torch.randn(rows, d) / d**0.5,
            torch.randn(rows),
        )

    def linear(name, n, k):
        w[f"{name}.linear.weight"], w[f"{name}.linear.bias"] = torch.randn(n, k, 1) / k**0.5, torch.randn(n)

    down = 0
    if unet:
        residual("d_layers.0", H, True), residual("d_layers.1", H, False)
        down = 2
    linear(f"d_layers.{down}", 2 * H, H * P)
    residual("c_layers.0", 2 * H, True), residual("c_layers.1", 2 * H, False)
    linear("u_layers.0.0", H * P, 2 * H)
    residual("u_layers.0.1", H, True), residual("u_layers.0.2", H, False)
    w["norm.weight"], w["norm.bias"] = torch.randn(H), torch.randn(H)
    return {prefix + name: t for name, t in w.items()}


def upstream_forward(w, x, kind, unet, steps="exp"):
    """SaShiMi's equations on x (b, l, h), in float64 and without a fast algorithm."""
    w = {name: t.double() for name, t in w.items()}

    def core(name, u):
        k = {n.rpartition(".")[2]: t for n, t in w.items() if n.startswith(f"{name}.layer.layer.kernel.")}
        d = u.shape[-1]
        dt = k["inv_dt"].exp() if steps == "exp" else F.softplus(k["inv_dt"])
        A = (-k["A_real"].exp() - 1j * k["A_imag"]).expand(d, -1)
        B, C = torch.view_as_complex(k["B"])[0].expand(d, -1), torch.view_as_complex(k["C"])[0]
        if kind == "s4d":
            a, b = (dt * A).exp(), ((dt * A).exp() - 1) / A * B
            taps = torch.stack([2 * (C * b * a**t).sum(-1).real for t in range(u.shape[1])], -1)
        else:  # both poles of each pair, one dense matrix a channel, bilinear
            p = torch.view_as_complex(k["P"])[0].expand(d, -1)
            A, B, C, p = (torch.cat([t, t.conj()], -1) for t in (A, B, C, p))
            dense = torch.diag_embed(A) - p[..., None] * p.conj()[:, None]
            eye, half = torch.eye(2 * N), dt[..., None] / 2
            inverse = torch.linalg.inv(eye - half * dense)
            a, b = inverse @ (eye + half * dense), (inverse @ (2 * half * B[..., None]))[..., 0]
            taps, h = [], b
            for _ in range(u.shape[1]):
                taps.append((C * h).sum(-1).real)
                h = (a @ h[..., None])[..., 0]
            taps = torch.stack(taps, -1)
        y = torch.stack([(taps[:, : t + 1].flip(-1) * u[:, : t + 1].mT).sum(-1) for t in range(u.shape[1])], 1)
        y = F.gelu(y + w[f"{name}.layer.layer.D"] * u)
        y = F.linear(y, w[f"{name}.layer.output_linear.0.weight"], w[f"{name}.layer.output_linear.0.bias"])
        return F.glu(y, -1) if y.shape[-1] > d else y

    def block(name, x):
        u = F.layer_norm(x, x.shape[-1:], w[f"{name}.norm.weight"], w[f"{name}.norm.bias"])
        if f"{name}.layer.ff.2.weight" not in w:
            return x + core(name, u)
        u = F.gelu(F.linear(u, w[f"{name}.layer.ff.0.0.weight"][..., 0], w[f"{name}.layer.ff.0.0.bias"]))
        return x + F.linear(u, w[f"{name}.layer.ff.2.weight"][..., 0], w[f"{name}.layer.ff.2.bias"])

    seen = [x]
    for i in range(2 if unet else 0):
        seen.append(x := block(f"d_layers.{i}", x))
    pool = f"d_layers.{2 if unet else 0}.linear."
    groups = x.unflatten(1, (-1, P)).transpose(2, 3).flatten(2)
    c = skip = F.linear(groups, w[pool + "weight"][..., 0], w[pool + "bias"])
    for i in range(2):
        c = block(f"c_layers.{i}", c)
    u = F.linear(c + skip, w["u_layers.0.0.linear.weight"][..., 0], w["u_layers.0.0.linear.bias"])
    u = F.pad(u, (0, 0, 1, 0))[:, :-1].unflatten(2, (-1, P)).transpose(2, 3).flatten(1, 2)
    u = merged = u + seen.pop()
    for i in (1, 2):
        u = block(f"u_layers.0.{i}", u)
        u = u + seen.pop() if unet else u
    return F.layer_norm(u if unet else u + merged, (H,), w["norm.weight"], w["norm.bias"])


@pytest.mark.parametrize("kind", ["s4", "s4d"])
@pytest.mark.parametrize("unet", [False, True])
@pytest.mark.parametrize("n_ssm", [1, None])
@torch.no_grad()
def test_the_backbone_computes_what_upstream_computes(kind, unet, n_ssm):
    weights = upstream_weights(kind, unet, n_ssm)
    model = load_upstream(weights).double()
    x = torch.randn(2, L, H, dtype=torch.float64)
    want = upstream_forward(weights, x, kind, unet)
    got, _ = model.backbone(x, None, Context(), [])
    torch.testing.assert_close(model.norm(got), want, rtol=0, atol=1e-5)
    assert model.config.form == ("unet" if unet else "decoder")
    assert model.config.mixers[kind]["systems"] == n_ssm


@torch.no_grad()
def test_the_training_codes_language_model():
    """Its wrapping names, pools with weight norm, norms of two numbers, and steps through softplus."""
    weights = upstream_weights("s4d", False, 1, prefix="model.")
    for name in [
        n for n in weights if n.endswith("linear.weight") and "layers" in n and "output" not in n and "ff" not in n
    ]:
        v = weights.pop(name)
        weights[f"{name}_v"], weights[f"{name}_g"] = 3 * v, v.flatten(1).norm(dim=1).view(-1, 1, 1)
    plain = upstream_weights("s4d", False, 1)
    for name in [n for n in weights if ".norm.weight" in n and "layers" in n]:
        stem = name.removesuffix("weight")
        del weights[name], weights[stem + "bias"]
        weights[f"{stem}norm.m"], weights[f"{stem}norm.s"] = torch.zeros(1), torch.full((1,), 1.3)
        plain[stem.removeprefix("model.") + "weight"] = torch.full_like(
            plain[stem.removeprefix("model.") + "weight"], 1.3
        )
        plain[stem.removeprefix("model.") + "bias"].zero_()
    weights |= {"encoder.0.weight": torch.randn(256, H), "decoder.0.output_transform.weight": torch.randn(256, H)}
    weights["decoder.0.output_transform.bias"] = torch.randn(256)
    model = load_upstream({"state_dict": weights, "epoch": 3}, steps="softplus")
    tokens = torch.randint(256, (2, L))
    x = weights["encoder.0.weight"].double()[tokens]
    want = F.linear(
        upstream_forward(plain, x, "s4d", False, "softplus"),
        weights["decoder.0.output_transform.weight"].double(),
        weights["decoder.0.output_transform.bias"].double(),
    )
    # torch's layer norm adds 1e-5 to the variance, the norm of two numbers does not.
    torch.testing.assert_close(model(tokens)[0].double(), want, rtol=0, atol=1e-3)


@torch.no_grad()
def test_the_training_codes_unet_has_its_layers_in_one_row():
    weights = upstream_weights("s4d", True)
    flat = {name.replace("u_layers.0.", "u_layers."): t for name, t in weights.items()}
    assert flat.keys() != weights.keys()
    x = torch.randn(1, L, H)
    want, got = (load_upstream(w).backbone(x, None, Context(), [])[0] for w in (weights, flat))
    assert torch.equal(got, want)


def test_two_pools_on_the_way_up_are_told_apart():
    names = ["u_layers.0.linear.weight", "u_layers.1.norm.weight", "u_layers.2.norm.weight", "u_layers.3.linear.weight"]
    names += ["u_layers.4.norm.weight", "u_layers.5.norm.weight"]
    nested = upstream._nested({name: torch.zeros(1) for name in names})
    assert [name[9:12] for name in nested] == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]


def test_a_shift_in_a_norm_of_two_numbers():
    from ssmcore.blocks import NORMS

    norm = NORMS["scalar"](6)
    with torch.no_grad():
        norm.shift.fill_(0.3), norm.scale.fill_(2.0)
    x = torch.randn(4, 6)
    want = 2 * (x - x.mean(-1, keepdim=True) + 0.3) / x.std(-1, keepdim=True, correction=0)
    torch.testing.assert_close(norm(x), want, rtol=0, atol=1e-5)


def test_a_file_loads_as_its_content_does(tmp_path):
    weights = upstream_weights("s4d", True)
    torch.save(weights, tmp_path / "model.pt")
    one, other = load_upstream(weights).state_dict(), load_upstream(tmp_path / "model.pt").state_dict()
    backbone = [name for name in one if name.startswith("backbone.")]
    assert len(backbone) > 20
    assert all(torch.equal(one[name], other[name]) for name in backbone)


def test_own_weights_pass_through():
    model = load_upstream(upstream_weights("s4d", True))
    own = model.state_dict()
    assert checkpoint_filter_fn(own, model).keys() == own.keys()


def test_what_is_no_sashimi_is_refused(tmp_path):
    with pytest.raises(AudioError, match="no u_layers"):
        load_upstream(create_mixer("s4d", 4).state_dict())
    with pytest.raises(AudioError, match="no such file"):
        load_upstream(tmp_path / "absent.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(AudioError, match="cannot be read"):
        load_upstream(tmp_path / "noise.pt")
    weights = upstream_weights("s4d", False)
    del weights["u_layers.0.1.layer.layer.kernel.B"]
    with pytest.raises(AudioError, match="without B"):
        load_upstream(weights)


def test_pools_and_expansion_are_read_off_the_maps():
    w = upstream_weights("s4d", False)
    del w["u_layers.0.0.linear.weight"], w["u_layers.0.0.linear.bias"]
    w["u_layers.0.0.linear.weight"] = torch.zeros(4 * H * 3, 16 * H, 1)  # the inner pool: 3, from 16 H to 4 H channels
    w["u_layers.1.0.linear.weight"] = torch.zeros(H * 2, 4 * H, 1)
    config = upstream.upstream_config(w)
    assert (config.d_model, config.pool, config.expand) == (H, (2, 3), 4)


def test_forms_that_would_lose_weights_are_refused():
    for name, tensor, text in (
        ("c_layers.0.layer.output_gate.weight", torch.zeros(2, 2), "gated blocks"),
        ("c_layers.0.layer.layer.kernel.C", torch.randn(2, 2 * H, N, 2), "2 read-outs"),
    ):
        with pytest.raises(AudioError, match=text):
            load_upstream({**upstream_weights("s4d", False), name: tensor})
