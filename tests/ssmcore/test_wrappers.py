"""Both directions and every order of a grid, against permutations by hand."""

import pytest
import torch

from ssmcore import Bidirectional, ScanOrder, Stack, create_mixer
from ssmcore.mixer import Context
from ssmcore.orders import ORDERS, inverse, order


def copies_of(wrapper):
    return list(wrapper.mixers)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("combine", ["sum", "mean", "concat"])
def test_bidirectional_by_hand(share, combine):
    two_way = create_mixer("bidirectional", 4, mixer="mamba", share=share, combine=combine)
    assert isinstance(two_way, Bidirectional)
    x, there = torch.randn(2, 9, 4), copies_of(two_way)
    assert len(there) == (1 if share else 2)
    ahead, back = there[0](x)[0], there[-1](x.flip(1))[0].flip(1)
    want = {
        "sum": lambda: ahead + back,
        "mean": lambda: (ahead + back) / 2,
        "concat": lambda: two_way.combiner.proj(torch.cat([ahead, back], -1)),
    }[combine]()
    torch.testing.assert_close(two_way(x)[0], want)


def test_shared_directions_commute_with_reversal():
    two_way, x = create_mixer("bidirectional", 4, mixer="gru", share=True), torch.randn(2, 9, 4)
    torch.testing.assert_close(two_way(x.flip(1))[0], two_way(x)[0].flip(1))


def test_directions_stop_at_resets_and_padding():
    two_way, x = create_mixer("bidirectional", 4), torch.randn(2, 9, 4)
    reset, mask = torch.zeros(2, 9, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)
    reset[0, 4], mask[1, 6:], mask[1, 0] = True, False, False
    y, _ = two_way(x, reset=reset, mask=mask)
    torch.testing.assert_close(y[:1], torch.cat([two_way(x[:1, :4])[0], two_way(x[:1, 4:])[0]], 1))
    torch.testing.assert_close(y[1:, 1:6], two_way(x[1:, 1:6])[0])
    assert (y[1, 6:] == 0).all()


@pytest.mark.parametrize("packed", [False, True])
def test_the_way_back_sees_the_gaps_of_the_way_back(packed):
    """Read backwards, the time before token t is the time that was after it; the first gap leads in, as before."""
    two_way = create_mixer("bidirectional", 4, mixer={"name": "s5", "d_state": 4})
    x, dt = torch.randn(1, 5, 4), torch.tensor([[0.5, 1.0, 2.0, 3.0, 4.0]])
    back = torch.tensor([[0.5, 4.0, 3.0, 2.0, 1.0]])
    ahead_mixer, back_mixer = copies_of(two_way)
    want = ahead_mixer(x, dt=dt)[0] + back_mixer(x.flip(1), dt=back)[0].flip(1)
    if packed:
        x, dt = torch.cat([torch.randn(1, 3, 4), x], 1), torch.cat([torch.rand(1, 3), dt], 1)
        got = two_way(x, dt=dt, reset=torch.arange(8)[None] == 3)[0][:, 3:]
    else:
        got = two_way(x, dt=dt)[0]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("grid", [(3, 5), (5, 3), (1, 7), (4, 4), (6, 9)], ids=str)
def test_every_order_is_undone(name, grid):
    """Scanning in an order and putting back equals permuting by hand, whatever the shape of the grid."""
    h, w = grid
    scan = create_mixer("scan_order", 3, mixer="gru", orders=(name,), grid=grid)
    x = torch.randn(2, h * w, 3)
    table = order(name, h, w)
    y = copies_of(scan)[0](x[:, table])[0]
    want = torch.empty_like(y)
    want[:, table] = y
    torch.testing.assert_close(scan(x)[0], want)
    assert torch.equal(table[inverse(table)], torch.arange(h * w))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("combine", ["sum", "mean", "concat"])
def test_several_orders_by_hand(share, combine):
    names = ("raster", "column_reversed", "snake", "diagonal")
    scan = create_mixer(
        "scan_order", 4, mixer={"name": "mamba", "d_state": 4}, orders=names, share=share, combine=combine
    )
    assert isinstance(scan, ScanOrder)
    x, mixers = torch.randn(2, 15, 4), copies_of(scan)
    passes = []
    for i, name in enumerate(names):
        table = order(name, 3, 5)
        passes.append(mixers[0 if share else i](x[:, table])[0][:, inverse(table)])
    want = {
        "sum": lambda: sum(passes),
        "mean": lambda: sum(passes) / 4,
        "concat": lambda: scan.combiner.proj(torch.cat(passes, -1)),
    }[combine]()
    torch.testing.assert_close(scan(x, shared={"grid": (3, 5)})[0], want)


