"""What is known beforehand, taken off every series and put back on its forecast: the cycle table, and covariates.

    x'[t] = x[t] - u[t] B          u  sines and cosines of the calendar, and covariates that are known for the future
    y[t+1 .. t+H] = model(x')[t] + u[t+1 .. t+H] B

B has a column for each series. As many sines and cosines as a cycle has steps are a table of one value for each step of
it and each series, as CycleNet learns. Here B is solved for, from differences on differences: the noise of a series is
closer to a random walk than to white noise.

Source: Lin et al. 2024, CycleNet (residual cycle forecasting); the closed form and the Fourier basis are ours.

    c  series      t  time steps      q  known covariates      o  origins      h  prediction_length
"""

import torch
from torch import Tensor, nn

RIDGE = 1e-6
"""Of a covariate's own size: for columns that say the same."""


class KnownEffect(nn.Module):
    """The effect of q covariates on c series, float64; zero until it is fitted.

    Args:
        known: q.
        series: c.
    """

    def __init__(self, known: int, series: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(known, series, dtype=torch.float64))

    def fit(self, values: Tensor, known: Tensor, rows: tuple[int, int]) -> None:
        """Least squares of differences on differences.

        Args:
            values: NaN where missing, shape (c, t).
            known: Shape (t, q).
            rows: [start, end) to learn from.
        """
        moved, change = known[slice(*rows)].diff(dim=0), values[:, slice(*rows)].diff(dim=1)
        for series, row in enumerate(change):
            there = ~row.isnan()
            x = moved[there]
            gram = x.T @ x
            size = gram.diagonal().clamp_min(1e-12)
            self.weight[:, series] = torch.linalg.solve(gram + RIDGE * torch.diag(size), x.T @ row[there])

    def forward(self, known: Tensor) -> Tensor:
        """Known covariates (t, q) to effects (c, t)."""
        return (known @ self.weight).T

    def ahead(self, known: Tensor, origins: Tensor, horizon: int) -> Tensor:
        """Effects after each origin: (t + h, q), (o,) to (c, o, h)."""
        return self(known)[:, origins[:, None] + 1 + torch.arange(horizon)]
