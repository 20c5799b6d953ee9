"""python -m timeseries.ltsf --data-dir DIR: the long-term-forecasting tables, by one protocol for every model.

    data set x lookback x horizon x model x seed = a cell, a JSON file of its own

A run that was stopped goes on with the cells that are missing. Every test window counts, nothing is chosen by test
scores (ridge strengths by folds of the training part and by the validation part), lookbacks never meet in one table,
and naive, seasonal-naive and ridge forecasts stand in every one.
"""

import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .config import LtsfConfig, TrainConfig
from .errors import DataError

PROG = "python -m timeseries.ltsf"
BASELINES = ("naive", "seasonal_naive", "ridge")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A data set of the literature."""

    files: tuple[str, ...]
    """Stems its file may have, in lower case."""
    split: str
    """As --split of `timeseries.train`."""
    horizons: tuple[int, ...] = (96, 192, 336, 720)
    """Steps to forecast."""
    short: int = 96
    """The lookback that papers fix."""
    long: int = 336
    """The lookback of models that need a finite one, where it is free."""


BENCHMARKS = {
    "ETTh1": Benchmark(files=("etth1",), split="12/4/4"),
    "ETTh2": Benchmark(files=("etth2",), split="12/4/4"),
    "ETTm1": Benchmark(files=("ettm1",), split="12/4/4"),
    "ETTm2": Benchmark(files=("ettm2",), split="12/4/4"),
    "Weather": Benchmark(files=("weather",), split="70/10/20"),
    "Electricity": Benchmark(files=("electricity", "ecl"), split="70/10/20"),
    "Traffic": Benchmark(files=("traffic",), split="70/10/20"),
    "Exchange": Benchmark(files=("exchange_rate", "exchange"), split="70/10/20"),
    "ILI": Benchmark(
        files=("national_illness", "ili"), split="70/10/20", horizons=(24, 36, 48, 60), short=36, long=104
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table."""

    dataset: str
    lookback: str
    """`short` or `free`."""
    horizon: int
    model: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.lookback}-{self.horizon}-{self.model}-{self.seed}"


def cells(config: LtsfConfig, datasets: Sequence[str]) -> Iterator[Cell]:
    """All cells of a run, the cheap ones first.

    Args:
        config: Which models, lookbacks, horizons and seeds.
        datasets: Names of BENCHMARKS.
    """
    from .models import CLOSED_FORM

    for model in (*BASELINES, *config.models):
        fixed = model in BASELINES or model in CLOSED_FORM
        for dataset in datasets:
            horizons = config.horizons or BENCHMARKS[dataset].horizons
            for lookback in config.lookbacks:
                for horizon in horizons:
                    for seed in range(1 if fixed else config.seeds):
                        yield Cell(dataset=dataset, lookback=lookback, horizon=horizon, model=model, seed=seed)


