"""The selective part of Mamba by itself: what every model that scans its tokens along routes is made of.

    dt, B, C = x_proj u;   dt = softplus(dt_proj dt)
    h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t],   y[t] = (C[t] . h[t] + D u[t]) silu(z[t])

Mamba puts one of these between its projections. Vim has two, LocalVim four with a convolution each, VMamba four behind
one 2-D convolution, PlainMamba one that is used four times. A route is the name of a token order (`ssmcore.orders`);
"<order>_reversed" is that order from its last token to its first, which is a scan in reverse and no copy of the tokens.

Code to paper: dt = Δ, A = -exp(A_log), B, C, D as there; b batch, l length, d channels, n state size.
Source: Gu & Dao 2023, Mamba, sec. 3.2-3.6.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from .array_types import Float, Int, SegmentBounds, Tokens
from .functional import at_least_float32, routed_scan, selective_scan
from .steps import inverse_softplus, log_uniform


class SelectiveScan(nn.Module):
    """The selective scan with its own projections and poles, (b, l, d) to (b, l, d). Raises nothing of its own."""

    def __init__(self, d: int, *, dt_rank: int, d_state: int = 16, dt_min: float = 1e-3, dt_max: float = 0.1):
        super().__init__()
        self.dt_rank, self.d_state = dt_rank, d_state
        self.x_proj = nn.Linear(d, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d, bias=True)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(dt_rank**-0.5), dt_rank**-0.5)
            self.dt_proj.bias.copy_(inverse_softplus(log_uniform(d, dt_min, dt_max)))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d, 1))
        self.D = nn.Parameter(torch.ones(d))

    def no_decay(self) -> tuple[str, ...]:
        """Names of the parameters that weight decay should leave alone. No shapes, raises nothing."""
        return ("A_log", "D", "dt_proj.bias")

    def project(self, u: Tokens) -> tuple[Tokens, Float[torch.Tensor, "b l n"], Float[torch.Tensor, "b l n"]]:
        """The step before its bias and softplus, float32, shape (b, l, d); and B and C, shape (b, l, n).

        Raises nothing.
        """
        low_rank, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        with torch.autocast(u.device.type, enabled=False):
            weight = at_least_float32(self.dt_proj.weight)
            return F.linear(low_rank.to(weight.dtype), weight), B, C

    def scan(
        self,
        u: Tokens,
        dt: Tokens,
        B: Float[torch.Tensor, "b l n"],
        C: Float[torch.Tensor, "b l n"],
        *,
        z: Tokens | None = None,
        reverse: bool = False,
        cu_seqlens: SegmentBounds | None = None,
    ) -> Tokens:
        """Scan u by given steps and weights.

        Args:
            u: Input, shape (b, l, d), in the order of the scan, as are dt, B, C and z.
            dt: Step before bias and softplus, shape (b, l, d).
            B: Shape (b, l, n).
            C: Shape (b, l, n).
            z: Gate, shape (b, l, d).
            reverse: From the last token to the first.
            cu_seqlens: Bounds of packed rows, where the state starts anew, shape (r + 1,).
        Returns:
            y, shape and dtype of u.
        Raises:
            ValueError: A shape disagrees.
        """
        y = selective_scan(
            u,
            dt,
            -at_least_float32(self.A_log).exp(),
            B,
            C,
            D=self.D,
            z=z,
            dt_bias=self.dt_proj.bias,
            dt_softplus=True,
            cu_seqlens=cu_seqlens,
            reverse=reverse,
        )
        assert isinstance(y, torch.Tensor)
        return y

    def forward(
        self,
        u: Tokens,
        *,
        z: Tokens | None = None,
        reverse: bool = False,
        cu_seqlens: SegmentBounds | None = None,
    ) -> Tokens:
        """Project u and scan it; arguments, result and errors as in `scan`."""
        return self.scan(u, *self.project(u), z=z, reverse=reverse, cu_seqlens=cu_seqlens)


def scan_routes(scans: Iterable[nn.Module], u: Tokens, tables: Int[torch.Tensor, "k l"]) -> Tokens:
    """The sum of k scans over the same tokens, each with weights and an order of its own, without permuted copies.

    Args:
        scans: One a route, all of the same sizes.
        u: Tokens, shape (b, l, d).
        tables: As `route_tables` makes them, shape (k, l).
    Returns:
        Shape and dtype of u.
    Raises:
        ValueError: A shape disagrees, or there are not as many scans as tables.
    Source: Liu et al. 2024, VMamba, sec. 4.3.
    """
    own = [scan for scan in scans if isinstance(scan, SelectiveScan)]
    rank, n = own[0].dt_rank, own[0].d_state
    projected = F.linear(u, torch.cat([scan.x_proj.weight for scan in own])).unflatten(2, (len(own), -1))
    low_rank, B, C = projected.movedim(2, 0).split([rank, n, n], dim=-1)
    return routed_scan(
        u,
        low_rank,
        -at_least_float32(torch.stack([scan.A_log for scan in own])).exp(),
        B,
        C,
        tables,
        D=torch.stack([scan.D for scan in own]),
        dt_bias=torch.stack([scan.dt_proj.bias for scan in own]),
        dt_weight=torch.stack([scan.dt_proj.weight for scan in own]),
        dt_softplus=True,
    )
