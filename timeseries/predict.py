"""python -m timeseries.predict --run RUN_DIR --data FILE.csv: forecast what follows the last row of a file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import DataError

PROG = "python -m timeseries.predict"


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Forecast what follows the last row of a CSV file with a trained forecaster."""

    run: str = ""
    """Run folder of python -m timeseries.train, or a .safetensors file from one."""
    data: str = ""
    """CSV file with the columns and the step that the forecaster was trained on; its rows are the past."""
    output: str = "forecast.csv"
    """CSV file to write: the dates that follow and a column for each series."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, or 2 for input that cannot be used.
    """
    from ssmcore.engine import cli

    words = sys.argv[1:] if argv is None else list(argv)
    config = cli.parse(PredictConfig, words, prog=PROG, usage="--run RUN_DIR --data FILE.csv [--output forecast.csv]")
    try:
        return predict(config)
    except DataError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2


def predict(config: PredictConfig) -> int:
    """Write the forecast.

    Args:
        config: What to do.
    Returns:
        0.
    Raises:
        DataError: A path, the columns or the step do not fit.
    """
    import pandas as pd

    from .data import read_csv
    from .forecaster import Forecaster

    if not config.run or not config.data:
        raise DataError("give a run folder with --run RUN_DIR and the past with --data FILE.csv")
    try:
        forecaster = Forecaster.load(config.run)
    except ValueError as error:
        raise DataError(f"--run {config.run}: {error}") from None
    table = read_csv(config.data, forecaster.columns)
    if table.frequency.offset != forecaster.offset:
        raise DataError(
            f"{config.data}: its step is {table.frequency.offset}, the forecaster was trained on {forecaster.offset}; "
            "give data with that step"
        )
    future = forecaster.predict(table.values)
    dates = pd.date_range(table.dates[-1], periods=len(future) + 1, freq=table.frequency.offset)[1:]
    frame = pd.DataFrame(future, columns=list(table.columns))
    frame.insert(0, "date", dates)
    frame.to_csv(config.output, index=False)
    print(f"{config.output}: {len(frame)} steps from {dates[0]} to {dates[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
