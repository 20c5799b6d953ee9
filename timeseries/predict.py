"""python -m timeseries.predict --run RUN_DIR --data FILE.csv: forecast what follows the last row of a file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import DataError

PROG = "python -m timeseries.predict"


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Forecast what follows the last row of a CSV file with a trained forecaster."""

    run: str = ""
    """Run folder of python -m timeseries.train, or a .safetensors file from one."""
    data: str = ""
    """CSV file with the columns and the step that the forecaster was trained on; its rows are the past. Where it was
    trained with --known columns, rows after the last value bring those for the steps to forecast."""
    output: str = "forecast.csv"
    """CSV file to write: the dates that follow, and for each series a column and one for each of its quantiles."""
    levels: tuple[float, ...] = (0.1, 0.9)
    """Quantile levels of the intervals, from the errors of forecasts made along the past; [] for none."""
    picture: str | None = None
    """PNG file to draw; None puts it beside the CSV file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 2 for input that cannot be used, 130 after an interruption.
    """
    from ssmcore.engine import cli, guarded

    usage = "--run RUN_DIR --data FILE.csv [--output forecast.csv] [--levels '[0.1,0.9]']"
    config = cli.parse(PredictConfig, argv, prog=PROG, usage=usage)
    return guarded(lambda: predict(config), prog=PROG, refused=DataError)


def predict(config: PredictConfig) -> int:
    """Write the forecast.

    Args:
        config: What to do.
    Returns:
        0.
    Raises:
        DataError: A path, the columns or the step do not fit.
    """
    from pathlib import Path

    import pandas as pd

    from .data import read_csv
    from .forecaster import Forecaster
    from .plots import plot_future

    levels = tuple(sorted(config.levels))
    if levels and not 0 < levels[0] <= levels[-1] < 1:
        raise DataError(f"--levels {list(config.levels)}: quantile levels lie between 0 and 1")
    if not config.run or not config.data:
        raise DataError("give a run folder with --run RUN_DIR and the past with --data FILE.csv")
    try:
        forecaster = Forecaster.load(config.run)
    except ValueError as error:
        raise DataError(f"--run {config.run}: {error}") from None
    covariates = forecaster.covariates
    table = read_csv(config.data, (*forecaster.columns, *covariates.columns))
    if table.frequency.offset != forecaster.offset:
        raise DataError(
            f"{config.data}: its step is {table.frequency.offset}, the forecaster was trained on {forecaster.offset}; "
            "give data with that step"
        )
    horizon, count = forecaster.linear.prediction_length, len(forecaster.columns)
    values, named = _past(config, table.values[:, :count], table.values[:, count:], len(covariates.known), horizon)
    seen = table.dates[: len(values)]
    dates = pd.date_range(seen[-1], periods=horizon + 1, freq=table.frequency.offset)[1:]
    known, inputs = covariates.tables(seen.append(dates), named)
    inputs = inputs[: len(values)]
    future = forecaster.predict(values, known, inputs)
    quantiles = forecaster.quantiles(values, known, inputs, levels) if levels else None
    columns: dict[str, Any] = {"date": dates}
    for c, name in enumerate(forecaster.columns):
        columns[name] = future[:, c]
        for level, bound in zip(levels, [] if quantiles is None else quantiles, strict=False):
            columns[f"{name} {level:g}"] = bound[:, c]
    frame = pd.DataFrame(columns)
    frame.to_csv(config.output, index=False)
    picture = config.picture or str(Path(config.output).with_suffix(".png"))
    plot_future(picture, seen, values, dates, future, quantiles, levels, forecaster.columns)
    if levels and quantiles is None:
        print(f"{config.data}: {len(values)} rows are too few for intervals; the forecast has none")
    print(f"{config.output}: {len(frame)} steps from {dates[0]} to {dates[-1]}")
    return 0


def _past(config: PredictConfig, values: Any, named: Any, known: int, horizon: int) -> tuple[Any, Any]:
    """Rows before the forecast, (t, c), and covariates of those and of the rows to forecast, (t + h, k)."""
    import numpy as np

    rows = len(values)
    if known:  # rows at the end that hold nothing but covariates are the future
        seen = np.flatnonzero(~np.isnan(values).all(1))
        rows = min(rows, int(seen[-1]) + 1) if len(seen) else rows
        if len(named) < rows + horizon or np.isnan(named[: rows + horizon, :known]).any():
            raise DataError(
                f"{config.data}: covariates that are known for the future need {horizon} rows after the last value, "
                f"with nothing missing in them; there are {len(named) - rows}"
            )
    padded = np.full((rows + horizon, named.shape[1]), np.nan)
    padded[: min(len(named), rows + horizon)] = named[: rows + horizon]
    padded[rows:, known:] = 0.0
    if np.isnan(padded[:, known:]).any() or (known and np.isnan(padded[:, :known]).any()):
        raise DataError(f"{config.data}: a covariate has empty cells; fill them")
    return values[:rows], padded


if __name__ == "__main__":
    sys.exit(main())
