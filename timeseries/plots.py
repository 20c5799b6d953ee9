"""Pictures of a forecast and of the error along the horizon, as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MOST_PANELS = 4


def plot_forecast(
    path: str | Path,
    dates: pd.DatetimeIndex,
    values: np.ndarray,
    origin: int,
    forecasts: dict[str, np.ndarray],
    columns: tuple[str, ...],
    shown: int,
) -> None:
    """Forecasts beside what came, with the end of the past before them; a panel a series.

    Args:
        path: PNG file.
        dates: Time stamps, shape (t,).
        values: In the units of the file, shape (t, c).
        origin: Last row that the forecasts saw.
        forecasts: Name -> forecast, shape (h, c).
        columns: Names of the c series; at most four, spread over them and with the last, are drawn.
        shown: Rows of the past to draw.
    """
    picks = sorted({round(i) for i in np.linspace(len(columns) - 1, 0, min(MOST_PANELS, len(columns)))})
    figure, axes = plt.subplots(len(picks), 1, figsize=(10, 2.4 * len(picks)), sharex=True, squeeze=False)
    horizon = len(next(iter(forecasts.values())))
    past, future = slice(max(0, origin + 1 - shown), origin + 1), slice(origin + 1, origin + 1 + horizon)
    whole = slice(past.start, future.stop)
    for axis, c in zip(axes[:, 0], picks, strict=True):
        axis.plot(dates[whole], values[whole, c], color="0.2", linewidth=1, label="observed")
        for name, forecast in forecasts.items():
            style = {"linewidth": 1.6} if name == next(iter(forecasts)) else {"linewidth": 1, "linestyle": "--"}
            axis.plot(dates[future], forecast[: len(dates[future]), c], label=name, **style)
        axis.axvline(dates[origin], color="0.6", linewidth=0.8)
        axis.set_ylabel(columns[c])
    axes[0, 0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=8, frameon=False)
    figure.autofmt_xdate()
    _save(figure, path)


def plot_future(
    path: str | Path,
    dates: pd.DatetimeIndex,
    values: np.ndarray,
    ahead: pd.DatetimeIndex,
    forecast: np.ndarray,
    quantiles: np.ndarray | None,
    levels: Sequence[float],
    columns: tuple[str, ...],
) -> None:
    """A forecast of what is not known yet, with bands between the outermost quantiles, the next ones, and so on.

    Args:
        path: PNG file.
        dates, values: The past, in the units of the file, shapes (t,) and (t, c); the last three horizons are drawn.
        ahead, forecast: Shapes (h,) and (h, c).
        quantiles: Shape (n, h, c), rising in n; None for none.
        levels: Of the n quantiles.
        columns: Names of the c series; at most four, spread over them and with the last, are drawn.
    """
    picks = sorted({round(i) for i in np.linspace(len(columns) - 1, 0, min(MOST_PANELS, len(columns)))})
    figure, axes = plt.subplots(len(picks), 1, figsize=(10, 2.4 * len(picks)), sharex=True, squeeze=False)
    past = slice(max(0, len(dates) - 3 * len(ahead)), None)
    for axis, c in zip(axes[:, 0], picks, strict=True):
        axis.plot(dates[past], values[past, c], color="0.2", linewidth=1, label="observed")
        for i in range(0 if quantiles is None else len(quantiles) // 2):
            low, high = quantiles[i, :, c], quantiles[len(quantiles) - 1 - i, :, c]
            share = f"{100 * (levels[len(quantiles) - 1 - i] - levels[i]):g} %"
            axis.fill_between(ahead, low, high, color="C0", alpha=0.2, linewidth=0, label=share)
        axis.plot(ahead, forecast[:, c], color="C0", linewidth=1.6, label="forecast")
        axis.set_ylabel(columns[c])
    axes[0, 0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=6, fontsize=8, frameon=False)
    figure.autofmt_xdate()
    _save(figure, path)


def plot_errors(path: str | Path, by_step: dict[str, np.ndarray], title: str) -> None:
    """Mean squared error along the horizon.

    Args:
        path: PNG file.
        by_step: Name -> errors, shape (h,).
        title: Over the picture.
    """
    figure, axis = plt.subplots(figsize=(7, 4))
    for name, errors in by_step.items():
        axis.plot(np.arange(1, len(errors) + 1), errors, label=name)
    axis.set(xlabel="steps ahead", ylabel="MSE, standard units", title=title, ylim=(0, None))
    axis.grid(color="0.9")
    axis.legend()
    _save(figure, path)


def _save(figure: plt.Figure, path: str | Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
