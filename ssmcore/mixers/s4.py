"""S4: one linear time-invariant system a channel, whose state matrix is diagonal plus low-rank, as HiPPO's is.

    core     h' = A h + B x,  y = 2 Re(C . h) + D x,  A = diag(Λ) - P Q*,  sampled by the bilinear rule with step dt
    out      glu(out_proj gelu(y))

The kernel comes from its generating function, K(z) = sum_t K[t] z^t, which the low rank turns into four Cauchy sums:

    K(z) = 2 / (1 + z) (k_CB - k_CP k_QB / (1 + k_QP)),   k_uv = sum_n u_n v_n / (s - Λ_n),   s = 2/dt (1 - z) / (1 + z)

The paper takes |z| = 1 and weights C by 1 - A^L, which ties C to one length L. Here z runs on a circle of radius < 1,
in double precision, so that what comes after the last tap has faded when it wraps around: any length, from one C.
Tied, Q = P, the system is stable whatever the parameters (A + A* < 0), as SaShiMi needs to generate.

Code to paper: A_log, A_imag = log -Re Λ, Im Λ; P, Q, B, C with Re and Im side by side; log_dt = log Δ; one of each
conjugate pair is kept. The real state (b, d, 2 m) holds Re and Im of the m complex states, pair by pair.
Source: Gu et al. 2022, S4, sec. 3 and appendix C; Goel et al. 2022, SaShiMi, sec. 4.1 (Q = P).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..array_types import Complex, Float, Tokens
from ..discretization import discretize_dense
from ..functional import at_least_float32
from ..hippo import fout_dplr, legs_dplr
from ..mixer import ParamSpec
from ..steps import log_uniform
from .channel_lti import ChannelLti, Discrete
from .dense_lti import complex_of

ALIAS = 1e-11
"""How much of a tap that wraps around is left: with it, aliasing and rounding are equally small in double precision."""
CAUCHY_TERMS = 1 << 21
"""Terms of the Cauchy sums that are held at once."""


@dataclass(frozen=True, kw_only=True)
class S4Config:
    """Options of S4."""

    d_state: int = 64
    """State size of a channel n, counted in real numbers, even."""
    init: Literal["legs", "fout"] = "legs"
    """The initial HiPPO system."""
    low_rank: Literal["tied", "free"] = "tied"
    """A = Λ - P P*, always stable; or Λ - P Q* with Q a parameter of its own."""
    systems: int | None = 1
    """Copies of (Λ, P, B) that are trained, each for an equal share of the channels; None gives each its own."""
    dt_min: float = 1e-3
    """Smallest initial step."""
    dt_max: float = 0.1
    """Largest initial step."""
    out: Literal["glu", "linear"] = "glu"
    """The map after the core: gated, or plain."""
    two_sided: bool = False
    """Also look ahead: a second C for the tokens that come, of the same systems. There is no state then."""
    lr_scale: float = 0.1
    """Factor on the learning rate of Λ, P, B and the steps, which do not decay."""
    dt_lr_scale: float | None = None
    """The same for the steps alone; None is lr_scale."""


class S4(ChannelLti):
    """The S4 layer, (b, l, d) to (b, l, d). State: ssm (b, d, n), real.

    Raises:
        ValueError: d_state is odd, or the systems do not divide d_model.
    """

    title = "State space a channel, diagonal plus low rank (DPLR)"
    operator = "fft_conv"
    Config = S4Config
    examples = (
        {"d_state": 8},
        {"d_state": 4, "init": "fout", "low_rank": "free", "systems": 2, "out": "linear"},
        {"d_state": 4, "two_sided": True},
    )

    def __init__(self, d_model: int, config: S4Config | None = None):
        super().__init__(d_model, config)
        c: S4Config = self.config
        systems = d_model if c.systems is None else c.systems
        if systems < 1 or d_model % systems:
            raise ValueError(f"S4: {systems} systems do not divide d_model={d_model}")
        form = legs_dplr(c.d_state) if c.init == "legs" else fout_dplr(c.d_state)
        self.d_state, self.channels = c.d_state, d_model
        self.log_dt = nn.Parameter(log_uniform(d_model, c.dt_min, c.dt_max).log())
        # FouT's poles lie on the imaginary axis, which has no logarithm.
        self.A_log = nn.Parameter((-form.Lambda.real).clamp(min=1e-4).log().float().repeat(systems, 1))
        self.A_imag = nn.Parameter(form.Lambda.imag.float().repeat(systems, 1))
        self.B, self.P = (nn.Parameter(torch.view_as_real(t).float().repeat(systems, 1, 1)) for t in (form.B, form.P))
        if c.low_rank == "free":
            self.Q = nn.Parameter(self.P.detach().clone())
        self.C = nn.Parameter(torch.randn(d_model, c.d_state // 2, 2) * 0.5**0.5)
        if c.two_sided:
            self.C_back = nn.Parameter(torch.randn(d_model, c.d_state // 2, 2) * 0.5**0.5)
            self.causal = self.recurrent = self.lti = False
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, (2 if c.out == "glu" else 1) * d_model)

    def param_spec(self) -> dict[str, ParamSpec]:
        """The system and its steps learn slowly and do not decay. No shapes, raises nothing."""
        names = ("log_dt", "A_log", "A_imag", "B", "P", *(("Q",) if self.config.low_rank == "free" else ()))
        c = self.config
        step = c.lr_scale if c.dt_lr_scale is None else c.dt_lr_scale
        slow = dict.fromkeys(names, ParamSpec(decay=False, lr_scale=c.lr_scale))
        return {**slow, "log_dt": ParamSpec(decay=False, lr_scale=step)}

    def activate(self, y: Tokens) -> Tokens:
        """out_proj gelu(y), gated or not, shape (b, l, d). Raises nothing."""
        out = self.out_proj(F.gelu(y))
        return F.glu(out, dim=-1) if self.config.out == "glu" else out

    def continuous(self) -> tuple[Complex[Tensor, "d m"], ...]:
        """Λ, P, Q, B and C of every channel, in complex64 or wider, shape (d, m) each. Raises nothing."""
        Lambda = torch.complex(-at_least_float32(self.A_log).exp(), at_least_float32(self.A_imag))
        P, B = complex_of(self.P), complex_of(self.B)
        Q = complex_of(self.Q) if self.config.low_rank == "free" else P
        share = self.d_model // len(Lambda)
        return *(t.repeat_interleave(share, 0) for t in (Lambda, P, Q, B)), complex_of(self.C)

    def discrete(self) -> Discrete:
        """The bilinear systems as real matrices; see ChannelLti."""
        Lambda, P, Q, B, C = self.continuous()
        zero = torch.zeros_like(Lambda.imag)
        turn = torch.stack([Lambda.imag, zero], -1).flatten(-2)[..., :-1]
        diagonal = torch.stack([Lambda.real, Lambda.real], -1).flatten(-2)
        A = torch.diag_embed(diagonal) + torch.diag_embed(turn, -1) - torch.diag_embed(turn, 1)
        A = A - 2 * _pairs(P)[..., None] * _pairs(Q)[..., None, :]
        A, B = discretize_dense(A, _pairs(B)[..., None], at_least_float32(self.log_dt).exp(), "bilinear")
        return Discrete(A, B[..., 0], 2 * _pairs(C.conj()))

    def advance(
        self, u: Float[Tensor, "r d"], h: Float[Tensor, "r d n"]
    ) -> tuple[Float[Tensor, "r d"], Float[Tensor, "r d n"]]:
        """One step in O(n) by the Woodbury identity; see ChannelLti."""
        Lambda, P, Q, B, C = self.continuous()
        half = at_least_float32(self.log_dt).exp()[:, None] / 2
        h = torch.view_as_complex(h.unflatten(-1, (-1, 2)).contiguous()).to(Lambda.dtype)

        def project(x: Tensor) -> Tensor:
            """Q* x over both of each conjugate pair."""
            return 2 * (Q.conj() * x).sum(-1, keepdim=True).real

        right = h + half * (Lambda * h - P * project(h)) + 2 * half * B * u[..., None]
        inverse = 1 / (1 - half * Lambda)
        h = inverse * right
        h = h - half * inverse * P * (project(h) / (1 + half * project(inverse * P)))
        return 2 * (C * h).sum(-1).real, _pairs(h)

    def kernel(self, length: int) -> Float[Tensor, "l d"]:
        """The impulse response by the generating function; see ChannelLti."""
        if length < 0:
            raise ValueError(f"kernel: length={length}, expected at least 0")
        taps = self.taps(length, self.C)
        return torch.cat([taps[:1] + at_least_float32(self.D), taps[1:]]) if length else taps

    def kernel_back(self, length: int) -> Float[Tensor, "l d"] | None:
        """The kernel of the tokens ahead; see ChannelLti."""
        return self.taps(length, self.C_back) if self.config.two_sided else None

    def taps(self, length: int, C: Float[Tensor, "d m 2"]) -> Float[Tensor, "l d"]:
        """The kernel without the skip, as C reads it, in float32 or wider, shape (l, d). Raises nothing."""
        if length == 0:
            return at_least_float32(self.D).new_zeros(0, self.d_model)
        n = 2 * length
        radius = ALIAS ** (1 / n)
        wide = [t.to(torch.complex128) for t in (*self.continuous()[:-1], complex_of(C))]
        dt = self.log_dt.double().exp()
        angle = torch.arange(n // 2 + 1, dtype=torch.float64, device=dt.device) * (2 * math.pi / n)
        z = torch.polar(torch.full_like(angle, radius), -angle)
        size = max(1, CAUCHY_TERMS // wide[0].numel())
        pieces = [checkpoint(generating_function, *wide, dt, piece, use_reentrant=False) for piece in z.split(size)]
        faded = torch.fft.irfft(torch.cat(pieces, -1), n=n)[:, :length].T
        taps = faded * radius ** -torch.arange(length, dtype=torch.float64, device=dt.device)[:, None]
        return taps.to(at_least_float32(self.D).dtype)


def generating_function(
    Lambda: Complex[Tensor, "d m"],
    P: Complex[Tensor, "d m"],
    Q: Complex[Tensor, "d m"],
    B: Complex[Tensor, "d m"],
    C: Complex[Tensor, "d m"],
    dt: Float[Tensor, "d"],
    z: Complex[Tensor, "f"],
) -> Complex[Tensor, "d f"]:
    """sum_t K[t] z^t of diag(Λ) - P Q*, sampled by the bilinear rule, one of each conjugate pair given.

    With s = (2/dt) (1 - z)/(1 + z), a pair's two terms are one of real weights, 2 (s Re uv - Re(uv Λ*)) / e, and
    e = (s - Λ)(s - Λ*) = s^2 - 2 s Re Λ + |Λ|^2 is a matrix product, three real numbers of a pair by three of z.

    Args:
        Lambda, P, Q, B, C: The systems, shape (d, m).
        dt: Steps, shape (d,).
        z: Where, |z| < 1, shape (f,).
    Returns:
        K(z), shape (d, f).
    Source: Gu et al. 2022, S4, appendix C.3.
    """
    w = dt[:, None] * (1 + z)
    s = 2 * (1 - z) / w
    at_z = torch.stack([torch.cat([t.real, t.imag], -1) for t in (s * s, s, torch.ones_like(s))], 1)
    of_pair = [torch.ones_like(Lambda.real), -2 * Lambda.real, Lambda.real**2 + Lambda.imag**2]
    e = torch.stack(of_pair, -1) @ at_z  # (d, m, 2 f): the real parts, then the imaginary ones
    real, imag = e.unflatten(-1, (2, -1)).unbind(-2)
    scale = (real * real + imag * imag).reciprocal()
    inverse = torch.cat([real * scale, imag * -scale], -1)
    products = torch.stack([C * B, C * P, Q.conj() * B, Q.conj() * P], 1)  # (d, 4, m)
    weights = torch.cat([products.real, (products * Lambda[:, None].conj()).real], 1)
    sums = torch.complex(*(weights @ inverse).unflatten(-1, (2, -1)).unbind(-2))
    k_cb, k_cp, k_qb, k_qp = (2 * (s[:, None] * sums[:, :4] - sums[:, 4:])).unbind(1)
    return 2 / (1 + z) * (k_cb - k_cp * k_qb / (1 + k_qp))


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of an S4 mixer from those of a kernel of the authors' releases 3 and 4.

    Their C is that of a kernel cut off at the length they trained with; here that is undone.

    Args:
        weights: By their last names: C (1, d, m, 2), B and P (1, s, m, 2) and, in release 3, log_dt (d,), inv_w_real,
            w_imag (s, m), L; in release 4, inv_dt (d, 1), A_real, A_imag (s, m), l_kernel, and both transforms "exp".
    Returns:
        log_dt (d,), A_log, A_imag (s, m), B, P (s, m, 2), C (d, m, 2).
    Raises:
        ValueError: A name is missing, or the low rank or the number of outputs is not 1.
    Source: state-spaces/s4, src/models/s4/s4.py at v3.0.0, src/models/sequence/kernels/ssm.py at v4.0.0.
    """
    names = (
        ("inv_w_real", "w_imag", "log_dt", "L") if "log_dt" in weights else ("A_real", "A_imag", "inv_dt", "l_kernel")
    )
    if missing := {"C", "B", "P", *names} - set(weights):
        raise ValueError(f"from_published: weights lack {sorted(missing)}")
    if any(weights[name].shape[0] != 1 for name in ("C", "B", "P")):
        shapes = {name: tuple(weights[name].shape) for name in ("C", "B", "P")}
        raise ValueError(f"from_published: shapes {shapes}, expected a first axis of 1: rank 1 and one output")
    real, imag, step, length = (weights[name] for name in names)
    ours = {
        "log_dt": step.flatten(),
        "A_log": real,
        "A_imag": imag if "log_dt" in weights else -imag,
        **{name: weights[name][0] for name in ("B", "P", "C")},
    }
    if int(length):
        ours["C"] = _uncut(ours, int(length))
    return {name: t.clone() for name, t in ours.items()}


@torch.no_grad()
def _uncut(weights: Mapping[str, Tensor], length: int) -> Float[Tensor, "d m 2"]:
    """C of the whole kernel from (1 - A^length)^T C, as real numbers (Re, -Im), in double precision."""
    d, m, _ = weights["C"].shape
    config = S4Config(d_state=2 * m, systems=len(weights["A_log"]), out="linear")
    mixer = S4(d, config).double()
    for name, t in weights.items():
        mixer.get_parameter(name).copy_(t)
    A, _, C = mixer.discrete()
    eye = torch.eye(2 * m, dtype=A.dtype, device=A.device)
    whole = torch.linalg.solve((eye - torch.linalg.matrix_power(A, length)).mT, C)
    return torch.view_as_real(
        torch.view_as_complex(whole.unflatten(-1, (-1, 2)).contiguous()).conj().resolve_conj() / 2
    ).float()


def _pairs(x: Complex[Tensor, "... m"]) -> Float[Tensor, "... n"]:
    """Re and Im side by side, (..., m) to (..., 2 m)."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2)
