"""The selective scan module is the inside of Mamba, whichever way the route goes."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.orders import inverse, order
from ssmcore.selective import Route, SelectiveScan, route_tables, scan_routes, tables


def test_it_is_the_inside_of_mamba():
    mamba, x = create_mixer("mamba", 8, d_state=4), torch.randn(2, 7, 8)
    scan = SelectiveScan(16, dt_rank=1, d_state=4)
    scan.load_state_dict({name: mamba.state_dict()[name] for name in scan.state_dict()})
    with torch.no_grad():
        u, z = mamba.in_proj(x).chunk(2, -1)
        u = mamba.conv1d.forward(u, None, _context())[0]
        torch.testing.assert_close(mamba.out_proj(scan(u, z=z)), mamba(x)[0])
        torch.testing.assert_close(scan(u, z=z, reverse=True), scan(u.flip(1), z=z.flip(1)).flip(1))


def _context():
    from ssmcore.mixer import Context

    return Context()


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scans_along_routes_are_scans_of_copies(dtype):
    routes = [Route.of(name) for name in ("raster", "column_reversed", "snake", "raster_reversed")]
    scans = torch.nn.ModuleList(SelectiveScan(6, dt_rank=2, d_state=3) for _ in routes).to(dtype)
    u = torch.randn(2, 12, 6, dtype=dtype)
    y = scan_routes(scans, u, route_tables(u, routes, (3, 4)))
    want = sum(
        route.scatter(scan(route.gather(u, (3, 4)), reverse=route.reverse).float(), (3, 4))
        for route, scan in zip(routes, scans, strict=True)
    )
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), want, **({} if dtype == torch.float32 else dict(rtol=2e-2, atol=2e-2)))


def test_scans_along_routes_compile():
    routes = [Route.of(name) for name in ("raster", "column_reversed")]
    scans = torch.nn.ModuleList(SelectiveScan(6, dt_rank=2, d_state=3) for _ in routes)

    def run(u, h, w):
        return scan_routes(scans, u, route_tables(u, routes, (h, w)))

    compiled, u = torch.compile(run, fullgraph=True, backend="aot_eager"), torch.randn(2, 12, 6)
    torch.testing.assert_close(compiled(u, 3, 4), run(u, 3, 4))
    torch.testing.assert_close(compiled(u, 2, 6), run(u, 2, 6))
