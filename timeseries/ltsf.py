"""python -m timeseries.ltsf --data-dir DIR: the long-term-forecasting tables, by one protocol for every model.

    data set x lookback x horizon x model x seed = a cell, a JSON file of its own

A run that was stopped goes on with the cells that are missing, and the tables hold all cells of the folder, so that one
model can be added to another's. Every test window counts, nothing is chosen by test
scores (ridge strengths by folds of the training part and by the validation part), lookbacks never meet in one table,
and naive, seasonal-naive and ridge forecasts stand in every one.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

from .config import LtsfConfig, ModelName, TrainConfig
from .errors import DataError

PROG = "python -m timeseries.ltsf"
BASELINES = ("naive", "seasonal_naive", "ridge")
ALONE = "-alone"
"""Ending of a model's name: the network without LinearSSM under it."""


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
    covariates: str = ""
    """Names of the columns that are covariates, as `covariates_of` gives them, for tables apart."""

    @property
    def name(self) -> str:
        """For files: covariates as a digest, for Weather's are many and have slashes."""
        more = f"-with-{hashlib.sha256(self.covariates.encode()).hexdigest()[:10]}" if self.covariates else ""
        return f"{self.dataset}-{self.lookback}-{self.horizon}-{self.model}-{self.seed}{more}"


def covariates_of(config: LtsfConfig) -> str:
    """What a cell says of its covariates: the names, each with its role, for the role changes the scores."""
    return "+".join((*(f"known-{name}" for name in config.known), *(f"past-{name}" for name in config.past)))


def cells(config: LtsfConfig, datasets: Sequence[str]) -> Iterator[Cell]:
    """All cells of a run, the cheap ones first.

    Args:
        config: Which models, lookbacks, horizons and seeds.
        datasets: Names of BENCHMARKS.
    """
    from .models import CLOSED_FORM

    covariates = covariates_of(config)
    for model in (*BASELINES, *config.models):
        fixed = model in BASELINES or model in CLOSED_FORM
        for dataset in datasets:
            horizons = config.horizons or BENCHMARKS[dataset].horizons
            for lookback in config.lookbacks:
                for horizon in horizons:
                    for seed in range(1 if fixed else config.seeds):
                        yield Cell(
                            dataset=dataset,
                            lookback=lookback,
                            horizon=horizon,
                            model=model,
                            seed=seed,
                            covariates=covariates,
                        )


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
        if name not in BENCHMARKS:
            raise DataError(f"--datasets: {name!r} is none of {', '.join(BENCHMARKS)}")
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
        """The series of a set, without the covariates, read once."""
        from .covariates import read_series_and_covariates

        if dataset not in self._tables:
            path = str(self._with_dates(self.files[dataset]))
            columns = TrainConfig(data=path, known=self.config.known, past=self.config.past)
            self._tables = {dataset: read_series_and_covariates(columns)[0]}
        return self._tables[dataset]

    def all_results(self) -> list[tuple[Cell, dict]]:
        """Every cell of the folder that belongs to the tables asked for, in the order of its name."""
        config = self.config
        covariates = covariates_of(config)
        found = []
        for path in sorted(self.done.glob("*.json")):
            result = json.loads(path.read_text())
            cell = Cell(**result["cell"])
            horizons = config.horizons or BENCHMARKS[cell.dataset].horizons
            if cell.dataset in self.files and cell.lookback in config.lookbacks and cell.horizon in horizons:
                found += [(cell, result)] if cell.covariates == covariates else []
        return found

    def result(self, cell: Cell) -> dict | None:
        """Of a cell that is done, else None."""
        path = self.done / f"{cell.name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def run(self, cell: Cell) -> dict:
        """Compute a cell and keep it: mse, mae, seconds of process time (since the last stop), windows.

        Args:
            cell: Which.
        Raises:
            DataError: The data cannot be used.
            Interrupted: SIGINT or SIGTERM came; the same cell goes on there.
            NonFiniteError: NaN or infinity came up in a training.
        """
        started = time.process_time()
        scores = self._baseline(cell) if cell.model in BASELINES else self._trained(cell)
        options = {} if cell.model in BASELINES else self.config.train
        result = {**scores, "seconds": time.process_time() - started, "cell": asdict(cell), "train": options}
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
        from ssmcore.engine import cli

        from .models import CLOSED_FORM
        from .train import prepare

        context = self._context(cell, finite=cell.model not in CLOSED_FORM)
        runs = self.folder / "runs" / cell.name
        model = cell.model.removesuffix(ALONE)
        train = TrainConfig(
            data=str(self._with_dates(self.files[cell.dataset])),
            prediction_length=cell.horizon,
            context_length=context or "free",
            model=model,
            base="none" if cell.model.endswith(ALONE) else "linear_ssm",
            known=self.config.known,
            past=self.config.past,
            split=BENCHMARKS[cell.dataset].split,
            seed=cell.seed,
            output=str(runs),
        )
        train = with_options(train, self.config.train)
        asked = cli.dump(train)  # a run of other options is another one
        stopped = [path.parent for path in sorted(runs.glob(f"*/{cli.CONFIG_FILE}")) if path.read_text() == asked]
        experiment = prepare(replace(train, resume=str(stopped[-1])) if stopped else train)
        experiment.train()
        scores = experiment.report()[model]
        return {"mse": scores.mse, "mae": scores.mae, "windows": scores.windows}

    def _with_dates(self, path: Path) -> Path:
        """The file itself, or a copy with an even calendar: of a bare matrix (exchange_rate.txt), and of a file that
        leaves steps out (weather.csv does), whose rows the literature counts as if there were no gap."""
        import numpy as np
        import pandas as pd

        copy = self.folder / f"{path.name.split('.')[0]}.csv"
        if copy.is_file():
            return copy
        if ".txt" in path.suffixes:
            frame = pd.DataFrame(np.loadtxt(path, delimiter=","))
            frame.columns = [f"column_{i + 1}" for i in range(frame.shape[1])]
            first, step = pd.Timestamp("1990-01-01"), pd.Timedelta("1D")
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
            dates = pd.to_datetime(frame["date"], errors="coerce") if "date" in frame else pd.Series(pd.NaT, [0])
            steps = dates.diff().dropna()
            if dates.isna().any() or not len(steps) or steps.min() == steps.max() or steps.min() <= pd.Timedelta(0):
                return path  # as it should be, or as the reader will say
            first, step = dates[0], steps.mode()[0]
            frame = frame.drop(columns="date")
        frame.insert(0, "date", pd.date_range(first, periods=len(frame), freq=step))
        frame.to_csv(copy, index=False)
        return copy


