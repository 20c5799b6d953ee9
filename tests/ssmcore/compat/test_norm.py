"""The norms: sums, second branches and gates against torch's own norms in float64."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore.compat.norm import LayerNormGated, RMSNorm, RMSNormGated, layer_norm_fn, rms_norm_fn, rmsnorm_fn


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain(x, weight, bias, rms):
    y = F.rms_norm(x, x.shape[-1:], weight, 1e-6) if rms else F.layer_norm(x, x.shape[-1:], weight, None, 1e-6)
    return y + bias


@pytest.mark.parametrize("rms", [False, True])
def test_everything_that_is_summed(rms):
    x, residual, second = (normal(2, 3, 8, seed=i) for i in range(3))
    weights, biases = normal(2, 8, seed=3), normal(2, 8, seed=4)
    rowscale = normal(2, 3, seed=5)
    total = x + second + residual
    y, y1, kept = layer_norm_fn(
        x, weights[0], biases[0], residual, second, weights[1], biases[1], prenorm=True, is_rms_norm=rms
    )
    torch.testing.assert_close(y, plain(total, weights[0], biases[0], rms))
    torch.testing.assert_close(y1, plain(total, weights[1], biases[1], rms))
    torch.testing.assert_close(kept, total)
    scaled = layer_norm_fn(x, weights[0], biases[0], residual, rowscale=rowscale, is_rms_norm=rms)
    torch.testing.assert_close(scaled, plain(x * rowscale[..., None] + residual, weights[0], biases[0], rms))


def test_dtypes_of_a_stream():
    x, weight = normal(2, 8, dtype=torch.bfloat16), normal(8, dtype=torch.bfloat16)
    y, kept = rms_norm_fn(x, weight, prenorm=True, residual_in_fp32=True)
    assert (y.dtype, kept.dtype) == (torch.bfloat16, torch.float32)
    y, kept = rms_norm_fn(x, weight, residual=kept, prenorm=True)
    assert (y.dtype, kept.dtype) == (torch.bfloat16, torch.float32)
    assert rms_norm_fn(x, weight, prenorm=True)[1].dtype == torch.bfloat16


def test_dropout_is_for_training():
    norm, x = RMSNorm(64, dropout_p=0.5), normal(3, 64, dtype=torch.float32)
    torch.manual_seed(0)
    _, kept = norm(x, prenorm=True)
    dropped = kept == 0
    assert 0.3 < dropped.float().mean() < 0.7
    torch.testing.assert_close(kept[~dropped], 2 * x[~dropped])
    torch.testing.assert_close(norm.eval()(x, prenorm=True)[1], x)


@pytest.mark.parametrize("kind", [LayerNormGated, RMSNormGated])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("group", [None, 4])
def test_gates_and_groups(kind, before, group):
    norm = kind(8, eps=1e-6, group_size=group, norm_before_gate=before, dtype=torch.float64)
    with torch.no_grad():
        for i, parameter in enumerate(norm.parameters()):
            parameter.copy_(normal(8, seed=i))
    x, z = normal(2, 8, seed=5), normal(2, 8, seed=6)
    gated = x if before else x * F.silu(z)
    parts = gated.split(group or 8, dim=-1)
    one = torch.ones(group or 8, dtype=torch.float64)
    y = torch.cat([plain(part, one, 0, kind is RMSNormGated) for part in parts], -1) * norm.weight
    y = y if norm.bias is None else y + norm.bias
    torch.testing.assert_close(norm(x, z), y * F.silu(z) if before else y)
    torch.testing.assert_close(norm(x), norm(x, torch.full_like(x, 1e9)) / 1e9 if before else norm(x))


def test_bad_input():
    x = normal(2, 8)
    with pytest.raises(ValueError, match="group_size=3 does not divide d=8"):
        rmsnorm_fn(x, normal(8), group_size=3)
    with pytest.raises(ValueError, match="return_dropout_mask is not offered"):
        layer_norm_fn(x, normal(8), return_dropout_mask=True)
    with pytest.raises(ValueError, match="rowscale cannot go with x1"):
        layer_norm_fn(x, normal(8), x1=x, rowscale=normal(2))