def find_files(config: LtsfConfig) -> dict[str, Path]:
    """The file of every data set that was asked for, or of all that are there.

    Args:
        config: The folder and the names.
    Raises:
        DataError: The folder or a named data set is not there.
    """
    folder = Path(config.data_dir)
    if not config.data_dir or not folder.is_dir():
        raise DataError(f"give a folder with --data-dir, such as one that holds ETTh1.csv; got {config.data_dir!r}")
    stems = {path.name.split(".")[0].lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
    found = {name: stems[stem] for name, benchmark in BENCHMARKS.items() for stem in benchmark.files if stem in stems}
    for name in config.datasets or ():
        if name not in found:
            looked = ", ".join(f"{stem}.csv" for stem in BENCHMARKS[name].files)
            raise DataError(f"{folder}: there is no file for {name} (looked for {looked}, also .csv.gz)")
    if not found:
        raise DataError(f"{folder}: there is no file of a known data set: {', '.join(BENCHMARKS)}")
    return {name: found[name] for name in (config.datasets or found)}


class Runner:
    """Computes cells and keeps them.

    Args:
        config: What to do.
        files: By data set.
    """

    def __init__(self, config: LtsfConfig, files: dict[str, Path]):
        self.config, self.files = config, files
        self.folder = Path(config.output)
        self.done = self.folder / "cells"
        self.done.mkdir(parents=True, exist_ok=True)
        self._tables: dict[str, object] = {}

    def table(self, dataset: str):
        """The data of a set, read once."""
        from .data import read_csv

        if dataset not in self._tables:
            path = self.files[dataset]
            self._tables = {dataset: read_csv(self._with_dates(path))}
        return self._tables[dataset]

    def result(self, cell: Cell) -> dict | None:
        """Of a cell that is done, else None."""
        path = self.done / f"{cell.name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def run(self, cell: Cell) -> dict:
        """Compute a cell and keep it: mse, mae, seconds of process time, windows.

        Args:
            cell: Which.
        Raises:
            DataError: The data cannot be used.
            SystemExit: Training was interrupted or went wrong; what is done is kept.
        """
        started = time.process_time()
        scores = self._baseline(cell) if cell.model in BASELINES else self._trained(cell)
        result = {**scores, "seconds": time.process_time() - started}
        path = self.done / f"{cell.name}.json"
        scratch = path.with_suffix(".part")
        scratch.write_text(json.dumps(result))
        scratch.replace(path)
        return result

    def _context(self, cell: Cell, finite: bool) -> int | None:
        benchmark = BENCHMARKS[cell.dataset]
        if cell.lookback == "short":
            return benchmark.short
        return benchmark.long if finite else None

    def _baseline(self, cell: Cell) -> dict:
        from functools import partial

        import torch

        from .data import make_split, standardize
        from .metrics import naive, score, seasonal_naive
        from .models.lag_ridge import LagRidge
        from .models.ridge import fit_linear_ssm

        table, h = self.table(cell.dataset), cell.horizon
        context = self._context(cell, finite=True)
        split = make_split(table, BENCHMARKS[cell.dataset].split, context, h)
        values = torch.from_numpy(standardize(table, split)[0].values.T.copy())
        if cell.model == "ridge":
            model = LagRidge(h, context)
            fit_linear_ssm(
                model, values, split.origins("train", context, h), split.origins("validation", context, h), select="mse"
            )
            method = model.from_origins
        elif cell.model == "naive":
            method = partial(naive, horizon=h)
        else:
            method = partial(seasonal_naive, horizon=h, season=table.frequency.season)
        scores = score(method, values, split.origins("test", context, h), h)
        return {"mse": scores.mse, "mae": scores.mae, "windows": scores.windows}

    def _trained(self, cell: Cell) -> dict:
        from .models import CLOSED_FORM
        from .train import run

        context = self._context(cell, finite=cell.model not in CLOSED_FORM)
        runs = self.folder / "runs" / cell.name
        train = TrainConfig(
            data=str(self._with_dates(self.files[cell.dataset])),
            prediction_length=cell.horizon,
            context_length=context or "free",
            model=cell.model,
            split=BENCHMARKS[cell.dataset].split,
            seed=cell.seed,
            output=str(runs),
        )
        train = replace(train, **self.config.train)
        before = set(runs.iterdir()) if runs.is_dir() else set()
        if status := run(train):
            raise SystemExit(status)
        (folder,) = set(runs.iterdir()) - before
        with (folder / "scores.csv").open() as file:
            row = next(row for row in csv.DictReader(file) if row["forecaster"] == cell.model)
        return {"mse": float(row["mse"]), "mae": float(row["mae"]), "windows": int(row["windows"])}

    def _with_dates(self, path: Path) -> Path:
        """The file itself, or for a bare matrix of numbers (exchange_rate.txt) a copy with an artificial calendar."""
        if ".txt" not in path.suffixes:
            return path
        import numpy as np
        import pandas as pd

        copy = self.folder / f"{path.name.split('.')[0]}.csv"
        if not copy.is_file():
            values = np.loadtxt(path, delimiter=",")
            dates = pd.date_range("1990-01-01", periods=len(values), freq="D")
            frame = pd.DataFrame(values, columns=[f"column_{i + 1}" for i in range(values.shape[1])])
            frame.insert(0, "date", dates)
            frame.to_csv(copy, index=False)
        return copy


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 1 after NaN in training, 2 for input that cannot be used, 128 + signal after an interruption.
    """
    from ssmcore.engine import cli

    words = sys.argv[1:] if argv is None else list(argv)
    config = cli.parse(LtsfConfig, words, prog=PROG, usage="--data-dir DIR [options]")
    try:
        run(config)
    except DataError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROG}: stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def run(config: LtsfConfig) -> None:
    """Compute what is missing and write the tables.

    Args:
        config: What to do.
    Raises:
        DataError: The data cannot be used.
        SystemExit: Training was interrupted or went wrong.
    """
    from contextlib import redirect_stdout
    from io import StringIO

    from tqdm import tqdm

    from .ltsf_report import write_report

    files = find_files(config)
    runner = Runner(config, files)
    todo = list(cells(config, tuple(files)))
    with tqdm(todo, unit="cell", disable=None) as bar:
        for cell in bar:
            bar.set_postfix_str(cell.name)
            if runner.result(cell) is None:
                with redirect_stdout(StringIO()):
                    runner.run(cell)
    results = [(cell, runner.result(cell) or {}) for cell in todo]
    for path in write_report(results, runner.folder):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