def with_options(config: Any, options: dict[str, Any]) -> Any:
    """A dataclass with some fields changed, those of dataclasses inside too; no shapes.

    Args:
        config: The dataclass.
        options: Plain data, lists where the fields hold tuples.
    Raises:
        DataError: There is no such field.
    """
    changed = {}
    for name, value in options.items():
        if not hasattr(config, name):
            raise DataError(f"--train: {name!r} is no option of {type(config).__name__}")
        before = getattr(config, name)
        inner = is_dataclass(before) and isinstance(value, dict)
        changed[name] = with_options(before, value) if inner else tuple(value) if isinstance(value, list) else value
    return replace(config, **changed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program name; None takes sys.argv.
    Returns:
        Exit status: 0, 1 after NaN in training, 2 for input that cannot be used, 128 + signal after an interruption.
    """
    from ssmcore.engine import cli, guarded

    config = cli.parse(LtsfConfig, argv, prog=PROG, usage="--data-dir DIR [options]")
    return guarded(lambda: run(config), prog=PROG, refused=DataError, go_on="the same command goes on where it was")


def run(config: LtsfConfig) -> None:
    """Compute what is missing and write the tables.

    Args:
        config: What to do.
    Raises:
        DataError, Interrupted, NonFiniteError: As `Runner.run`.
    """
    from contextlib import redirect_stdout
    from io import StringIO

    from tqdm import tqdm

    from .ltsf_report import write_report

    known = {*get_args(ModelName)}
    for name in config.models:
        if name.removesuffix(ALONE) not in known or name == f"linear_ssm{ALONE}":
            raise DataError(
                f"--models: {name!r} is none of {', '.join(sorted(known))}, with {ALONE} for a network alone"
            )
    if config.seeds < 1:
        raise DataError(f"--seeds {config.seeds}: at least 1")
    with_options(TrainConfig(), config.train)  # a wrong option is told before the first cell is computed
    files = find_files(config)
    runner = Runner(config, files)
    todo = list(cells(config, tuple(files)))
    with tqdm(todo, unit="cell", disable=None) as bar:
        for cell in bar:
            bar.set_postfix_str(cell.name)
            if runner.result(cell) is None:
                with redirect_stdout(StringIO()):
                    done = runner.run(cell)
                bar.write(f"{cell.name}: {done['mse']:.3f} / {done['mae']:.3f}, {done['seconds']:.0f} CPU s")
    order = {name: i for i, name in enumerate(dict.fromkeys(cell.model for cell in todo))}
    places = {name: i for i, name in enumerate(files)}

    def key(row: tuple[Cell, dict]) -> tuple:
        cell = row[0]
        return places[cell.dataset], order.get(cell.model, len(order)), cell.model, cell.horizon, cell.seed

    for path in write_report(sorted(runner.all_results(), key=key), runner.folder):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
