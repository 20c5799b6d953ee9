"""The selective scan module is the inside of Mamba, whichever way the route goes."""

import pytest
import torch

from ssmcore import create_mixer
from ssmcore.routes import Route, route_tables
from ssmcore.selective import SelectiveScan, scan_routes


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
