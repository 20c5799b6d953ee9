"""Norms and the residual branch against torch and by hand."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore import create_mixer
from ssmcore.blocks import DropPath, LayerNorm, Residual, RMSNorm
from ssmcore.functional import Rows
from ssmcore.mixer import Context

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def test_norms_equal_torchs():
    rms, layer = RMSNorm(8), LayerNorm(8)
    with torch.no_grad():
        rms.weight.uniform_()
        layer.weight.uniform_()
        layer.bias.uniform_()
    torch.testing.assert_close(rms(X), F.rms_norm(X, (8,), rms.weight, 1e-5))
    torch.testing.assert_close(layer(X), F.layer_norm(X, (8,), layer.weight, layer.bias, 1e-5))


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_norms_are_computed_wide(norm):
    """A sum of squares that half precision cannot hold."""
    x = torch.full((1, 1, 8), 300.0, dtype=torch.float16)
    x[..., ::2] *= -1
    y = norm(8).half()(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.abs(), torch.ones_like(y))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(8)(x).dtype == torch.float32
    assert norm(8).double()(X.double()).dtype == torch.float64


def test_residual_placements():
    mixer = create_mixer("mlp", 8)

    def f(x):
        return mixer(x)[0]

    want = {
        "pre": lambda b: X + f(b.norm(X)),
        "post": lambda b: b.norm(X + f(X)),
        "sandwich": lambda b: X + b.norm_out(f(b.norm(X))),
    }
    for placement, formula in want.items():
        branch = Residual(mixer, norm="layer", placement=placement)
        torch.testing.assert_close(branch(X, None, Context())[0], formula(branch))
    with pytest.raises(ValueError, match="placement"):
        Residual(mixer, placement="both")
    with pytest.raises(ValueError, match="did you mean 'layer'"):
        Residual(mixer, norm="layers")


def test_drop_path_drops_whole_items():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    kept = drop(x, Context())
    assert set(kept.flatten().tolist()) == {0.0, 1 / 0.75} or kept.unique().numel() == 2
    assert (kept == kept[:, :1, :1]).all()
    assert abs((kept[:, 0, 0] > 0).float().mean() - 0.75) < 0.03
    assert drop.eval()(x, Context()) is x


def test_drop_path_drops_items_of_packed_rows():
    torch.manual_seed(0)
    reset = torch.rand(64, 6) < 0.3
    rows = Rows.of(reset, torch.rand(64, 6) < 0.8)
    kept = rows.unpack(DropPath(0.5)(rows.pack(torch.ones(64, 6, 1)), Context(rows)))
    values = [set(item[item > 0].tolist()) | ({0.0} if (item == 0).all() else set()) for item in kept]
    exists = rows.unpack(rows.pack(torch.ones(64, 6, 1))) > 0
    for item, there in zip(kept, exists, strict=True):
        assert item[there].unique().numel() <= 1
    assert {2.0} in values
    assert {0.0} in values
