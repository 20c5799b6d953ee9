"""From what an encoder found out to a probabilistic forecast: errors of the linear forecast, in units of a scale.

    real      (y - base) / scale              follows the distribution: normal, student_t, quantiles, ...
    positive  y / level                       has it: gamma, generalized_pareto
    count     y, its parameters times level   has it: poisson, negative_binomial
    bounded   y itself                        has it: beta, truncated_normal

The distributions are those of `gluonts.torch.distributions`, all of them; a linear map turns features into arguments.
The linear forecast reaches the last three kinds as two more features.
"""

import json
from typing import Any, Literal

import torch
from gluonts.torch import distributions as gluonts_distributions
from gluonts.torch.distributions import Output
from torch import Tensor, nn

from ssmcore.registry import resolve

from .models.window import Hidden, Prediction, Window

Support = Literal["real", "positive", "count", "bounded"]
DECILES = [round(0.1 * k, 1) for k in range(1, 10)]
BINS = {"bins_lower_bound": -6.0, "bins_upper_bound": 6.0, "num_bins": 60}
OUTPUTS: dict[str, tuple[str, dict[str, Any], Support]] = {
    "normal": ("NormalOutput", {}, "real"),
    "student_t": ("StudentTOutput", {}, "real"),
    "laplace": ("LaplaceOutput", {}, "real"),
    "quantiles": ("QuantileOutput", {"quantiles": DECILES}, "real"),
    "implicit_quantile": ("ImplicitQuantileNetworkOutput", {}, "real"),
    "isqf": ("ISQFOutput", {"num_pieces": 3, "qk_x": [0.1, 0.3, 0.5, 0.7, 0.9]}, "real"),
    "piecewise_linear": ("PiecewiseLinearOutput", {"num_pieces": 8}, "real"),
    "binned_uniforms": ("BinnedUniformsOutput", BINS, "real"),
    "spliced_binned_pareto": (
        "SplicedBinnedParetoOutput",
        {**BINS, "tail_percentile_gen_pareto": 0.05},
        "real",
    ),
    "gamma": ("GammaOutput", {}, "positive"),
    "generalized_pareto": ("GeneralizedParetoOutput", {}, "positive"),
    "poisson": ("PoissonOutput", {}, "count"),
    "negative_binomial": ("NegativeBinomialOutput", {}, "count"),
    "beta": ("BetaOutput", {}, "bounded"),
    "truncated_normal": ("TruncatedNormalOutput", {}, "bounded"),
}
"""Name -> class, its arguments, and what the distribution is about."""
ABSOLUTE = ("binned_uniforms", "generalized_pareto", "spliced_binned_pareto")


def describe_output(output: str | Output) -> dict[str, Any]:
    """The name and arguments of an output, as plain data.

    Args:
        output: A name of OUTPUTS, or an object of one of its classes.
    Raises:
        ValueError: No such name, or a class that is not there.
    """
    if isinstance(output, str):
        return {"name": output, "args": dict(resolve(output, {**OUTPUTS, "conformal": ("", {}, "real")}, "output")[1])}
    by_class = {kind: name for name, (kind, _, _) in OUTPUTS.items()}
    name = resolve(type(output).__name__, by_class, "output class")
    return {"name": name, "args": json.loads(json.dumps(dict(getattr(output, "__init_args__", {}))))}


class PointHead(nn.Module):
    """The conditional median alone: base + scale features. Its intervals come from past errors (conformal.py)."""

    width = 1

    def loss(self, window: Window, hidden: Hidden, future: Tensor) -> Tensor:
        """Mean absolute error in units of the scale; future (b, c, o, h) is less the first value, NaN where missing."""
        error = (future - self.point(window, hidden)) / hidden.scale[..., None]
        return _mean(error.abs(), ~future.isnan())

    def point(self, window: Window, hidden: Hidden) -> Tensor:
        """float64, shape (b, c, o, h)."""
        return window.base + hidden.scale[..., None] * hidden.features[..., 0]


