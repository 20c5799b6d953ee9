"""Routes gather and scatter tokens, also in compiled and exported graphs, and their tables say where each goes."""

import pytest
import torch

from ssmcore.orders import inverse, order
from ssmcore.routes import Route, route_tables, tables


@pytest.mark.parametrize(("name", "base", "reverse"), [("raster", "raster", False), ("snake_reversed", "snake", True)])
def test_route_names(name, base, reverse):
    assert Route.of(name) == Route(base, reverse)
    assert Route.of(name).needs_grid == (base != "raster")


def test_unknown_routes_get_near_misses():
    with pytest.raises(ValueError, match="did you mean 'column'"):
        Route.of("colum_reversed")


@pytest.mark.parametrize("name", ["raster", "column", "window2", "hilbert_reversed"])
def test_scatter_undoes_gather(name):
    x, route = torch.randn(2, 12, 3), Route.of(name)
    torch.testing.assert_close(route.scatter(route.gather(x, (3, 4)), (3, 4)), x)
    torch.testing.assert_close(route.gather(x, (3, 4)), x[:, order(route.order, 3, 4)])


def test_tables_are_an_order_and_its_inverse():
    there, back = tables("column", 3, 5)
    assert torch.equal(there, order("column", 3, 5))
    assert torch.equal(back, inverse(there))


@pytest.mark.parametrize("name", ["column", "snake"])
def test_routes_compile_and_go_back(name):
    route = Route.of(name)

    def there_and_back(x, h, w):
        return route.scatter(route.gather(x, (h, w)) * 2, (h, w))

    compiled, x = torch.compile(there_and_back, fullgraph=True, backend="aot_eager"), torch.randn(2, 12, 3)
    torch.testing.assert_close(compiled(x, 3, 4), 2 * x)
    torch.testing.assert_close(compiled(x, 2, 6), 2 * x)


def test_routes_export():
    class Along(torch.nn.Module):
        def forward(self, x):
            return Route.of("window2").gather(x, (3, 4))

    x = torch.randn(2, 12, 3)
    program = torch.export.export(Along(), (x,))
    tables.cache_clear()
    torch.testing.assert_close(program.module()(x), x[:, order("window2", 3, 4)])


def test_tables_of_routes():
    routes = [Route.of(name) for name in ("snake", "column_reversed")]
    table = route_tables(torch.zeros(1, 12, 1), routes, (3, 4))
    assert torch.equal(table, torch.stack([order("snake", 3, 4), order("column", 3, 4).flip(0)]))
    table.zero_()  # it is the caller's own
    assert torch.equal(route_tables(torch.zeros(1, 12, 1), routes, (3, 4))[0], order("snake", 3, 4))
