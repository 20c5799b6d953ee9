"""The baseline that any forecaster has to beat: ridge regression on the last L values less the last one.

    y[t+1 .. t+H] = x[t] + W (x[t-L+1 .. t-1] - x[t]) + b          W shared by all series

It has the interface of LinearSSM as far as `fit_linear_ssm` and `score` use it. A missing value counts as the last one.
"""

import torch
from torch import Tensor, nn

from .linear_ssm import last_observed


class LagRidge(nn.Module):
    """Forecast every series from its last values with one shared linear read-out. float64 throughout.

    Args:
        prediction_length: Steps to forecast, h.
        context_length: Values a forecast sees, L, at least 2.
    Raises:
        ValueError: context_length is below 2.
    """

    def __init__(self, prediction_length: int, context_length: int):
        super().__init__()
        if context_length < 2:
            raise ValueError(f"LagRidge: context_length={context_length}, expected at least 2")
        self.prediction_length, self.context_length = prediction_length, context_length
        lags, options = context_length - 1, {"dtype": torch.float64}
        self.register_buffer("feature_mean", torch.zeros(lags, **options))
        self.register_buffer("feature_scale", torch.ones(lags, **options))
        self.register_buffer("weight", torch.zeros(lags, prediction_length, **options))
        self.register_buffer("bias", torch.zeros(prediction_length, **options))

    def features(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features after every time step.

        Args:
            values: Series, NaN where missing, shape (b, t).
        Returns:
            Lags, shape (b, t, L - 1); the last value seen, shape (b, t); whether any was, shape (b, t).
        """
        last, seen = last_observed(values.to(self.bias), None)
        filled = torch.where(values.isnan(), last, values.to(self.bias))
        padded = torch.cat([filled[:, :1].expand(-1, self.context_length - 1), filled], 1)
        lags = padded.unfold(1, self.context_length, 1)[..., :-1]
        return lags - last[..., None], last, seen

    def read_out(self, features: Tensor, last: Tensor) -> Tensor:
        """Features to forecasts: shapes (..., L - 1) and (...) to (..., h)."""
        return last[..., None] + ((features - self.feature_mean) / self.feature_scale) @ self.weight + self.bias

    def from_origins(self, values: Tensor):
        """Forecasts by origin of series (c, t); a `metrics.Method`."""
        features, last, _ = self.features(values)
        return lambda origins: self.read_out(features[:, origins], last[:, origins])
