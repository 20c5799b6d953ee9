"""DeepState: a network reads the covariates and emits, step by step, the noise of a structural model; the Kalman filter
does the rest.

    variances[t] = softplus(network(covariates[0..t]))          level, slope, seasons and irregular noise
    log p(y)     = Kalman filter of the structural model         exact, missing values skipped
    forecast     = its exact multi-step moments                  the network has seen the future's covariates only

One network serves all series; what tells them apart are their covariates, their static numbers and their own states.
The network never sees the target, so a missing value is simply not there.
Source: Rangapuram et al. 2018, Deep State Space Models for Time Series Forecasting.

    b  series      t  past steps      h  steps to forecast      k  covariates      s  static numbers
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmcore import Stack
from ssmcore.array_types import Float
from ssmcore.kalman import Forecast, GaussianState, LinearGaussian, forecast, log_likelihood, sample_paths
from ssmcore.mixers import MixerSpec

from ..config import StructuralConfig
from .structural import structural_model, variance_names

SMALLEST = 1e-6
"""Variance that is added to each, in units of the series' own: the filter never divides by nothing."""


class DeepState(nn.Module):
    """A structural model whose variances a network sets.

    Args:
        covariates: k, of every step, past and future.
        static: s, of every series; 0 for none.
        config: Components.
        mixer: Any causal mixer.
        d_model: Width of the network.
        num_layers: Layers of it.
        dropout: Rate after each branch.
    Raises:
        ValueError: There is no such mixer, or nothing tells steps apart (covariates is 0).
    """

    def __init__(
        self,
        covariates: int,
        static: int,
        config: StructuralConfig,
        mixer: MixerSpec = "lstm",
        d_model: int = 32,
        num_layers: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        if covariates < 1:
            raise ValueError(f"DeepState: covariates={covariates}, expected at least 1, such as the hour of the day")
        self.config = config
        self.names = variance_names(config)
        self.embed = nn.Linear(covariates + static, d_model)
        self.stack = Stack(d_model, f"(M/glu)*{num_layers}", mixers={"M": mixer}, dropout=dropout, causal=True)
        self.variances = nn.Linear(d_model, len(self.names))
        states = structural_model(config, torch.ones(1, len(self.names))).transition.shape[-1]
        self.prior = nn.Linear(static, states) if static else None
        self.log_prior = nn.Parameter(torch.zeros(states))
        # A series that is noise about a slowly moving level, until training says more.
        nn.init.zeros_(self.variances.weight)
        nn.init.constant_(self.variances.bias, -4.0)
        with torch.no_grad():
            self.variances.bias[0] = 0.0

    def model(self, covariates: Float[Tensor, "b l k"], static: Float[Tensor, "b s"] | None = None) -> LinearGaussian:
        """The linear Gaussian model of each series, in units where it has mean 0 and variance about 1, float64.

        Args:
            covariates: Of the steps 0..l-1.
            static: Of the series; None where the module was built without.
        """
        seen = covariates if static is None else torch.cat((covariates, _along(static, covariates)), -1)
        mixed, _ = self.stack(self.embed(seen))
        variances = F.softplus(self.variances(mixed)).double() + SMALLEST
        log_prior = self.log_prior.expand(len(covariates), -1)
        if self.prior is not None and static is not None:
            log_prior = log_prior + self.prior(static)
        prior = torch.diag_embed(F.softplus(log_prior + 4.0).double())
        return structural_model(self.config, variances)._replace(initial_cov=prior)

    def loss(
        self, target: Float[Tensor, "b t"], covariates: Float[Tensor, "b t k"], static: Tensor | None = None
    ) -> Tensor:
        """Mean negative log-likelihood of an observed value, nats, in the units of the target; a scalar.

        Args:
            target: NaN where missing, float32 or float64.
            covariates: Of the same steps.
            static: Of the series, (b, s).
        Raises:
            ValueError: target is infinite, or no value of it is observed.
        """
        seen = ~target.isnan()
        _, scale = standardisation(target)
        return self.standard_loss(target, covariates, static) + (seen * scale.log()[:, None]).sum() / seen.sum()

    def standard_loss(
        self, target: Float[Tensor, "b t"], covariates: Float[Tensor, "b t k"], static: Tensor | None = None
    ) -> Tensor:
        """The same in units where each series has variance 1: what series of different size can be averaged in.

        Arguments and errors as in `loss`.
        """
        seen = ~target.isnan()
        if not seen.any():
            raise ValueError("DeepState: target has no observed value, only NaN")
        likelihood, _ = log_likelihood(self.model(covariates, static), _standard(target, *standardisation(target)))
        return -likelihood.sum() / seen.sum()

    def forward(
        self, target: Float[Tensor, "b t"], covariates: Float[Tensor, "b l k"], static: Tensor | None = None
    ) -> tuple[Float[Tensor, "b h"], Float[Tensor, "b h"]]:
        """Exact mean and variance of the h = l - t values after the target, in its units, float64.

        Args:
            target: NaN where missing, (b, t).
            covariates: Of the past and of the steps to forecast, (b, t + h, k).
            static: Of the series, (b, s).
        Raises:
            ValueError: target is infinite, or covariates do not reach beyond it.
        """
        ahead, (location, scale), _ = self._ahead(target, covariates, static)
        return ahead.mean[..., 0] * scale[:, None] + location[:, None], ahead.cov[..., 0, 0] * scale[:, None] ** 2

    def sample(
        self,
        target: Float[Tensor, "b t"],
        covariates: Float[Tensor, "b l k"],
        static: Tensor | None = None,
        *,
        paths: int = 100,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n b h"]:
        """Joint draws of the h values after the target, in its units; arguments as in `forward`.

        Raises:
            ValueError: As `forward`.
        """
        _, (location, scale), (future, state) = self._ahead(target, covariates, static)
        steps = covariates.shape[1] - target.shape[1]
        drawn = sample_paths(future, state, steps, paths, generator)[..., 0]
        return drawn * scale[:, None] + location[:, None]

    def _ahead(
        self, target: Tensor, covariates: Tensor, static: Tensor | None
    ) -> tuple[Forecast, tuple[Tensor, Tensor], tuple[LinearGaussian, GaussianState]]:
        past, steps = target.shape[1], covariates.shape[1] - target.shape[1]
        if steps < 1:
            raise ValueError(
                f"DeepState: covariates have {covariates.shape[1]} steps, expected more than target's {past}"
            )
        model = self.model(covariates, static)
        location, scale = standardisation(target)
        _, state = log_likelihood(model.during(0, past), _standard(target, location, scale))
        future = model.during(past, past + steps)
        return forecast(future, state, steps), (location, scale), (future, state)


def standardisation(target: Float[Tensor, "b t"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Mean and standard deviation of what is observed of each series, float64; 0 and 1 where that is nothing.

    Args:
        target: NaN where missing.
    Raises:
        ValueError: target is infinite.
    """
    if target.isinf().any():
        raise ValueError("DeepState: target has infinite values; NaN marks a missing one")
    target = target.double()
    seen = ~target.isnan()
    count = seen.sum(1).clamp_min(1)
    location = torch.where(seen, target, 0.0).sum(1) / count
    spread = (torch.where(seen, target - location[:, None], 0.0).square().sum(1) / count).sqrt()
    return location, torch.where(spread > 1e-9 * (1 + location.abs()), spread, 1.0)


def _standard(target: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    return ((target.double() - location[:, None]) / scale[:, None])[..., None]


def _along(static: Tensor, covariates: Tensor) -> Tensor:
    return static[:, None].expand(-1, covariates.shape[1], -1)
