"""Token orders: in which sequence a scan visits the tokens of an h x w grid.

An order is a table: order[t] is the flat index (row * w + column) of the token visited at step t. So `x[:, order]` is x
as the scan meets it, and `y[:, inverse(order)]` puts its output back. Every table is a true permutation, for any h
and w. Shapes: l = h * w tokens. Make tables outside compiled code, on the CPU, and keep them by grid size.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .array_types import Int, Order
from .registry import resolve


def raster(h: int, w: int) -> Order:
    """Row after row, each from left to right: the identity.

    Args:
        h: Rows.
        w: Columns.
    Returns:
        Table, int64, shape (h * w,).
    Raises:
        ValueError: h < 1 or w < 1.
    """
    return _grid("raster", h, w).flatten()


def raster_reversed(h: int, w: int) -> Order:
    """Raster from the last token to the first.

    Args:
        h: Rows.
        w: Columns.
    Returns:
        Table, int64, shape (h * w,).
    Raises:
        ValueError: h < 1 or w < 1.
    """
    return _grid("raster_reversed", h, w).flatten().flip(0)


def column(h: int, w: int) -> Order:
    """Column after column, each from top to bottom.

    Args:
        h: Rows.
        w: Columns.
    Returns:
        Table, int64, shape (h * w,).
    Raises:
        ValueError: h < 1 or w < 1.
    """
    return _grid("column", h, w).T.flatten()


def column_reversed(h: int, w: int) -> Order:
    """Column order from the last token to the first.

    Args:
        h: Rows.
        w: Columns.
    Returns:
        Table, int64, shape (h * w,).
    Raises:
        ValueError: h < 1 or w < 1.
    Source: Liu et al. 2024, VMamba (with raster, its reverse and column: the cross-scan).
    """
    return _grid("column_reversed", h, w).T.flatten().flip(0)


def snake(h: int, w: int) -> Order:
    """Rows in turn from the left and from the right, so that every step goes to a neighbour.

    Args:
        h: Rows.
        w: Columns.
    Returns:
        Table, int64, shape (h * w,).
    Raises:
        ValueError: h < 1 or w < 1.
    Source: Yang et al. 2024, PlainMamba (continuous 2-D scanning).
    """
    return _boustrophedon(_grid("snake", h, w))


def snake_column(h: int, w: int) -> Order:
    """Columns in turn downwards and upwards, so that every step goes to a neighbour.

    Args:
        h: Rows.
        w: Columns.
    Returns:
        Table, int64, shape (h * w,).
    Raises:
        ValueError: h < 1 or w < 1.
    Source: Yang et al. 2024, PlainMamba (continuous 2-D scanning).
    """
    return _boustrophedon(_grid("snake_column", h, w).T)


def diagonal(h: int, w: int) -> Order:
    """Anti-diagonals (row + column constant) from the top left corner on, each from its top right end.

    Args:
        h: Rows.
        w: Columns.
    Returns:
        Table, int64, shape (h * w,).
    Raises:
        ValueError: h < 1 or w < 1.
    """
    index = _grid("diagonal", h, w)
    return (index // w + index % w).flatten().argsort(stable=True)


def window(h: int, w: int, k: int) -> Order:
    """Window after window in raster order, and raster order inside each k x k window.

    Args:
        h: Rows.
        w: Columns.
        k: Side of a window; those at the right and lower edge are cut off where k does not divide w or h.
    Returns:
        Table, int64, shape (h * w,).
    Raises:
        ValueError: h < 1, w < 1 or k < 1.
    Source: Huang et al. 2024, LocalMamba (k = 2 and 7).
    """
    index = _grid("window", h, w)
    if k < 1:
        raise ValueError(f"window: k={k}, expected a side of at least 1")
    windows_a_row = -(-w // k)
    return (index // w // k * windows_a_row + index % w // k).flatten().argsort(stable=True)


def hilbert(h: int, w: int) -> Order:
    """A Hilbert curve, stretched over any rectangle: tokens near in the sequence are near on the grid.

    Runs from the top left corner to the other end of the longer side (the top row, on a square), and every step goes
    to a neighbour. Where the longer side is odd and the shorter one even there is no such path: then one step may be
    diagonal, or the end lie beside that corner.

    Args:
        h: Rows.
        w: Columns.
    Returns:
        Table, int64, shape (h * w,).
    Raises:
        ValueError: h < 1 or w < 1.
    Source: Hilbert 1891; for rectangles by the division scheme of Cerveny 2018, generalised Hilbert curves.
    """
    _grid("hilbert", h, w)
    return torch.tensor(_hilbert_path(h, w))


ORDERS: dict[str, Callable[[int, int], Order]] = {
    "raster": raster,
    "raster_reversed": raster_reversed,
    "column": column,
    "column_reversed": column_reversed,
    "snake": snake,
    "snake_column": snake_column,
    "diagonal": diagonal,
    "window2": functools.partial(window, k=2),
    "window7": functools.partial(window, k=7),
    "hilbert": hilbert,
}
"""The windows have LocalMamba's sides; another is `window(h, w, k)`."""


