"""`python -m apps.bench timeseries`: a forecaster's update by one observation, against a look at the whole history.

Each row is one trained forecaster of hourly series, 96 steps ahead. update takes in one value of every channel and
keeps the errors that its intervals are made of; forecast turns the state into intervals; recompute is `predict` on the
whole history, which is what there is without a state. difference is the largest one between the two forecasts, in units
of the forecast's own range. Times are CPU times of the process, means over the calls, on one thread.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HORIZON, PERIOD = 96, 24
MODELS = ("linear", "linear quantiles", "s4d", "mamba", "gru")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One forecaster, one length of history, one number of channels; times in microseconds."""

    model: str
    history: int
    channels: int
    update: float
    forecast: float
    recompute: float
    difference: float
    """0 where forecasts are drawn at random or equal."""

    @property
    def per_channel(self) -> float:
        """Of an update."""
        return self.update / self.channels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `timeseries`."""
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="rows (default: all)")
    parser.add_argument("--history", nargs="+", type=int, default=[1000, 4000, 16000], help="values before the update")
    parser.add_argument("--channels", nargs="+", type=int, default=[1, 7, 64], help="channels updated together")
    parser.add_argument("--calls", type=int, default=100, help="updates timed (default: 100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows as JSON")
    parser.add_argument("--quick", action="store_true", help="two models, one length, one width: under 20 s")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the file."""
    import torch

    torch.set_num_threads(1)
    models = ["linear", "mamba"] if args.quick else args.model
    histories = [1000] if args.quick else args.history
    widths = [7] if args.quick else args.channels
    head = f"{'model':18}{'history':>8}{'channels':>9}{'update':>10}{'a channel':>11}{'forecast':>11}{'recompute':>12}"
    print(head + f"{'times':>8}{'difference':>12}   (microseconds)")
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in models:
            for channels in widths:
                for row in measure(model, channels, histories, args.calls):
                    rows.append(row)
                    times = row.recompute / (row.update + row.forecast)
                    print(
                        f"{row.model:18}{row.history:8}{row.channels:9}{row.update:10.0f}{row.per_channel:11.1f}"
                        f"{row.forecast:11.0f}{row.recompute:12.0f}{times:8.1f}{row.difference:12.1e}",
                        flush=True,
                    )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def measure(model: str, channels: int, histories: list[int], calls: int) -> list[Row]:
    """Train once on the shortest history and time updates after each.

    Args:
        model: One of MODELS.
        channels: Channels of the one series.
        histories: Values before the update.
        calls: Updates timed.
    """
    import numpy as np
    import pandas as pd
    import torch

    rng = np.random.default_rng(0)
    time_axis = np.arange(max(histories) + calls)
    phases = rng.uniform(0, 2 * np.pi, size=(channels, 1))
    values = np.sin(2 * np.pi * time_axis / PERIOD + phases) + 0.3 * rng.normal(size=(channels, len(time_axis)))

    def entry(length: int) -> list[dict]:
        return [{"start": pd.Period("2020-01-01", freq="h"), "target": values[:, :length]}]

    predictor = _estimator(model).train(entry(min(histories)))
    if predictor.network.encoder is not None:  # a trained network does not read out zeros
        torch.manual_seed(0)
        torch.nn.init.normal_(predictor.network.encoder.head.weight, std=0.1)
    return [_row(model, predictor, entry(history), entry(history + calls), calls) for history in histories]


def _row(model: str, predictor: Any, past: list[dict], whole: list[dict], calls: int) -> Row:
    import numpy as np

    history, channels = past[0]["target"].shape[1], len(past[0]["target"])
    stream = predictor.start(past)
    columns = iter(whole[0]["target"][:, history:].T)
    stream.update(next(columns))
    update = _seconds(lambda: stream.update(next(columns)), calls - 1)
    forecast = _seconds(stream.forecast, 5)
    recompute = _seconds(lambda: list(predictor.predict(whole)), 2)
    mine, other = stream.forecast()[0].forecast_array, next(iter(predictor.predict(whole))).forecast_array
    return Row(
        model=model,
        history=history,
        channels=channels,
        update=1e6 * update,
        forecast=1e6 * forecast,
        recompute=1e6 * recompute,
        difference=float(abs(mine - other).max() / np.ptp(other)),
    )


def _estimator(model: str):
    from timeseries.config import FitConfig
    from timeseries.estimator import SSMEstimator

    fit = FitConfig(epochs=1, steps_per_epoch=1, accelerator="cpu", memory=500)
    mixers = {"s4d": {"name": "s4d", "d_state": 16}, "mamba": {"name": "mamba", "d_state": 16}, "gru": "gru"}
    output = "quantiles" if model.endswith("quantiles") else "conformal"
    return SSMEstimator(HORIZON, mixer=mixers.get(model), output=output, fit=fit)


def _seconds(call: Callable[[], object], calls: int) -> float:
    """Mean CPU time of a call."""
    started = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - started) / calls
