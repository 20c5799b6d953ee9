"""LDStack: a layer that averages small linear dynamical systems, each driven by one projection of the token.

    h_k[t] = Λ_k h_k[t-1] + 1 (p_k . x[t]),   y = mean over k of 2 Re(C_k h_k) + D x,   out = out_proj gelu(y)

A stack of such layers stands for a nonlinear recurrent network; its nonlinearity is between the layers, so each one is
a parallel scan. Eigenvalues are conjugate pairs, λ = exp(-e^nu + i theta); at the start on the unit circle, at
Chebyshev nodes, or the roots of random polynomials. Steps of the tokens (`dt`) give λ^dt and the input weight of
zero-order hold.
Source: Kaul 2020, Linear dynamical systems as a core computational primitive, sec. 3-4.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Complex, Inexact, TimeSteps, Tokens
from ..functional import at_least_float32
from ..mixer import ParamSpec
from .dense_lti import DenseLti, complex_of


@dataclass(frozen=True, kw_only=True)
class LdStackConfig:
    """Options of LDStack."""

    units: int = 8
    """Systems k."""
    d_state: int = 16
    """State size of a system, counted in real numbers, even."""
    init: Literal["circle", "chebyshev", "random"] = "circle"
    """Where the eigenvalues start."""
    radius: float = 0.99
    """Largest initial size of an eigenvalue, below 1."""
    lr_scale: float = 0.25
    """Factor on the learning rate of the eigenvalues, which do not decay."""

    def __post_init__(self):
        if self.units < 1 or self.d_state < 2 or self.d_state % 2 or not 0 < self.radius < 1:
            raise ValueError(
                f"LdStackConfig: units={self.units}, d_state={self.d_state}, radius={self.radius}, expected at least "
                "one system of an even size and a radius in (0, 1)"
            )


class LdStack(DenseLti):
    """The LDStack layer, (b, l, d) to (b, l, d). State: ssm (b, k n), complex. Raises nothing of its own."""

    title = "Mean of small linear dynamical systems"
    operator = "linear_recurrence"
    Config = LdStackConfig
    examples = ({"units": 3, "d_state": 4}, {"units": 2, "d_state": 6, "init": "chebyshev"}, {"init": "random"})
    readout = 2.0

    def __init__(self, d_model: int, config: LdStackConfig | None = None):
        super().__init__(d_model, config)
        c: LdStackConfig = self.config
        n = c.d_state // 2
        self.d_state = c.units * n
        roots = torch.cat([initial_roots(c.init, n) for _ in range(c.units)])
        size = roots.abs().clamp(1e-3, c.radius)
        self.nu_log = nn.Parameter((-size.log()).log().float())
        self.theta = nn.Parameter(roots.angle().float())
        self.p = nn.Parameter(torch.randn(c.units, d_model) / math.sqrt(d_model))
        self.C = nn.Parameter(torch.randn(d_model, self.d_state, 2) / math.sqrt(c.d_state))
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def param_spec(self) -> dict[str, ParamSpec]:
        """Eigenvalues learn slowly and do not decay. No shapes, raises nothing."""
        return dict.fromkeys(("nu_log", "theta"), ParamSpec(decay=False, lr_scale=self.config.lr_scale))

    def exponents(self) -> Complex[Tensor, "n"]:
        """log λ, shape (k n,). Raises nothing."""
        return torch.complex(-at_least_float32(self.nu_log).exp(), at_least_float32(self.theta))

    def modes(self, dt: TimeSteps | None) -> tuple[Inexact[Tensor, "... n"], Inexact[Tensor, "... n"]]:
        """λ and 1, or their like for the steps dt; see DenseLti."""
        log_lambda = self.exponents()
        if dt is None:
            return log_lambda.exp(), torch.ones_like(log_lambda)
        u = log_lambda * dt.to(log_lambda.real.dtype)[..., None]
        return u.exp(), torch.expm1(u) / torch.expm1(log_lambda)

    def maps(self) -> tuple[Complex[Tensor, "n d"], Complex[Tensor, "d n"]]:
        """Each system's projection, once for every state of it, and the weights of the mean. Raises nothing."""
        C = complex_of(self.C) / self.config.units
        return at_least_float32(self.p).repeat_interleave(self.config.d_state // 2, 0).to(C.dtype), C

    def activate(self, y: Tokens) -> Tokens:
        """out_proj gelu(y), shape (b, l, d). Raises nothing."""
        return self.out_proj(F.gelu(y))


def initial_roots(init: str, n: int) -> Complex[Tensor, "n"]:
    """One of each of n conjugate pairs of eigenvalues, shape (n,), complex128.

    Args:
        init: "circle": even on the unit circle; "chebyshev": the real nodes of degree n; "random": roots in the upper
            half plane, then real ones, of a polynomial of degree 2 n with normal coefficients.
        n: Pairs.
    Raises:
        ValueError: No such init.
    """
    at = (2 * torch.arange(n, dtype=torch.float64) + 1) * math.pi / (2 * n)
    if init == "circle":
        return torch.polar(torch.ones_like(at), at)
    if init == "chebyshev":
        return at.cos().to(torch.complex128)
    if init != "random":
        raise ValueError(f"initial_roots: init={init!r}, expected circle, chebyshev or random")
    companion = torch.diag(torch.ones(2 * n - 1, dtype=torch.float64), -1)
    companion[0] = torch.randn(2 * n, dtype=torch.float64)
    roots = torch.linalg.eigvals(companion)
    return roots[roots.imag.sort(descending=True).indices][:n]
