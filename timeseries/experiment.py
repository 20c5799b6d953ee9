"""One run of `python -m timeseries.train`, once the data are known to be good: fit, score, draw, save."""

import csv
import itertools
import math
import time
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ssmcore.engine import cli, make_run_dir
from ssmcore.engine.folder import BEST_FILE, METRICS_FILE

from .config import TrainConfig
from .covariates import Covariates
from .data import Split, Table, standardize
from .forecaster import Forecaster
from .metrics import Method, Scores, naive, score, score_means, seasonal_naive
from .models.known_effect import KnownEffect
from .models.linear_ssm import LinearSSM, default_poles
from .models.median import WhiteRows, fit_median
from .models.own_read_out import MOST_SERIES, OwnReadOut, average, fit_own_read_out
from .models.ridge import RidgeReport, fit_linear_ssm


class Experiment:
    """Holds the data in standard units and the run folder.

    Args:
        config: What to do.
        table: The data, in the units of the file.
        split: The parts.
        context_length: Values a forecast may use; None for all since the first row.
        named: Named covariates of every row, known ones first, shape (t, k); None without any.
    """

    def __init__(
        self,
        config: TrainConfig,
        table: Table,
        split: Split,
        context_length: int | None,
        named: np.ndarray | None = None,
    ):
        self.config, self.table, self.split, self.context_length = config, table, split, context_length
        standard, self.scaler = standardize(table, split)
        self.values = torch.from_numpy(standard.values.T.copy())
        named = np.zeros((len(table.dates), 0)) if named is None else named
        self.covariates = Covariates.fit(config, table, named, split.train)
        self.known, self.inputs = self.covariates.tables(table.dates, named)
        self.effect = KnownEffect(self.known.shape[1], len(self.values))
        saved = replace(config, resume=None)
        if config.resume:
            self.run_dir = Path(config.resume)
            (self.run_dir / cli.CONFIG_FILE).write_text(cli.dump(saved))
        else:
            stem = Path(table.source).name.split(".")[0]
            name = f"{stem}-{config.prediction_length}-{config.model}-{context_length or 'free'}"
            self.run_dir = make_run_dir(config.output, name, saved)

    def run(self) -> None:
        """Train and score. Raises as `train`."""
        self.train()
        self.report()

    def train(self) -> None:
        """Leave best.safetensors in the run folder.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved.
            NonFiniteError: NaN or infinity came up.
        """
        table, parts = self.table, ", ".join(f"{p} {end - start}" for p, (start, end) in self._parts().items())
        shape = f"{len(table.dates)} rows x {len(table.columns)} columns, step {table.frequency.offset}"
        print(f"{table.source}: {shape}, split {self.split.name} (rows: {parts})")
        if self.config.base == "none" and self.config.model != "linear_ssm":
            self._fit_network(self._linear())  # of which only the length of the windows counts
            return
        linear, report = self._fit_linear()
        if self.config.model == "linear_ssm":
            self._log_ridge(report)
            self._forecaster(linear).save(self.run_dir / BEST_FILE)
        else:
            self._fit_network(linear)

    def report(self) -> dict[str, Scores]:
        """Print and write the test scores beside the naive forecasts, and draw.

        Returns:
            Scores by forecaster, the trained one first.
        """
        config, season = self.config, self.table.frequency.season
        best = Forecaster.load(self.run_dir)
        h = config.prediction_length
        rivals: dict[str, Method] = {
            config.model: best.method(self.known, self.inputs),
            "naive": partial(naive, horizon=h),
        }
        if season > 1:
            rivals[f"seasonal naive ({season})"] = partial(seasonal_naive, horizon=h, season=season)
        origins = self.split.origins("test", self.context_length, h)
        scores = {config.model: self.score(best, origins)}
        scores |= {name: score(method, self.values, origins, h) for name, method in [*rivals.items()][1:]}
        context = (
            "all values since the first" if self.context_length is None else f"the last {self.context_length} values"
        )
        print(f"test part, {len(origins)} windows of {h} steps, standard units, {config.model} sees {context}:")
        print(f"{'':24}{'MSE':>8}{'MAE':>8}")
        for name, result in scores.items():
            print(f"{name:24}{result.mse:8.4f}{result.mae:8.4f}")
        with (self.run_dir / "scores.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["forecaster", "windows", "mse", "mae"])
            writer.writerows([name, r.windows, r.mse, r.mae] for name, r in scores.items())
        self._draw(rivals, scores, origins)
        print(f"{self.run_dir}: {', '.join(sorted(path.name for path in self.run_dir.iterdir()))}")
        return scores

    def score(self, forecaster: Forecaster, origins: range) -> Scores:
        """Scores of a forecaster with the same covariates; no shapes.

        Args:
            forecaster: Whose.
            origins: Last rows seen.
        """
        # What is known is on both sides of the difference: series by series, it need not be put back.
        bare = self.values - forecaster.effect(self.known)
        method = partial(forecaster.bare, inputs=self.inputs, clock=self.covariates.clock(self.known))
        return score(method, bare, origins, self.config.prediction_length, together=forecaster.together)

    def _parts(self) -> dict[str, tuple[int, int]]:
        return {part: getattr(self.split, part) for part in ("train", "validation", "test")}

    def _origins(self, part: str) -> range:
        return self.split.origins(part, self.context_length, self.config.prediction_length)

    def _forecaster(self, model: torch.nn.Module) -> Forecaster:
        return Forecaster(
            model=model,
            name=self.config.model,
            scaler=self.scaler,
            columns=self.table.columns,
            offset=self.table.frequency.offset,
            covariates=self.covariates,
            effect=self.effect,
        )

    def _fit_linear(self) -> tuple[LinearSSM | OwnReadOut, RidgeReport]:
        """Without and with the effect of what is known, then by absolute errors: the unseen validation part decides."""
        options, started = self.config.linear, time.monotonic()
        train = self._origins("train")
        # A stretch loses a horizon at either end: one that is not twice as long says little.
        folds = min(options.folds, len(train) // (2 * self.config.prediction_length))
        folds = folds if folds >= 2 else 0
        tried = []
        for taken in (False, True) if self.known.shape[1] else (False,):
            effect, linear = KnownEffect(self.known.shape[1], len(self.values)), self._linear()
            if taken:
                effect.fit(self.values, self.known, self.split.train)
            report = self._fit_read_out(linear, effect, folds)
            tried.append((report, linear, effect))
            if math.isinf(report.strengths[report.chosen]) and not self.covariates.known:
                break  # the folds say that nothing can be learned: one validation part shall not overrule them
        report, linear, self.effect = min(tried, key=lambda found: getattr(found[0], options.select)[found[0].chosen])
        chosen, loss = self._best_mean(self._members(linear, report))
        ridge = report.strengths[report.chosen]
        choice = "the naive forecast" if math.isinf(ridge) else f"ridge {ridge:.3g}"
        known = "with" if self.effect.weight.any() else "without"
        print(
            f"LinearSSM: {len(linear.angles)} poles, {choice} by "
            f"{f'{folds} folds and validation' if folds else f'validation {options.select}'}, "
            f"{known} {self._named()} by validation {options.select}, {loss} by "
            f"{'the product of both' if options.mean_by == 'both' else options.mean_by} "
            f"(least squares alone: MSE {report.mse[report.chosen]:.4f}, MAE {report.mae[report.chosen]:.4f}), "
            f"{time.monotonic() - started:.1f} s"
        )
        return chosen, report

    def _fit_read_out(self, linear: LinearSSM, effect: KnownEffect, folds: int) -> RidgeReport:
        return fit_linear_ssm(
            linear,
            self.values - effect(self.known),
            self._origins("train"),
            self._origins("validation"),
            strengths=self.config.linear.ridge,
            select=self.config.linear.select,
            folds=folds,
        )

    def _members(self, linear: LinearSSM, report: RidgeReport) -> dict[str, LinearSSM | OwnReadOut]:
        """The read-out of least squares, and those of least absolute errors that go on from it."""
        options = self.config.linear
        members: dict[str, LinearSSM | OwnReadOut] = {"least squares": linear}
        if options.median and math.isfinite(report.strengths[report.chosen]):
            bare = self.values - self.effect(self.known)
            median = deepcopy(linear)
            rows = WhiteRows.of(median, bare, self._origins("train"))
            fit_median(median, rows)
            members["least absolute errors"] = median
            alone = self.config.model == "linear_ssm"  # a network goes on from one read-out for all series
            if options.own and alone and len(self.values) <= MOST_SERIES:
                clock = self.covariates.clock(self.known)
                members["each series' own, by the hour"] = fit_own_read_out(median, rows, clock)
        return members

    def _best_mean(self, members: dict[str, LinearSSM | OwnReadOut]) -> tuple[LinearSSM | OwnReadOut, str]:
        """The mean of one or more read-outs that is best on the validation part, and its name."""
        names, bare, clock = list(members), self.values - self.effect(self.known), self.covariates.clock(self.known)
        subsets = [names for n in range(len(names)) for names in itertools.combinations(range(len(members)), n + 1)]
        methods = [
            partial(self._forecaster(member).bare, inputs=self.inputs, clock=clock) for member in members.values()
        ]
        together = any(isinstance(member, OwnReadOut) for member in members.values())
        horizon = self.config.prediction_length
        scores = score_means(methods, subsets, bare, self._origins("validation"), horizon, together=together)
        best = min(range(len(subsets)), key=lambda i: getattr(scores[i], self.config.linear.mean_by))
        chosen = [names[i] for i in subsets[best]]
        with (self.run_dir / "read_outs.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["mean_of", "val_mse", "val_mae", "chosen"])
            for i, (subset, result) in enumerate(zip(subsets, scores, strict=True)):
                writer.writerow([" + ".join(names[j] for j in subset), result.mse, result.mae, int(i == best)])
        text = f"{' and '.join(chosen)} (validation MSE {scores[best].mse:.4f}, MAE {scores[best].mae:.4f})"
        return average([members[name] for name in chosen]), text

    def _named(self) -> str:
        cycles = [f"a cycle of {period}" for period, _ in self.covariates.harmonics]
        return ", ".join([*cycles, *self.covariates.known]) or "cycles"

    def _linear(self) -> LinearSSM:
        options = self.config.linear
        poles = default_poles(
            self.table.frequency.periods,
            self.context_length,
            time_constants=options.time_constants,
            harmonics=(options.daily_harmonics, options.weekly_harmonics),
        )
        return LinearSSM(self.config.prediction_length, *poles, context_length=self.context_length)

    def _log_ridge(self, report: RidgeReport) -> None:
        with (self.run_dir / METRICS_FILE).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["ridge", "val_mse", "val_mae", "chosen"])
            rows = zip(report.strengths, report.mse, report.mae, strict=True)
            writer.writerows([*row, int(i == report.chosen)] for i, row in enumerate(rows))

    def _fit_network(self, linear: LinearSSM) -> None:
        from ssmcore.engine import RunSettings, fit, make_loader

        from .models.window_forecaster import MIXERS, WindowForecaster
        from .task import ForecastTask, Windows

        config, h = self.config, self.config.prediction_length
        torch.manual_seed(config.seed)
        alone = config.base == "none"
        options = getattr(config, config.model, config.patch)
        model = WindowForecaster(linear, MIXERS[config.model], options, inputs=self.covariates.inputs, alone=alone)
        forecaster = self._forecaster(model)
        base = math.inf if alone else self.score(forecaster, self._origins("validation")).mae
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        bare, inputs = (self.values - self.effect(self.known)).float(), self.inputs.float()
        data = [
            Windows(bare, inputs, self._origins(part), linear.context_length, h) for part in ("train", "validation")
        ]
        train = make_loader(
            data[0],
            config.batch_size,
            seed=config.seed,
            steps_per_epoch=config.steps_per_epoch,
            num_workers=config.num_workers,
        )
        validation = make_loader(data[1], 4 * config.batch_size, seed=0, shuffle=False)
        settings = RunSettings(
            epochs=config.epochs,
            seed=config.seed,
            monitor="val_mae",
            patience=config.patience,
            save_every=config.save_every,
            accelerator=config.accelerator,
            devices=config.devices,
            precision=config.precision,
            note=forecaster.note,
        )
        task = ForecastTask(model, config.loss, config.lr, config.weight_decay, config.epochs * len(train))
        trainable = sum(p.numel() for p in model.parameters())
        print(f"{config.model}: {trainable} parameters, {len(train)} batches an epoch, starts at {base:.4f}")
        outcome = fit(task, train, validation, settings, self.run_dir)
        print(f"best validation MAE {outcome.best_score:.4f} after epoch {outcome.best_epoch + 1} of {outcome.epochs}")
        if not outcome.best_score < base:
            print("no epoch beat LinearSSM alone on the validation part: best.safetensors is LinearSSM alone")
            model.load_state_dict(start)
            forecaster.save(self.run_dir / BEST_FILE)

    def _draw(self, rivals: dict, scores: dict[str, Scores], origins: range) -> None:
        from .plots import plot_errors, plot_forecast

        h = self.config.prediction_length
        origin = origins[len(origins) // 2]  # the middle of the part: no choice to make
        forecasts = {
            name: self.scaler.inverse(method(self.values[:, : origin + 1])(torch.tensor([origin]))[:, 0].numpy().T)
            for name, method in rivals.items()
            if name != "naive"
        }
        shown = min(3 * h, self.context_length or 3 * h)
        table = self.table
        plot_forecast(self.run_dir / "forecast.png", table.dates, table.values, origin, forecasts, table.columns, shown)
        by_step = {name: result.mse_by_step.numpy() for name, result in scores.items()}
        plot_errors(self.run_dir / "errors.png", by_step, f"{Path(table.source).name}, {len(origins)} test windows")