def test_columns_of_an_image_are_rows_of_its_transpose():
    """H != W: a column scan of an image is a row scan of the image turned over its diagonal."""
    rows = create_mixer("scan_order", 4, mixer="gru", orders=("raster",))
    columns = create_mixer("scan_order", 4, mixer="gru", orders=("column",))
    columns.load_state_dict(rows.state_dict())
    image = torch.randn(2, 3, 5, 4)
    down = columns(image.flatten(1, 2), shared={"grid": (3, 5)})[0].view(2, 3, 5, 4)
    across = rows(image.transpose(1, 2).flatten(1, 2), shared={"grid": (5, 3)})[0].view(2, 5, 3, 4)
    torch.testing.assert_close(down, across.transpose(1, 2))


def test_four_orders_see_the_whole_image_from_everywhere():
    scan = create_mixer("scan_order", 2, mixer="mamba", grid=(3, 4))
    x = torch.randn(1, 12, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(scan(x)[0][0, 5].square().sum(), x)
    assert (grad[0].abs().amax(-1) > 0).all()


def test_a_stack_hands_the_grid_on():
    stack = Stack(4, "(V/mlp)*2", mixers={"V": {"name": "scan_order", "orders": ("raster", "column")}})
    assert stack.needs == {"grid"}
    y, _ = stack(torch.randn(1, 6, 4), shared={"grid": (2, 3)})
    assert y.shape == (1, 6, 4)
    with pytest.raises(ValueError, match="needs shared=.grid"):
        stack(torch.randn(1, 6, 4))


def test_bad_wrappers():
    with pytest.raises(ValueError, match="did you mean 'column'"):
        create_mixer("scan_order", 4, orders=("columns",))
    with pytest.raises(ValueError, match="orders is empty"):
        create_mixer("scan_order", 4, orders=())
    with pytest.raises(ValueError, match="combine"):
        create_mixer("bidirectional", 4, combine="product")
    with pytest.raises(ValueError, match=r"expected h \* w = 2 \* 3"):
        create_mixer("scan_order", 4, grid=(2, 3))(torch.randn(1, 7, 4))


@pytest.mark.parametrize("share", [True, False])
def test_scan_order_compiles_for_any_grid(share):
    """No graph break; the tables are made outside the graph."""
    names = ("raster", "snake", "column_reversed")
    mixer = create_mixer("scan_order", 4, mixer={"name": "mamba", "d_state": 2}, orders=names, share=share)

    def run(x, h, w):
        return mixer(x, shared={"grid": (h, w)})[0]

    compiled, x = torch.compile(run, fullgraph=True, backend="aot_eager"), torch.randn(2, 12, 4)
    torch.testing.assert_close(compiled(x, 3, 4), run(x, 3, 4))
    torch.testing.assert_close(compiled(x, 2, 6), run(x, 2, 6))


@pytest.mark.parametrize("name", ["s4", "s4d", "s5"])
@torch.no_grad()
def test_a_two_sided_state_space_is_two_causal_ones(name):
    """Its second C reads the tokens from the end on; S4's and S4D's from the next one, S5's from the present."""
    two = create_mixer(name, 4, d_state=8, two_sided=True).double()
    past, future = (create_mixer(name, 4, d_state=8).double() for _ in range(2))
    weights = {key: value for key, value in two.state_dict().items() if key != "C_back"}
    past.load_state_dict(weights)
    future.load_state_dict({**weights, "C": two.C_back, "D": torch.zeros(4)})
    x = torch.randn(2, 23, 4, dtype=torch.float64)
    back = future.core(x.flip(1), None, Context())[0].flip(1)
    if name != "s5":
        back = torch.cat([back[:, 1:], torch.zeros(2, 1, 4)], 1)
    torch.testing.assert_close(two.core(x, None, Context())[0], past.core(x, None, Context())[0] + back)
    mask = torch.ones(2, 23, dtype=torch.bool)
    mask[1, 15:] = False
    torch.testing.assert_close(two(x, mask=mask)[0][1, :15], two(x[1:, :15])[0][0])