def order(name: str, h: int, w: int) -> Order:
    """The table of an order by its name.

    Args:
        name: A key of ORDERS.
        h: Rows.
        w: Columns.
    Returns:
        Table, int64, shape (h * w,).
    Raises:
        ValueError: No such order (with near misses), h < 1 or w < 1.
    """
    return resolve(name, ORDERS, "token order")(h, w)


def inverse(order: Order) -> Order:
    """The table that undoes an order: x[order][inverse(order)] = x.

    Args:
        order: A permutation of 0..l-1, shape (l,).
    Returns:
        Table, int64, shape (l,), device of `order`.
    Raises:
        ValueError: `order` is no vector of integers, or misses a token.
    """
    if order.ndim != 1 or order.dtype not in (torch.int32, torch.int64):
        dtype = str(order.dtype).removeprefix("torch.")
        raise ValueError(f"inverse: order has shape {tuple(order.shape)} and dtype {dtype}, expected integers (l,)")
    tokens, back = order.sort()
    if not torch.equal(tokens, torch.arange(len(order)).to(tokens)):
        raise ValueError(f"inverse: order is not a permutation of 0..{len(order) - 1}")
    return back


def _grid(op: str, h: int, w: int) -> Int[Tensor, "i j"]:
    """The flat index of each token, shape (h, w)."""
    if h < 1 or w < 1:
        raise ValueError(f"{op}: h={h}, w={w}, expected a grid of at least 1 x 1")
    return torch.arange(h * w).view(h, w)


def _boustrophedon(index: Int[Tensor, "i j"]) -> Order:
    """Rows of a table, every second one turned round, in one line."""
    index = index.clone()
    index[1::2] = index[1::2].flip(1)
    return index.flatten()


@functools.lru_cache(maxsize=64)
def _hilbert_path(h: int, w: int) -> tuple[int, ...]:
    """Flat indices along the curve; points are column + i row. A tuple, as a cached tensor could be written into."""
    sides = (complex(w, 0), complex(0, h)) if w >= h else (complex(0, h), complex(w, 0))
    return tuple(int(at.imag) * w + int(at.real) for at in _hilbert_points(0j, *sides))


def _hilbert_points(start: complex, along: complex, across: complex) -> list[complex]:
    """The cells of a rectangle, entered at `start` and left at (once, beside) the far end of `along`.

    `along` and `across` are sides: right-angled, whole, and pointing into the rectangle from its cell `start`.
    """
    length, breadth = int(abs(along)), int(abs(across))
    ahead, aside = along / length, across / breadth
    if breadth == 1:
        return [start + i * ahead for i in range(length)]
    if length == 1:
        return [start + i * aside for i in range(breadth)]
    half = length // 2
    if 2 * length > 3 * breadth:  # long: two pieces, one after the other
        half += half % 2 and length > 2  # an even piece ends on the side where it started
        first = _hilbert_points(start, half * ahead, across)
        return first + _hilbert_points(start + half * ahead, (length - half) * ahead, across)
    # Nearly square: a piece up, one along the upper half, and one down again.
    side = breadth // 2
    side += side % 2 and breadth > 2
    up = _hilbert_points(start, side * aside, half * ahead)
    over = _hilbert_points(start + side * aside, along, (breadth - side) * aside)
    corner = start + (length - 1) * ahead + (side - 1) * aside
    return up + over + _hilbert_points(corner, -side * aside, -(length - half) * ahead)
