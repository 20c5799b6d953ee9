"""LinearSSM as the base of every forecaster: it follows any unit, any level, and covariates known for the future.

    s[t]  running scale: its square is (squared deviations so far + (r a)**2 / 4**(n-1)) / n, a = mean |x|, r fitted
    x'[t] = x[t] - s[t] B u[t]                                      the effect of the covariates u taken off
    y[t+1 .. t+H] = x'[t] + W f'[t] + s[t] b + s[t] B u[t+1 .. t+H]  f' the features of LinearSSM on x'

B has a row for each channel of a multivariate series; all items share it, as they share W.

All of it is causal and recursive, so that a stream of single values gives what the whole series gives, and all of it
scales with the unit of the series. Within one window only the first value is taken off, against cancellation.
"""

import torch
from torch import Tensor, nn

from .linear_ssm import LinearSSM, State

SMALLEST = 1e-9
"""Scale of a series that never changes, relative to its level."""
LARGEST_PIECE = 2e7
"""Numbers of one feature table; longer batches are cut by channels."""


class LinearBase(nn.Module):
    """Linear forecasts of (b, c, t) series in their own units.

    Args:
        linear: The state-space model and its read-out, which is for a series of scale 1.
        known: Covariates known for the future, q.
        channels: c, each with its own effect of them.
    """

    def __init__(self, linear: LinearSSM, known: int, channels: int):
        super().__init__()
        self.linear = linear
        self.register_buffer("effect", torch.zeros(known, channels, dtype=torch.float64))
        self.register_buffer("ratio", torch.zeros((), dtype=torch.float64))

    # -- a whole series at once -------------------------------------------------------------------------------------

    def scales(self, target: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Running scale and level.

        Args:
            target: Less the first value, float64, NaN where missing, shape (b, c, t).
            first: Shape (b, c).
        Returns:
            Scale and mean |value|, positive, both (b, c, t).
        """
        return self._scale(self.sums(target, first))

    def sums(self, target: Tensor, first: Tensor) -> Tensor:
        """Count, sum, squares and sizes so far: target (b, c, t) and first (b, c) to (b, c, t, 4)."""
        return _terms(target, first[..., None]).cumsum(-2)

    def adjusted(self, target: Tensor, known: Tensor | None, scale: Tensor) -> Tensor:
        """Less the effect of the covariates: target (b, c, t), known (b, t, q), scale (b, c, t) to (b, c, t)."""
        return target if known is None else target - self.known_effect(known, scale)

    def known_effect(self, known: Tensor, scale: Tensor) -> Tensor:
        """What covariates add: known (b, ..., q) and scale (b, c, ...) or with axes of 1 to (b, c, ...)."""
        return scale * (known.double() @ self.effect).movedim(-1, 1)

    def forward(
        self, target: Tensor, known: Tensor | None, scale: Tensor, origins: Tensor, dt: Tensor | None = None
    ) -> Tensor:
        """Forecasts from many origins.

        Args:
            target: From the first value on, less that value, shape (b, c, t).
            known: Covariates at every step up to h after the last origin, shape (b, t + h, q); None without any.
            scale: From `scales`, shape (b, c, t).
            origins: Last steps seen, int64, shape (o,).
            dt: Time since the step before, shape (b, t); None is 1 everywhere.
        Returns:
            float64, shape (b, c, o, h).
        """
        t = target.shape[2]
        x = self.adjusted(target, None if known is None else known[:, :t], scale)
        piece = max(1, int(LARGEST_PIECE / (t * len(self.linear.angles))))
        parts = zip(x.split(piece, 1), scale[..., origins].split(piece, 1), strict=True)
        base = torch.cat([self._ahead(part, size, origins, dt) for part, size in parts], 1)
        if known is None:
            return base
        known = future_rows(known, origins, self.linear.prediction_length)
        return base + self.known_effect(known, scale[..., origins, None])

    def _ahead(self, x: Tensor, scale: Tensor, origins: Tensor, dt: Tensor | None) -> Tensor:
        """Forecasts (b, c, o, h) without covariates of x (b, c, t), at scales (b, c, o)."""
        b, c, t = x.shape
        rows = None if dt is None else dt.repeat_interleave(c, 0)
        features, last, _ = self.linear.features(x.reshape(b * c, t), rows)
        features, last = features[:, origins].view(b, c, len(origins), -1), last[:, origins].view(b, c, -1)
        return self.read_out(features, last, scale)

    def read_out(self, features: Tensor, last: Tensor, scale: Tensor) -> Tensor:
        """Features (..., f), last values (...), scales (...) to (..., h), without covariates."""
        linear = self.linear
        # The read-out is W (f - mean) / spread + b for scale 1: mean and b belong to the scale, f brings its own.
        moved = scale[..., None] * (linear.bias - (linear.feature_mean / linear.feature_scale) @ linear.weight)
        return last[..., None] + (features / linear.feature_scale) @ linear.weight + moved

    # -- one value at a time ----------------------------------------------------------------------------------------

    def init_state(self, batch: int, channels: int) -> State:
        """Before any value, of b items with c channels: tensors (b * c, ...), and `sums` (b, c, 4)."""
        zeros = torch.zeros(batch, channels, 4, dtype=torch.float64, device=self.ratio.device)
        return {"linear": self.linear.init_state(batch * channels), "sums": zeros}

    def step(
        self, value: Tensor, state: State, first: Tensor, known: Tensor | None, dt: Tensor | None
    ) -> tuple[State, Tensor, Tensor]:
        """Take in one value of every channel.

        Args:
            value: Less the first value, NaN where missing, shape (b, c).
            state: From `init_state` or `step`; not changed.
            first: Shape (b, c).
            known: The covariates of this step, shape (b, q); None without any.
            dt: Time since the step before, shape (b,); None is 1.
        Returns:
            The new state; scale and level, both (b, c).
        """
        sums = state["sums"] + _terms(value, first)
        scale, level = self._scale(sums)
        x = value if known is None else value - self.known_effect(known, scale)
        rows = None if dt is None else dt.repeat_interleave(value.shape[1])
        return {"linear": self.linear.step(x.flatten(), state["linear"], rows), "sums": sums}, scale, level

    def forecast(self, state: State, scale: Tensor, known: Tensor | None) -> Tensor:
        """What the state expects next: scale (b, c), known (b, h, q) to (b, c, h)."""
        features, last = self.linear.state_features(state["linear"])
        base = self.read_out(features.view(*scale.shape, -1), last.view(scale.shape), scale)
        return base if known is None else base + self.known_effect(known, scale[..., None])

    def _scale(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and level from (count, sum, squares, sizes), shape (..., 4)."""
        count, total, squares, sizes = sums.unbind(-1)
        some = count.clamp_min(1)
        level = sizes / some
        spread = (squares - total.square() / some).clamp_min(0)
        # One remembered deviation stands in, and is soon forgotten, until the series shows its own.
        scale = ((spread + (self.ratio * level).square() * torch.exp2(2 - 2 * some)) / some).sqrt()
        return torch.maximum(scale, SMALLEST * level).clamp_min(1e-30), level


def _terms(value: Tensor, first: Tensor) -> Tensor:
    observed = ~value.isnan()
    clean = torch.where(observed, value, 0.0)
    size = torch.where(observed, (clean + first).abs(), 0.0)
    return torch.stack([observed.double(), clean, clean.square(), size], -1)


def future_rows(known: Tensor, origins: Tensor, horizon: int) -> Tensor:
    """Covariates of the steps after each origin: (b, t + h, q) to (b, o, h, q)."""
    return known[:, origins[:, None] + 1 + torch.arange(horizon, device=origins.device)]
