"""Routes: the ways that scans take through the tokens of a grid, as gathering and scattering or as tables.

A route is the name of a token order (`ssmcore.orders`), or "<order>_reversed": that order from its last token to its
first. Tables are made once a grid and kept; the operators that hand them out are closed to compilers, so that a graph
has no break and no table in it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .array_types import Int, Order, Tokens
from .orders import inverse, order


@dataclass(frozen=True)
class Route:
    """Which way a scan takes through the tokens."""

    order: str
    """Key of `ssmcore.orders.ORDERS`."""
    reverse: bool
    """From the last token of the order to the first."""

    @classmethod
    def of(cls, name: str) -> "Route":
        """The route that a name stands for: an order, or "<order>_reversed". No shapes.

        Raises:
            ValueError: No such order; gives the near misses.
        """
        base = name.removesuffix("_reversed")
        order(base, 1, 1)
        return cls(base, base != name)

    @property
    def needs_grid(self) -> bool:
        """Whether the tokens' grid has to be known."""
        return self.order != "raster"

    def gather(self, x: Tokens, grid: tuple[int, int] | None) -> Tokens:
        """The tokens in the route's order (a reversed route's, too: its scan runs backwards), shape of x, (b, l, d).

        Raises:
            TypeError: The route needs a grid and got none.
        """
        if not self.needs_grid:
            return x
        if self.order == "column":  # the table of a transposition, which needs no table and exports with any size
            return x.unflatten(1, self._sides(grid)).transpose(1, 2).flatten(1, 2)
        return x.index_select(1, _table(x, self.order, *self._sides(grid), False))

    def scatter(self, y: Tokens, grid: tuple[int, int] | None) -> Tokens:
        """The inverse of `gather`, shape of y, (b, l, d). Raises as that."""
        if not self.needs_grid:
            return y
        if self.order == "column":
            return y.unflatten(1, self._sides(grid)[::-1]).transpose(1, 2).flatten(1, 2)
        return y.index_select(1, _table(y, self.order, *self._sides(grid), True))

    def _sides(self, grid: tuple[int, int] | None) -> tuple[int, int]:
        if grid is None:
            raise TypeError(f"Route: order {self.order!r} needs a grid (rows, columns), got None")
        return grid


@functools.lru_cache(maxsize=256)
def tables(name: str, h: int, w: int) -> tuple[Order, Order]:
    """An order and its inverse, on the CPU; kept, so do not write into them.

    Args:
        name: Key of `ssmcore.orders.ORDERS`.
        h: Rows.
        w: Columns.
    Returns:
        Two tables, int64, shape (h * w,).
    Raises:
        ValueError: No such order, h < 1 or w < 1.
    """
    there = order(name, h, w)
    return there, inverse(there)


@torch.library.custom_op("ssmcore::order_table", mutates_args=())
def _table(like: torch.Tensor, name: str, h: int, w: int, back: bool) -> torch.Tensor:
    """An order or its inverse on the device of `like`: an operator, so that compilers do not look inside."""
    return tables(name, h, w)[back].to(like.device, copy=True)


@_table.register_fake
def _(like, name, h, w, back):
    return like.new_empty(h * w, dtype=torch.int64)


@functools.lru_cache(maxsize=64)
def _tables_of(names: str, h: int, w: int, device: torch.device) -> Order:
    routes = map(Route.of, names.split(","))
    orders = [(order(route.order, h, w), route.reverse) for route in routes]
    return torch.stack([table.flip(0) if reverse else table for table, reverse in orders]).to(device)


@torch.library.custom_op("ssmcore::route_tables", mutates_args=())
def _route_tables(like: torch.Tensor, names: str, routes: int, h: int, w: int) -> torch.Tensor:
    """As `_table`, of all routes, shape (k, l)."""
    return _tables_of(names, h, w, like.device).clone()


@_route_tables.register_fake
def _(like, names, routes, h, w):
    return like.new_empty(routes, h * w, dtype=torch.int64)


def route_tables(like: Tokens, routes: Sequence[Route], grid: tuple[int, int]) -> Int[torch.Tensor, "k l"]:
    """The token that each of k routes visits at each step, int64, shape (k, l), on the device of `like`, (b, l, d).

    Raises:
        ValueError: The grid has a side < 1.
    """
    names = ",".join(f"{route.order}{'_reversed' * route.reverse}" for route in routes)
    return _route_tables(like, names, len(routes), *grid)
