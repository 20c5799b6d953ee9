"""HiPPO memory: each channel's past as coefficients on an orthonormal basis, read out by learned weights.

    legs               c' = (A c + B x) / t     all of the past, evenly weighted; has no timescale
    legt, fout, lagt   c' =  A c + B x          a sliding window, or a past that fades
    y = out_proj gelu(C . c + D x)

A and B are HiPPO's and fixed; sampling is exact for inputs held over their step (LegS: in log-time). The LMU is "legt".
Steps of the tokens (`dt`) are the time that each input is held for.
Source: Gu et al. 2020, HiPPO; Voelker et al. 2019, Legendre memory units; Gu et al. 2022, How to train your HiPPO.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..array_types import Float, TimeSteps, Tokens
from ..discretization import discretize_dense
from ..functional import at_least_float32
from ..hippo import hippo
from ..mixer import Context
from ..state import State
from .channel_lti import ChannelLti, Discrete

PIECE = 64
"""Transitions that are made at once: one by one is slow, all together takes l n^2 of memory."""


@dataclass(frozen=True, kw_only=True)
class HippoMemoryConfig:
    """Options of the HiPPO memory."""

    measure: Literal["legs", "legt", "lagt", "fout"] = "legs"
    """What of the past is kept, and how it is weighted."""
    d_state: int = 32
    """Coefficients of a channel, n."""
    window: float = 64.0
    """Length of the sliding window, or time in which the past fades, in tokens; "legs" has none."""

    def __post_init__(self):
        if self.window <= 0:
            raise ValueError(f"HippoMemoryConfig: window={self.window}, expected more than 0")


class HippoMemory(ChannelLti):
    """The memory layer, (b, l, d) to (b, l, d). State: ssm (b, d, n), real; "legs" adds time (b,).

    Raises:
        ValueError: The measure is unknown, or d_state does not fit it.
    """

    title = "The past as HiPPO coefficients (LegS, LegT, LagT, FouT)"
    operator = "loop"
    Config = HippoMemoryConfig
    examples = ({"d_state": 4}, {"d_state": 6, "measure": "fout", "window": 20.0}, {"d_state": 3, "measure": "lagt"})
    takes_dt = True

    def __init__(self, d_model: int, config: HippoMemoryConfig | None = None):
        super().__init__(d_model, config)
        c: HippoMemoryConfig = self.config
        self.legs = c.measure == "legs"
        self.lti = not self.legs
        if self.lti:
            self.operator = "fft_conv"
        self.d_state, self.channels = c.d_state, d_model
        hippo(c.measure, c.d_state)  # a size that does not fit is refused here
        self.C = nn.Parameter(torch.randn(d_model, c.d_state) / c.d_state**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def init_state(self, batch: int, *, device=None, dtype=None) -> State:
        """Zeros: ssm (b, d, n); time (b,), how much has passed. Raises nothing."""
        state = super().init_state(batch, device=device, dtype=dtype)
        return {**state, "time": torch.zeros_like(state["ssm"][:, 0, 0])} if self.legs else state

    def activate(self, y: Tokens) -> Tokens:
        """out_proj gelu(y), shape (b, l, d). Raises nothing."""
        return self.out_proj(F.gelu(y))

    def discrete(self) -> Discrete:
        """The sliding window at steps of one token, the same in every channel; see ChannelLti."""
        C = at_least_float32(self.C)
        A, B = self.transitions(torch.ones(1, dtype=torch.float64, device=C.device))
        return Discrete(A.expand(self.d_model, -1, -1), B.expand(self.d_model, -1), C)

    def transitions(
        self, dt: Float[Tensor, "*s"], time: Float[Tensor, "*s"] | None = None
    ) -> tuple[Float[Tensor, "*s n n"], Float[Tensor, "*s n"]]:
        """What a step does to the coefficients, and what it writes, in the dtype of C.

        Args:
            dt: Length of the steps, shape (*s).
            time: Time before the steps, shape (*s); "legs" needs it.
        Returns:
            Matrices (*s, n, n) and weights (*s, n).
        """
        scale = 1.0 if self.legs else self.config.window
        A, B = (t.to(dt.device) / scale for t in hippo(self.config.measure, self.d_state))
        if time is not None:  # log-time; at time 0 there is no past, and the input's mean is the input
            first = time <= 0
            dt = torch.log1p(dt.double() / torch.where(first, 1, time.double()))
        E, weight = discretize_dense(A, B[:, None], dt.double(), "zoh")
        weight = weight[..., 0]
        if time is not None:
            start = torch.zeros_like(weight)
            start[..., 0] = 1
            E = torch.where(first[..., None, None], 0, E)
            weight = torch.where(first[..., None], start, weight)
        return E.to(self._wide), weight.to(self._wide)

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.C.dtype, torch.float32)

    def core(self, x: Tokens, state: State | None, ctx: Context) -> tuple[Tokens, State | None]:
        """The linear map: x and state to y and state, shapes as in `mix`. Raises nothing of its own."""
        if not self.legs and ctx.dt is None:
            return super().core(x, state, ctx)
        with torch.autocast(x.device.type, enabled=False):
            u = at_least_float32(x).to(self._wide)
            dt = torch.ones_like(u[..., 0]) if ctx.dt is None else ctx.dt.to(u.dtype)
            rows = ctx.rows
            lengths = torch.full_like(u[:, 0, 0], u.shape[1], dtype=torch.int64) if rows is None else rows.lengths
            padded, steps = (u, dt) if rows is None else (rows.to_padded(u), rows.to_padded(dt[..., None])[..., 0])
            before = self.init_state(len(lengths), device=x.device) if state is None else state
            y, new = self._loop(padded, steps, lengths, before)
            y = (y if rows is None else rows.from_padded(y)) + at_least_float32(self.D) * u
        return y.to(x.dtype), new

    def _loop(self, u: Tokens, dt: TimeSteps, lengths: Tensor, state: State) -> tuple[Tokens, State]:
        """One step after the other over right-padded rows, without the skip."""
        C, h = at_least_float32(self.C), state["ssm"].to(u.dtype)
        passed = dt.double().cumsum(1)
        ys = []
        for piece in torch.arange(u.shape[1]).split(PIECE):
            span = slice(int(piece[0]), int(piece[-1]) + 1)
            time = state["time"].double()[:, None] + (passed - dt)[:, span] if self.legs else None
            step = dt[:, span]
            if all((t == t[:1]).all() for t in (step, time) if t is not None):  # all rows take the same steps
                step, time = step[:1], None if time is None else time[:1]
            E, weight = self.transitions(step, time)
            for i, t in enumerate(piece.tolist()):
                after = h @ E[:, i].mT + u[:, t, :, None] * weight[:, i, None]
                h = torch.where((t < lengths)[:, None, None], after, h)
                ys.append((after * C).sum(-1))
        new = {"ssm": h}
        if self.legs:
            last = (lengths - 1).clamp(min=0)[:, None]
            total = torch.where(lengths > 0, passed.gather(1, last)[:, 0], 0)
            new["time"] = (state["time"].double() + total).to(state["time"].dtype)
        return torch.stack(ys, 1), new
