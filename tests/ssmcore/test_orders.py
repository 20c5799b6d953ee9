"""Token orders: permutations for every grid, the order each promises, and what an error says."""

import pytest
import torch

from ssmcore.orders import (
    ORDERS,
    column,
    column_reversed,
    diagonal,
    hilbert,
    inverse,
    order,
    raster,
    raster_reversed,
    snake,
    snake_column,
    window,
)

GRIDS = [(1, 1), (1, 7), (7, 1), (2, 2), (2, 3), (3, 2), (4, 4), (5, 7), (7, 5), (11, 13), (8, 6), (14, 14), (6, 17)]


def _steps(table, w):
    """Rows and columns moved at each step."""
    return torch.stack([(table // w).diff().abs(), (table % w).diff().abs()])


@pytest.mark.parametrize("name", ORDERS)
def test_every_table_is_a_permutation_and_inverse_undoes_it(name):
    for h, w in GRIDS:
        table = order(name, h, w)
        assert table.dtype == torch.int64
        assert torch.equal(table.sort().values, torch.arange(h * w)), (h, w)
        x = torch.randn(h * w)
        assert torch.equal(x[table][inverse(table)], x)
        assert torch.equal(x[inverse(table)][table], x)


def test_small_tables_by_hand():
    # 0 1 2
    # 3 4 5
    expected = {
        raster: [0, 1, 2, 3, 4, 5],
        raster_reversed: [5, 4, 3, 2, 1, 0],
        column: [0, 3, 1, 4, 2, 5],
        column_reversed: [5, 2, 4, 1, 3, 0],
        snake: [0, 1, 2, 5, 4, 3],
        snake_column: [0, 3, 4, 1, 2, 5],
        diagonal: [0, 1, 3, 2, 4, 5],
    }
    for table, tokens in expected.items():
        assert table(2, 3).tolist() == tokens, table.__name__
    assert window(3, 3, 2).tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert hilbert(2, 2).tolist() in ([0, 1, 3, 2], [0, 2, 3, 1])


def test_registry_names_agree_with_the_functions():
    tables = (raster, raster_reversed, column, column_reversed, snake, snake_column, diagonal, hilbert)
    for table in tables:
        assert torch.equal(order(table.__name__, 4, 5), table(4, 5))
    assert torch.equal(order("window2", 4, 5), window(4, 5, 2))
    assert torch.equal(order("window7", 9, 15), window(9, 15, 7))


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_snakes_always_step_to_a_neighbour(h, w):
    for table in (snake(h, w), snake_column(h, w)):
        assert (_steps(table, w).sum(0) == 1).all()


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_column_orders_are_transposed_row_orders(h, w):
    transposed = torch.arange(h * w).view(w, h).T.flatten()  # token of the h x w grid -> token of its transpose
    assert torch.equal(transposed[column(h, w)], raster(w, h))
    assert torch.equal(transposed[snake_column(h, w)], snake(w, h))


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_diagonals_are_visited_in_turn(h, w):
    table = diagonal(h, w)
    rank = table // w + table % w
    assert (rank.diff() >= 0).all()
    assert ((table // w).diff()[rank.diff() == 0] == 1).all()


@pytest.mark.parametrize("k", [1, 2, 3, 20])
@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_windows_are_left_once_and_scanned_in_raster_order(h, w, k):
    table = window(h, w, k)
    row, col = table // w, table % w
    which = row // k * (-(-w // k)) + col // k
    assert (which.diff() >= 0).all()
    assert (table.diff()[which.diff() == 0] > 0).all()
    if k == 1 or k == 20:
        assert torch.equal(table, raster(h, w))


def test_hilbert_steps_to_neighbours_on_every_rectangle():
    for h in range(1, 20):
        for w in range(1, 20):
            table = hilbert(h, w)
            assert table[0] == 0
            assert torch.equal(table.sort().values, torch.arange(h * w)), (h, w)
            steps = _steps(table, w)
            assert steps.numel() == 0 or steps.max() == 1, (h, w)
            odd_by_even = max(h, w) % 2 == 1 and min(h, w) % 2 == 0
            assert (steps.sum(0) == 2).sum() <= odd_by_even, (h, w)
            assert odd_by_even or table[-1] == (w - 1 if w >= h else (h - 1) * w)


@pytest.mark.parametrize("side", [2, 4, 8, 16])
def test_hilbert_fills_every_quarter_before_the_next(side):
    table = hilbert(side, side)
    block = side // 2
    while block >= 1:
        quarter = table // side // block * side + table % side // block
        assert (quarter.diff() != 0).sum() + 1 == (side // block) ** 2
        block //= 2


def test_hilbert_is_local():
    # On a power of two, tokens t steps apart are within sqrt(6 t) of each other (Niedermeier et al. 2002).
    def worst(table):
        row, col = table // 32, table % 32
        gaps = range(1, 1024)
        return max(((row[t:] - row[:-t]).square() + (col[t:] - col[:-t]).square()).max().item() / t for t in gaps)

    assert worst(hilbert(32, 32)) <= 6 < worst(raster(32, 32))


def test_a_caller_may_write_into_a_table():
    hilbert(4, 4).zero_()
    assert torch.equal(hilbert(4, 4).sort().values, torch.arange(16))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="unknown token order 'hilbet'; did you mean 'hilbert'"):
        order("hilbet", 4, 4)
    for name in ORDERS:
        with pytest.raises(ValueError, match="h=0, w=3, expected a grid"):
            order(name, 0, 3)
    with pytest.raises(ValueError, match="k=0"):
        window(4, 4, 0)
    with pytest.raises(ValueError, match=r"expected integers \(l,\)"):
        inverse(torch.arange(4).view(2, 2))
    with pytest.raises(ValueError, match="float32"):
        inverse(torch.arange(4.0))
    for wrong in ([0, 0, 1], [1, 2, 3]):
        with pytest.raises(ValueError, match="not a permutation"):
            inverse(torch.tensor(wrong))
