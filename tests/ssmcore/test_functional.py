"""Rows: from flags a token to packed sequences and back; and the sums of damped modes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmcore.functional import Rows, at_least_float32, damped_modes


@st.composite
def flags(draw):
    b, l = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    bits = st.lists(st.lists(st.booleans(), min_size=l, max_size=l), min_size=b, max_size=b)
    return torch.tensor(draw(bits)), torch.tensor(draw(bits))


def rows_by_hand(reset, mask):
    """For each item the runs of its tokens, the first of them before any reset."""
    items = []
    for r, m in zip(reset.tolist(), mask.tolist(), strict=True):
        runs = [[]]
        for t, (starts, exists) in enumerate(zip(r, m, strict=True)):
            if exists:
                if starts:
                    runs.append([])
                runs[-1].append(t)
        items.append(runs)
    return items


@given(flags())
def test_rows_are_the_runs_between_resets(both):
    reset, mask = both
    rows, want = Rows.of(reset, mask), rows_by_hand(reset, mask)
    assert rows.lengths.tolist() == [len(run) for runs in want for run in runs]
    counts = [len(runs) for runs in want]
    assert rows.first.tolist() == [sum(counts[:i]) for i in range(len(counts))]
    assert rows.last.tolist() == [sum(counts[: i + 1]) - 1 for i in range(len(counts))]
    l = reset.shape[1]
    assert rows.positions.tolist() == [i * l + t for i, runs in enumerate(want) for run in runs for t in run]
    assert rows.item.tolist() == [i for i, runs in enumerate(want) for run in runs for t in run]
    assert rows.time.tolist() == [k for runs in want for run in runs for k in range(len(run))]
    assert rows.cu_seqlens.tolist()[-1] == len(rows.positions)
    assert rows.cu_seqlens.device.type == "cpu"


@given(flags())
def test_layouts_go_there_and_back(both):
    reset, mask = both
    rows = Rows.of(reset, mask)
    x = torch.randn(*reset.shape, 3)
    packed = rows.pack(x)
    assert torch.equal(rows.unpack(packed), x * mask[..., None])
    assert torch.equal(rows.from_padded(rows.to_padded(packed)), packed)
    assert torch.equal(rows.reverse(rows.reverse(packed)), packed)
    runs = [run for runs in rows_by_hand(reset, mask) for run in runs]
    flat = [i * reset.shape[1] + t for i, r in enumerate(rows_by_hand(reset, mask)) for run in r for t in reversed(run)]
    assert torch.equal(rows.reverse(packed)[0], x.flatten(0, 1)[flat])
    assert len(runs) == rows.count


@given(flags())
def test_states_enter_first_rows_and_leave_last_ones(both):
    rows = Rows.of(*both)
    b = len(rows.first)
    came = {"h": torch.randn(b, 2), "deep": {"k": torch.randn(b, 5, 2)}}
    fresh = {"h": torch.full((rows.count, 2), -7.0), "deep": {"k": torch.zeros(rows.count, 0, 2)}}
    spread = rows.spread(came, fresh)
    others = [i for i in range(rows.count) if i not in rows.first.tolist()]
    assert torch.equal(spread["h"][rows.first], came["h"])
    assert (spread["h"][others] == -7).all()
    assert torch.equal(spread["deep"]["k"][rows.first], came["deep"]["k"])
    assert (spread["deep"]["k"][others] == 0).all()
    assert torch.equal(rows.leave(spread)["h"], spread["h"][rows.last])


def test_gradients_pass_through_every_layout():
    rows = Rows.of(torch.tensor([[0, 1, 0], [0, 0, 1]]).bool(), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool())
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)

    def through(x):
        packed = rows.reverse(rows.pack(x))
        return rows.unpack(rows.from_padded(rows.to_padded(packed)))

    assert torch.autograd.gradcheck(through, x)


def test_bad_flags():
    flag = torch.zeros(2, 3, dtype=torch.bool)
    for reset, mask in ((None, None), (flag[0], None), (flag, flag[:, :2]), (None, flag.float())):
        with pytest.raises(ValueError, match="reset and mask"):
            Rows.of(reset, mask)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 16, 17, 100])
def test_damped_modes_equal_the_plain_sum(length):
    w, u = torch.randn(2, 3, 4, dtype=torch.complex128).unbind()
    u = torch.complex(-u.real.abs(), u.imag)
    t = torch.arange(length)[:, None, None]
    torch.testing.assert_close(damped_modes(w, u, length), (w * (t * u).exp()).sum(-1), rtol=1e-12, atol=1e-13)


def test_damped_modes_refuses():
    with pytest.raises(ValueError, match="damped_modes"):
        damped_modes(torch.zeros(2, 3), torch.zeros(2, 4), 3)


def test_at_least_float32():
    widths = {torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
    for narrow, wide in widths.items():
        assert at_least_float32(torch.zeros(1, dtype=narrow)).dtype == wide
    with pytest.raises(TypeError):
        at_least_float32(torch.zeros(1, dtype=torch.complex64))