class OutputHead(nn.Module):
    """A GluonTS output.

    Args:
        name: Of OUTPUTS.
        args: Arguments of its class.
        width: Features that come in.
    """

    def __init__(self, name: str, args: dict[str, Any], width: int = 8):
        super().__init__()
        kind, _, self.support = OUTPUTS[name]
        self.width = width
        self.output: Output = _buildable(getattr(gluonts_distributions, kind))(**args)
        self.proj = self.output.get_args_proj(width + 2 * (self.support != "real"))
        for linear in self.proj.proj if hasattr(self.proj, "proj") else []:
            nn.init.normal_(linear.weight, std=1e-2)
            # Some outputs take the absolute value for positive: there zero is outside the domain.
            nn.init.constant_(linear.bias, 0.3 if name in ABSOLUTE else 0.0)

    @property
    def levels(self) -> tuple[float, ...] | None:
        """Of the quantiles, if it makes quantiles."""
        quantiles = getattr(self.output, "quantiles", None)
        return None if quantiles is None else tuple(quantiles)

    @property
    def implicit(self) -> bool:
        """Whether it gives one quantile, at a level drawn at random, at a time."""
        return isinstance(self.output, gluonts_distributions.ImplicitQuantileNetworkOutput)

    def loss(self, window: Window, hidden: Hidden, future: Tensor) -> Tensor:
        """Mean loss of the output; future is (b, c, o, h), less the first value, NaN where missing."""
        present = ~future.isnan()
        inside = torch.where(present, future, window.base)
        target = self._to_target(inside, window, hidden).to(hidden.features.dtype)
        args, scale = self._args(window, hidden)
        if self.levels or self.implicit:
            return _mean(self.output.loss(target, args), present)
        distribution = self.output.distribution(args, scale=scale)
        # Quantile splines have no density; their loss is the continuous ranked probability score.
        losses = distribution.crps(target) if hasattr(distribution, "crps") else -distribution.log_prob(target)
        return _mean(losses, present)

    def log_prob(self, window: Window, hidden: Hidden, future: Tensor) -> Tensor:
        """Log density of the future, in units of the data, (b, c, o, h); NaN where it is missing.

        Raises:
            NotImplementedError: The output has no density (quantiles, implicit_quantile).
        """
        if self.levels or self.implicit:
            raise NotImplementedError
        target = self._to_target(torch.where(future.isnan(), window.base, future), window, hidden)
        args, scale = self._args(window, hidden)
        logs = self.output.distribution(args, scale=scale).log_prob(target.to(hidden.features.dtype)).double()
        if self.support == "real":
            logs = logs - hidden.scale[..., None].log()
        elif self.support == "positive":
            logs = logs - window.level.clamp_min(1e-30)[..., None].log()
        return torch.where(future.isnan(), torch.nan, logs)

    def predict(self, window: Window, hidden: Hidden, samples: int) -> Prediction:
        """Quantiles where the output makes them, else samples: less the first value, (n, b, c, o, h)."""
        args, scale = self._args(window, hidden, 1 if self.levels else samples)
        if self.levels:
            values = args[0][0].movedim(-1, 0).sort(0).values
        else:
            values = _draw(self.output.distribution(args, scale=scale))
        values = values.double()
        if self.support == "real":
            values = window.base + hidden.scale[..., None] * values
        elif self.support == "positive":
            values = values * window.level[..., None] - window.first[..., None, None]
        else:
            values = values - window.first[..., None, None]
        return Prediction(values=values, levels=self.levels)

    def _args(self, window: Window, hidden: Hidden, repeats: int | None = None) -> tuple[tuple, Tensor | None]:
        """Arguments of the distribution, and the scale of counts; `repeats` draws anew what is random in them."""
        features = hidden.features
        if self.support != "real":
            forecast = (window.base + window.first[..., None, None]).to(features.dtype)
            if self.support != "bounded":
                forecast = (forecast / window.level.clamp_min(1e-30)[..., None].to(forecast)).clamp(0.05, 20)
            features = torch.cat([features, forecast[..., None], forecast.abs().clamp_min(0.05).log()[..., None]], -1)
        if repeats is not None:
            features = features.expand(repeats, *features.shape)
        args = self.proj(features)  # some outputs change their arguments in place
        args = args.clone() if isinstance(args, Tensor) else tuple(arg.clone() for arg in args)
        scale = window.level.clamp_min(1e-6)[..., None].to(features.dtype) if self.support == "count" else None
        return args, None if scale is None else scale.expand(*features.shape[:-1])

    def _to_target(self, future: Tensor, window: Window, hidden: Hidden) -> Tensor:
        """What the distribution is about, from values less the first one."""
        if self.support == "real":
            return (future - window.base) / hidden.scale[..., None]
        values = future + window.first[..., None, None]
        if self.support == "count":
            return values.round().clamp_min(0)
        if self.support == "positive":
            return (values / window.level.clamp_min(1e-30)[..., None]).clamp_min(1e-6)
        if hasattr(self.output, "min"):
            return values
        return values.clamp(1e-4, 1 - 1e-4)


def _buildable(kind: type[Output]) -> type[Output]:
    """GluonTS 0.17 hands three of its outputs themselves as the number `beta`; an object that has a value passes."""
    return type(kind.__name__, (kind,), {"__float__": lambda self: 0.0})


def make_head(description: dict[str, Any]) -> PointHead | OutputHead:
    """From what `describe_output` gave. No shapes.

    Args:
        description: Name and arguments.
    """
    return PointHead() if description["name"] == "conformal" else OutputHead(**description)


def _draw(distribution: torch.distributions.Distribution) -> Tensor:
    """One sample of each; by the quantile function where there is no other way."""
    try:
        return distribution.sample()
    except NotImplementedError:
        like = distribution.batch_shape
        return distribution.icdf(torch.rand(like[:-1] if like[-1] == 1 else like))


def _mean(losses: Tensor, present: Tensor) -> Tensor:
    return torch.where(present, losses, 0.0).sum() / present.sum().clamp_min(1)
