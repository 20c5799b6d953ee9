"""Mamba on a grid against flipped and transposed copies, written out."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore.mixer import Unsupported, config_of
from ssmcore.mixers.grid_mamba import GridMamba, GridMambaConfig


def grid_mamba(d=8, **options):
    return GridMamba(d, config_of(GridMamba, {"d_state": 4, **options}))


def by_hand(mixer, x, h, w):
    """Four copies of the map: as it is, transposed, and both flipped; undone after the scan."""
    u = mixer.in_proj(x)
    u, z = u.chunk(2, -1) if mixer.config.gate else (u, None)
    image = F.silu(mixer.conv2d(u.transpose(1, 2).reshape(len(x), -1, h, w)))
    rows, columns = image.flatten(2).transpose(1, 2), image.mT.flatten(2).transpose(1, 2)
    ys = [s(v) for s, v in zip(mixer.scans, (rows, columns, rows.flip(1), columns.flip(1)), strict=True)]

    def undo(y):
        return y.unflatten(1, (w, h)).transpose(1, 2).flatten(1, 2)

    y = mixer.out_norm(ys[0] + undo(ys[1]) + ys[2].flip(1) + undo(ys[3].flip(1)))
    return mixer.out_proj(y if z is None else y * F.silu(z))


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize(("h", "w"), [(3, 5), (4, 4), (1, 6)])
def test_four_routes(gate, h, w):
    mixer, x = grid_mamba(gate=gate), torch.randn(2, h * w, 8)
    torch.testing.assert_close(mixer(x, shared={"grid": (h, w)})[0], by_hand(mixer, x, h, w))


def test_routes_are_options():
    mixer, x = grid_mamba(routes=("raster", "window2_reversed"), grid=(3, 4)), torch.randn(2, 12, 8)
    y, _ = mixer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert all(p.grad is not None for p in mixer.parameters())
    assert set(mixer.param_spec()) <= set(dict(mixer.named_parameters()))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="10 tokens, expected i \\* j = 3 \\* 4"):
        grid_mamba(grid=(3, 4))(torch.randn(1, 10, 8))
    with pytest.raises(ValueError, match="odd side"):
        GridMambaConfig(d_conv=4)
    with pytest.raises(ValueError, match="routes is empty"):
        GridMambaConfig(routes=())
    with pytest.raises(ValueError, match="grid"):
        grid_mamba()(torch.randn(1, 12, 8))
    with pytest.raises(Unsupported):
        grid_mamba(grid=(3, 4))(torch.randn(1, 12, 8), reset=torch.zeros(1, 12, dtype=torch.bool))
