"""S-Mamba, TimeMachine and SiMBA against their equations, written out step by step beside them."""

import math

import pytest
import torch
import torch.nn.functional as F

from timeseries.config import SimbaConfig, SMambaConfig, TimeMachineConfig
from timeseries.models.window import Sizes
from timeseries.models.window_encoder import WindowEncoder, start_at_zero
from timeseries.models.window_forecaster import MIXERS, build_network

L, H, C = 24, 6, 3
CONFIGS = {
    "s_mamba": SMambaConfig(d_model=16, d_ff=12),
    "time_machine": TimeMachineConfig(n1=10, n2=7),
    "together": TimeMachineConfig(n1=10, n2=7, channels="together"),
    "simba": SimbaConfig(d_model=16, patch_length=8, stride=4, blocks=2),
}


def build(name, width=1, inputs=0, **options):
    torch.manual_seed(0)
    mixer = MIXERS["time_machine" if name == "together" else name]
    small = {**mixer, "d_state": min(mixer["d_state"], 4)}
    return build_network(CONFIGS[name], Sizes(prediction_length=H, inputs=inputs), width, small, L, **options).eval()


def instance(past):
    mean, scale = past.mean(-1, keepdim=True), past.std(-1, keepdim=True, unbiased=False)
    return (past - mean) / scale, mean, scale


def mamba(block, x):
    """Mamba's equations, token by token, from the block's parameters."""
    u, z = (x @ block.in_proj.weight.T).chunk(2, -1)
    kernel, bias = block.conv1d.weight, block.conv1d.bias
    padded = F.pad(u.mT, (kernel.shape[-1] - 1, 0))
    u = F.silu(F.conv1d(padded, kernel, bias, groups=u.shape[-1]).mT)
    n = block.A_log.shape[1]
    rank, B, C = (u @ block.x_proj.weight.T).split([block.dt_proj.weight.shape[1], n, n], -1)
    dt = F.softplus(rank @ block.dt_proj.weight.T + block.dt_proj.bias)
    A, h, rows = -block.A_log.exp(), torch.zeros(len(x), u.shape[-1], n), []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t, None] * u[:, t, :, None]
        rows.append((h * C[:, t, None]).sum(-1) + block.D * u[:, t])
    return (torch.stack(rows, 1) * F.silu(z)) @ block.out_proj.weight.T


def test_s_mamba_is_its_equations():
    model, past = build("s_mamba"), 3 + 5 * torch.randn(4, C, L)
    x, mean, scale = instance(past)
    e = F.linear(x, model.enc_embedding["value_embedding"].weight, model.enc_embedding["value_embedding"].bias)
    for layer in model.encoder["attn_layers"]:
        e = layer.norm1(e + mamba(layer.attention, e) + mamba(layer.attention_r, e.flip(1)).flip(1))
        inner = F.gelu(e @ layer.conv1.weight[..., 0].T + layer.conv1.bias)
        e = layer.norm2(e + inner @ layer.conv2.weight[..., 0].T + layer.conv2.bias)
    expected = mean + scale * model.projector(model.encoder["norm"](e))
    torch.testing.assert_close(model(past), expected, rtol=1e-4, atol=1e-4)


def test_s_mamba_has_the_published_names():
    names = set(build("s_mamba").state_dict())
    assert "enc_embedding.value_embedding.weight" in names
    assert "encoder.attn_layers.1.attention_r.A_log" in names
    assert {"encoder.attn_layers.0.conv1.weight", "encoder.attn_layers.0.norm2.bias"} <= names
    assert {"encoder.norm.weight", "projector.weight", "projector.bias"} <= names


@pytest.mark.parametrize("affine", [False, True])
def test_time_machine_is_its_equations(affine):
    torch.manual_seed(0)
    model = build("time_machine")
    if affine:
        from timeseries.models.time_machine import TimeMachine

        sizes = Sizes(prediction_length=H)
        mixer = {**MIXERS["time_machine"], "d_state": 4}
        model = TimeMachine(sizes, 1, mixer, L, CONFIGS["time_machine"], channels=C).eval()
        torch.nn.init.normal_(model.revin_layer.affine_bias)
        torch.nn.init.uniform_(model.revin_layer.affine_weight, 0.5, 2)
    past = 3 + 5 * torch.randn(4, C, L)
    x, mean, scale = instance(past)
    gain = model.revin_layer.affine_weight[:, None] if affine else 1.0
    shift = model.revin_layer.affine_bias[:, None] if affine else 0.0
    x = (x * gain + shift).reshape(4 * C, 1, L)
    u1 = model.lin1(x)
    outer = mamba(model.mamba3, u1) + mamba(model.mamba4, u1.mT).mT
    u2 = model.lin2(u1)
    inner = mamba(model.mamba2, u2) + mamba(model.mamba1, u2.mT).mT + u2
    y = model.lin4(torch.cat([model.lin3(inner) + u1, outer], -1)).view(4, C, H)
    torch.testing.assert_close(model(past), mean + scale * (y - shift) / gain, rtol=1e-4, atol=1e-4)


