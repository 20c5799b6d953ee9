"""LinearSSM: a diagonal linear state-space model with fixed poles and a read-out fitted in closed form.

    z[t] = p z[t-1] + (1 - |p|) x[t]                        one complex state for each pole p, from x[first] on
    f[t] = Re, Im of (z[t] - (response of z to a constant) x[t])
    y[t+1 .. t+H] = x[t] + W (f[t] - mean) / scale + b      W shared by all series; W = b = 0 is the naive forecast

A pole p = exp(-1/tau + i w) remembers for about tau steps and resonates at w radians a step. A finite context of L
values replaces z[t] by z[t] - p**L z[t-L], which is the same sum cut after L terms, so nothing older is used.

A missing value (NaN) is a skipped measurement: it adds nothing to z nor to the response that is subtracted, and the
feature is divided by the share of |p|-weighted memory that was observed; x[t] is then the last value seen.

Irregular steps: a value that comes `dt` steps after the one before takes p**dt in place of p, the exact solution of the
same continuous system between two samples, the value held in between. Another sampling rate is one dt for all.

    b  series (batch)      t  time steps      n  poles      f  features (2 n)      h  prediction_length
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssmcore.functional import linear_recurrence

State = dict[str, Tensor]
CHUNK = 16
"""Steps of one matrix product of `filter_bank`, whose kernel grows with the square."""


def default_poles(
    periods: Sequence[int],
    context_length: int | None,
    *,
    time_constants: Sequence[float] | None = None,
    harmonics: Sequence[int] = (12, 3),
) -> tuple[Tensor, Tensor]:
    """Memories from two steps to thirty seasons, each at frequency zero and at the harmonics of every season.

    Args:
        periods: Seasonal periods in steps, shortest first.
        context_length: Values a forecast may use, or None; longer memories and periods make no sense there.
        time_constants: Memories in steps, instead of the default ones.
        harmonics: How many harmonics of each period, as far as the period has them.
    Returns:
        Time constants in steps and angular frequencies in radians a step, both float64, shape (n,).
    Raises:
        ValueError: A time constant is not positive.
    """
    limit = context_length or math.inf
    periods = [period for period in periods if period <= limit] or [min(periods[0], limit)]
    if time_constants is None:
        season = max(periods[0], 2)
        short = [2.0 * 3**k for k in range(32) if 2 * 3**k <= season / 2]
        time_constants = [*short, *(float(season * k) for k in (1, 3, 7, 14, 30))]
    if min(time_constants) <= 0:
        raise ValueError(f"default_poles: time_constants must be positive, got {min(time_constants)}")
    memories = sorted({min(float(tau), float(limit)) for tau in time_constants})
    angles = [0.0]
    for period, count in zip(periods, harmonics, strict=False):
        angles += [2 * math.pi * k / period for k in range(1, min(count, period // 2) + 1)]
    angles = sorted(set(angles))
    grid = [(tau, angle) for tau in memories for angle in angles]
    tau, angle = torch.tensor(grid, dtype=torch.float64).unbind(-1)
    return tau, angle


class LinearSSM(nn.Module):
    """Forecast every series from its own past with one shared linear read-out. float64 throughout.

    Args:
        prediction_length: Steps to forecast, h.
        time_constants: Memory of each pole in steps, shape (n,).
        angles: Frequency of each pole in radians a step, shape (n,).
        context_length: Values a forecast may use; None for all since the first.
    """

    def __init__(
        self, prediction_length: int, time_constants: Tensor, angles: Tensor, context_length: int | None = None
    ):
        super().__init__()
        self.prediction_length = prediction_length
        self.context_length = context_length
        features = 2 * len(time_constants)
        self.register_buffer("time_constants", time_constants.double())
        self.register_buffer("angles", angles.double())
        self.register_buffer("feature_mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("feature_scale", torch.ones(features, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(features, prediction_length, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(prediction_length, dtype=torch.float64))

    @property
    def poles(self) -> Tensor:
        """complex128, shape (n,), inside the unit circle."""
        return torch.polar(torch.exp(-1 / self.time_constants), self.angles)

    @property
    def decay(self) -> Tensor:
        """|p|, float64, shape (n,)."""
        return torch.exp(-1 / self.time_constants)

    # -- a whole series at once -------------------------------------------------------------------------------------

    def features(self, values: Tensor, dt: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Features after every time step, by the recurrence.

        Args:
            values: Series from their first value on, NaN where missing, shape (b, t).
            dt: Time since the value before, positive, in steps, shape (b, t); None is 1 everywhere.
        Returns:
            Features, shape (b, t, f); the last value seen, shape (b, t), 0 before the first; whether any was seen
            (within the context), bool, shape (b, t).
        """
        values = values.to(self.bias)
        observed = ~values.isnan()
        clean = torch.where(observed, values, 0.0)
        last, seen = last_observed(values, self.context_length)
        # Where nothing is missing all series respond to a constant alike.
        alike = dt is None and bool(observed.all())
        shown = torch.ones_like(values[:1]) if alike else observed.to(values)
        response = self._windowed(shown, self.poles, dt)
        weight = self._windowed(shown, self.decay, dt)
        deviation = self._windowed(clean, self.poles, dt) - response * last[..., None]
        return self._as_features(deviation, self._whole(values, dt), weight), last, seen

    def forecast_series(self, values: Tensor, origins: Tensor) -> Tensor:
        """Forecasts from many origins of the same series.

        Args:
            values: Series from their first value on, NaN where missing, shape (b, t).
            origins: Index of the last value that each forecast may see, int64, shape (o,).
        Returns:
            float64, shape (b, o, h).
        """
        features, last, _ = self.features(values)
        return self.read_out(features[:, origins], last[:, origins])

    def forward(self, past: Tensor, dt: Tensor | None = None) -> Tensor:
        """Forecast what follows each past.

        Args:
            past: Values up to now, NaN where missing, shape (b, t). Only the last `context_length` are used; if there
                are fewer, the rest counts as missing.
            dt: Time since the value before, in steps, shape (b, t); None is 1 everywhere.
        Returns:
            float64, shape (b, h).
        """
        past = past.to(self.bias)
        if dt is not None:
            features, last, _ = self.features(past, dt)
            return self.read_out(features[:, -1], last[:, -1])
        if self.context_length:
            past = past[:, -self.context_length :]
            past = nn.functional.pad(past, (self.context_length - past.shape[1], 0), value=math.nan)
        return self.read_out(*self._window_features(past))

    def _window_features(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """Features (b, f) and last value (b,) after the last of (b, t) values."""
        observed = ~past.isnan()
        last, _ = last_observed(past, None)
        # One matrix product with the impulse response of every pole: nothing is kept but the last step.
        age = torch.arange(past.shape[-1] - 1, -1, -1, device=past.device, dtype=past.dtype)
        envelope = (1 - self.decay) * self.decay ** age[:, None]
        kernel = torch.polar(envelope, self.angles * age[:, None])
        moved = torch.where(observed, past - last[:, -1:], 0.0)
        deviation = torch.complex(moved @ kernel.real, moved @ kernel.imag)
        weight = observed.to(past) @ envelope
        return self._as_features(deviation, envelope.sum(0), weight), last[:, -1]

    def read_out(self, features: Tensor, last: Tensor) -> Tensor:
        """Features to forecasts: shapes (..., f) and (...) to (..., h)."""
        return last[..., None] + ((features - self.feature_mean) / self.feature_scale) @ self.weight + self.bias

    # -- one value at a time ----------------------------------------------------------------------------------------

    def init_state(self, batch: int) -> State:
        """The state before any value, for `batch` series; tensors are batch-first."""
        options = {"device": self.bias.device, "dtype": torch.float64}
        if self.context_length:
            return {"window": torch.full((batch, self.context_length), math.nan, **options)}
        n = len(self.angles)
        zeros = torch.zeros(batch, n, device=self.bias.device, dtype=torch.complex128)
        real = torch.zeros(batch, n, **options)
        return {"hidden": zeros, "response": zeros, "weight": real, "full": real, "last": real[:, 0]}

    def step(self, value: Tensor, state: State, dt: Tensor | None = None) -> State:
        """Take in one new value of every series; the cost does not depend on how many came before.

        Args:
            value: The new values, NaN where missing, shape (b,).
            state: From `init_state` or `step`; not changed.
            dt: Time since the value before, in steps, shape (b,); None is 1.
        Returns:
            The new state.
        Raises:
            ValueError: dt given to a model of finite context, whose state holds no times.
        """
        value = value.to(self.bias)
        if self.context_length:
            if dt is not None:
                raise ValueError("LinearSSM.step: dt needs unlimited memory; this model has a context_length")
            return {"window": torch.cat([state["window"][:, 1:], value[:, None]], dim=1)}
        observed = ~value.isnan()
        poles, decay = self.poles, self.decay
        if dt is not None:
            poles, decay = poles ** dt.to(value)[:, None], decay ** dt.to(value)[:, None]
        gain, seen = 1 - decay, observed.to(value)[:, None]
        return {
            "hidden": poles * state["hidden"] + gain * torch.where(observed, value, 0.0)[:, None],
            "response": poles * state["response"] + gain * seen,
            "weight": decay * state["weight"] + gain * seen,
            "full": decay * state["full"] + gain,
            "last": torch.where(observed, value, state["last"]),
        }

    def state_after(self, past: Tensor, dt: Tensor | None = None) -> State:
        """The state after a whole past: what `step` arrives at, value by value.

        Args:
            past: NaN where missing, shape (b, t).
            dt: Time since the value before, in steps, shape (b, t); None is 1 everywhere. Unlimited memory only.
        """
        past = past.to(self.bias)
        if self.context_length:
            past = past[:, -self.context_length :]
            return {
                "window": nn.functional.pad(past, (self.context_length - past.shape[1], 0), value=math.nan),
            }
        observed = ~past.isnan()
        dt = torch.ones_like(past[:1]) if dt is None else dt.to(past)
        age = dt.sum(1, keepdim=True) - dt.cumsum(1)  # time from each value to the last
        envelope = (1 - self.decay ** dt[..., None]) * self.decay ** age[..., None]  # (b or 1, t, n)
        kernel = torch.polar(envelope, (self.angles * age[..., None]))
        clean, seen = torch.where(observed, past, 0.0), observed.to(past)
        last, _ = last_observed(past, None)
        return {
            "hidden": _sum_over_time(clean, kernel),
            "response": _sum_over_time(seen, kernel),
            "weight": _sum_over_time(seen, envelope),
            "full": envelope.sum(1).expand(len(past), -1),
            "last": last[:, -1],
        }

    def forecast(self, state: State) -> Tensor:
        """What the state expects next, float64, shape (b, h)."""
        return self.read_out(*self.state_features(state))

    def state_features(self, state: State) -> tuple[Tensor, Tensor]:
        """Features (b, f) and last value (b,) of a state."""
        if self.context_length:
            return self._window_features(state["window"])
        deviation = state["hidden"] - state["response"] * state["last"][:, None]
        return self._as_features(deviation, state["full"], state["weight"]), state["last"]

    # -- other sampling rates ---------------------------------------------------------------------------------------

    def at_rate(self, step: float) -> "LinearSSM":
        """The same forecaster for series sampled every `step` of the steps it was trained on.

        Memories and frequencies keep their length in time; the read-out is interpolated between its own steps. What it
        forecasts is the sampled value: sums over a step have to be divided by its length before.

        Args:
            step: 0.5 for data twice as dense, 2 for data half as dense.
        Returns:
            A model that forecasts floor(h / step) of the new steps.
        Raises:
            ValueError: step is not positive, or longer than the horizon.
        """
        horizon = int(self.prediction_length / step + 1e-9) if step > 0 else 0
        if horizon < 1:
            raise ValueError(f"LinearSSM.at_rate: step={step}, expected above 0 and at most {self.prediction_length}")
        context = self.context_length and max(1, round(self.context_length / step))
        model = LinearSSM(horizon, self.time_constants / step, self.angles * step, context)
        # Row k of `mix` reads k * step off the trained steps; at 0 the forecast is the last value: weight 0.
        place = (step * torch.arange(1, horizon + 1, dtype=torch.float64)).clamp_max(self.prediction_length)
        trained = torch.arange(1, self.prediction_length + 1, dtype=torch.float64)
        mix = (1 - (place[:, None] - trained).abs()).clamp_min(0).to(self.bias)
        for name in ("feature_mean", "feature_scale"):
            getattr(model, name).copy_(getattr(self, name))
        model.weight.copy_(self.weight @ mix.T)
        model.bias.copy_(mix @ self.bias)
        return model.to(self.bias.device)

    # -- inner ------------------------------------------------------------------------------------------------------

    def _windowed(self, drive: Tensor, poles: Tensor, dt: Tensor | None) -> Tensor:
        if dt is None:
            states = filter_bank(drive, poles) * (1 - self.decay)
            lapse = self.context_length
        else:
            dt = dt.to(drive)[..., None]
            states = linear_recurrence(poles**dt, ((1 - self.decay**dt) * drive[..., None]).to(poles.dtype))
            lapse = self._lapse(dt)
        length = self.context_length
        if length and length < drive.shape[1]:
            states[:, length:] -= poles**lapse * states[:, :-length].clone()
        return states

    def _whole(self, values: Tensor, dt: Tensor | None) -> Tensor:
        """What `weight` would be with nothing missing, shape (t, n), (n,) or (b, t, n)."""
        if dt is not None:
            whole = self._windowed(torch.ones_like(values), self.decay, dt)
            if self.context_length:  # before the series began, steps of 1 are missing
                whole[:, : self.context_length] = 1 - self.decay**self.context_length
            return whole
        if self.context_length is None:
            return 1 - self.decay ** torch.arange(1, values.shape[1] + 1, device=values.device)[:, None]
        return 1 - self.decay**self.context_length

    def _lapse(self, dt: Tensor) -> Tensor | None:
        """Time that the context spans at every step that has a whole one, shape (b, t - context_length, 1)."""
        if self.context_length is None:
            return None
        time = dt.cumsum(1)
        return time[:, self.context_length :] - time[:, : -self.context_length]

    @staticmethod
    def _as_features(deviation: Tensor, full: Tensor, weight: Tensor) -> Tensor:
        """Scale up by the share of the memory that was observed; `weight` of `full` was."""
        deviation = deviation * torch.where(weight > 1e-12, full / weight.clamp_min(1e-12), 0.0)
        return torch.cat([deviation.real, deviation.imag], dim=-1)


def filter_bank(drive: Tensor, poles: Tensor) -> Tensor:
    """z[t] = p z[t-1] + x[t] for every pole, in chunks: a matrix product inside, a short loop across.

    Args:
        drive: x, float64, shape (b, t).
        poles: p, complex128 or float64, |p| < 1, shape (n,).
    Returns:
        dtype of `poles`, shape (b, t, n).
    """
    b, t = drive.shape
    steps = torch.arange(CHUNK, device=drive.device)
    lag = steps[:, None] - steps  # (i, j): how long ago x[j] was at z[i]
    powers = poles ** torch.arange(CHUNK + 1, device=drive.device)[:, None]
    kernel = torch.where((lag >= 0)[..., None], powers[lag.clamp_min(0)], 0)  # (i, j, n)
    kernel = kernel.transpose(0, 1).reshape(CHUNK, -1)
    chunks = nn.functional.pad(drive, (0, -t % CHUNK)).reshape(-1, CHUNK)
    if kernel.is_complex():
        inner = torch.complex(chunks @ kernel.real, chunks @ kernel.imag)
    else:
        inner = chunks @ kernel
    inner = inner.view(b, -1, CHUNK, len(poles))
    for k in range(1, inner.shape[1]):
        inner[:, k] += powers[1:] * inner[:, k - 1, -1:]
    return inner.reshape(b, -1, len(poles))[:, :t]


def _sum_over_time(values: Tensor, kernel: Tensor) -> Tensor:
    """Values (b, t) with a kernel (b or 1, t, n) to (b, n)."""
    if kernel.is_complex():
        return torch.complex(_sum_over_time(values, kernel.real), _sum_over_time(values, kernel.imag))
    return values @ kernel[0] if len(kernel) == 1 else torch.einsum("bt,btn->bn", values, kernel)


def last_observed(values: Tensor, context_length: int | None) -> tuple[Tensor, Tensor]:
    """The latest value that is no NaN, at every step.

    Args:
        values: Shape (b, t).
        context_length: Forget a value after so many steps; None never.
    Returns:
        The value, 0 where there is none, shape (b, t); whether there is one, bool, shape (b, t).
    """
    steps = torch.arange(values.shape[-1], device=values.device)
    where = torch.where(values.isnan(), -1, steps).cummax(-1).values
    seen = where >= 0 if context_length is None else (where >= 0) & (where > steps - context_length)
    return torch.where(seen, values.gather(-1, where.clamp_min(0)).nan_to_num(), 0.0), seen
