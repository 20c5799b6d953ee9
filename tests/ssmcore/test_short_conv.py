"""The short convolution against torch's, and its window as a state."""

import pytest
import torch
import torch.nn.functional as F

from ssmcore.functional import Rows
from ssmcore.mixer import Context
from ssmcore.mixers.short_conv import ShortConv

PLAIN = Context()


@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("l", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_equals_a_padded_convolution(width, l, activation):
    conv, x = ShortConv(5, width, activation=activation), torch.randn(2, l, 5)
    want = F.conv1d(F.pad(x.mT, (width - 1, 0)), conv.weight, conv.bias, groups=5).mT
    y, state = conv(x, None, PLAIN)
    torch.testing.assert_close(y, F.silu(want) if activation else want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, F.pad(x, (0, 0, width - 1, 0))[:, l:])


@pytest.mark.parametrize("sizes", [[1] * 9, [2, 7], [5, 1, 3], [8, 1]], ids=str)
def test_any_pieces_continue(sizes):
    conv, x = ShortConv(3, 4), torch.randn(2, 9, 3)
    state, pieces = None, []
    for piece in x.split(sizes, 1):
        y, state = conv(piece, state, PLAIN)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), conv(x, None, PLAIN)[0])
    torch.testing.assert_close(state, x[:, -3:])


def test_the_window_stops_at_resets_and_skips_padding():
    conv, x = ShortConv(3, 4), torch.randn(1, 10, 3)
    reset, mask = torch.zeros(1, 10, dtype=torch.bool), torch.ones(1, 10, dtype=torch.bool)
    reset[0, 4], mask[0, [1, 6]] = True, False
    rows = Rows.of(reset, mask)
    y, state = conv(rows.pack(x), None, Context(rows))
    y = rows.unpack(y)
    torch.testing.assert_close(y[:, [0, 2, 3]], conv(x[:, [0, 2, 3]], None, PLAIN)[0])
    torch.testing.assert_close(y[:, [4, 5, 7, 8, 9]], conv(x[:, [4, 5, 7, 8, 9]], None, PLAIN)[0])
    torch.testing.assert_close(rows.leave({"conv": state})["conv"], x[:, [7, 8, 9]])


def test_state_is_wide_under_autocast():
    conv = ShortConv(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = conv(torch.randn(1, 5, 3).bfloat16(), None, PLAIN)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_bad_sizes():
    with pytest.raises(ValueError, match="width=0"):
        ShortConv(3, 0)