def test_time_machine_together_runs_over_the_channels():
    model, past = build("together"), torch.randn(2, C, L)
    x, mean, scale = instance(past)
    u1 = model.lin1(x)
    u2 = model.lin2(u1)
    low = mamba(model.mamba2, u2) + mamba(model.mamba1, u2) + u2
    high = mamba(model.mamba3, u1) + mamba(model.mamba4, u1)
    y = model.lin4(torch.cat([model.lin3(low) + u1, high], -1))
    torch.testing.assert_close(model(past), mean + scale * y, rtol=1e-4, atol=1e-4)


def test_simba_is_its_equations():
    model, past = build("simba"), 3 + 5 * torch.randn(4, C, L)
    x, mean, scale = instance(past)
    rows = torch.stack([x, torch.ones_like(x)], 2).view(4 * C, 2, L)
    e = torch.stack([rows[..., s : s + 8].flatten(1) for s in range(0, L - 7, 4)], 1)
    e = model.embed(e) + model.position
    for layer in model.stack.layers:
        first, second = layer.branches
        e = e + mamba(first.mixer, first.norm(e))
        block = second.mixer
        f = torch.fft.fft2(second.norm(e).view(len(e), -1, 2, 8), dim=(1, 2), norm="ortho")
        for number in ("1", "2"):
            weight = torch.view_as_complex(getattr(block, f"complex_weight_{number}").movedim(0, -1).contiguous())
            bias = torch.view_as_complex(getattr(block, f"complex_bias_{number}").movedim(0, -1).contiguous())
            f = torch.einsum("...kw,kwv->...kv", f, weight) + bias
            kind = F.relu if number == "1" else lambda part: F.softshrink(part, 0.01)
            f = torch.complex(kind(f.real), kind(f.imag))
        e = e + torch.fft.ifft2(f, dim=(1, 2), norm="ortho").real.flatten(2)
    y = model.head(model.stack.norm(e).flatten(1)).view(4, C, H)
    torch.testing.assert_close(model(past), mean + scale * y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_forecasts_follow_unit_and_level(name):
    model, past = build(name), torch.randn(2, C, L)
    torch.testing.assert_close(model(7 * past - 100), 7 * model(past) - 100, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["time_machine", "simba"])
def test_channels_stay_apart(name):
    model, past = build(name), torch.randn(2, C, L)
    torch.testing.assert_close(model(past[:, 1:2]), model(past)[:, 1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["s_mamba", "together"])
def test_channels_inform_each_other(name):
    model, past = build(name), torch.randn(2, C, L)
    other = past.clone()
    other[:, 0] = torch.randn(2, L)
    moved = (model(other) - model(past)).abs().amax((0, 2))
    assert (moved[1:] > 1e-5).all()


def test_s_mamba_reads_channels_in_both_directions():
    model, past = build("s_mamba"), torch.randn(2, C, L)
    for changed, reached in ((0, C - 1), (C - 1, 0)):
        other = past.clone()
        other[:, changed] = torch.randn(2, L)
        assert (model(other) - model(past))[:, reached].abs().max() > 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_inputs_width_and_missing_values(name):
    network = build(name, width=2, inputs=2)
    encoder, past, inputs = WindowEncoder(network), torch.randn(2, C, L), torch.randn(2, 2, L)
    past[0, 0, ::3], past[0, 1] = math.nan, math.nan
    features, scale = encoder.encode(past, inputs, 1e-3)
    assert features.shape == (2, C, H, 2)
    assert scale.shape == (2, C, 1)
    assert features.isfinite().all()
    assert not torch.equal(features, encoder.encode(past, inputs + 1, 1e-3)[0])
    assert not start_at_zero(network).encode(past.nan_to_num(), ~past.isnan(), inputs).any()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_learns(name):
    model = build(name)
    model(torch.randn(2, C, L)).square().sum().backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # A scan over a single token never decays.
    assert idle == ({"mamba2.A_log", "mamba3.A_log"} if name == "time_machine" else set())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_window_of_another_length_is_refused(name):
    with pytest.raises(ValueError, match=r"past has shape \(1, 3, 23\), expected \(windows, channels, 24\)"):
        build(name)(torch.randn(1, C, L - 1))
