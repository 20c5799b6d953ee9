"""One run of `python -m timeseries.train`, once the data are known to be good: fit, score, draw, save."""

import csv
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ssmcore.engine import cli, make_run_dir
from ssmcore.engine.folder import BEST_FILE, METRICS_FILE

from .config import TrainConfig
from .data import Split, Table, standardize
from .forecaster import Forecaster
from .metrics import Method, Scores, naive, score, seasonal_naive
from .models.linear_ssm import LinearSSM, default_poles
from .models.ridge import RidgeReport, fit_linear_ssm


class Experiment:
    """Holds the data in standard units and the run folder.

    Args:
        config: What to do.
        table: The data, in the units of the file.
        split: The parts.
        context_length: Values a forecast may use; None for all since the first row.
    """

    def __init__(self, config: TrainConfig, table: Table, split: Split, context_length: int | None):
        self.config, self.table, self.split, self.context_length = config, table, split, context_length
        standard, self.scaler = standardize(table, split)
        self.values = torch.from_numpy(standard.values.T.copy())
        saved = replace(config, resume=None)
        if config.resume:
            self.run_dir = Path(config.resume)
            (self.run_dir / cli.CONFIG_FILE).write_text(cli.dump(saved))
        else:
            stem = Path(table.source).name.split(".")[0]
            name = f"{stem}-{config.prediction_length}-{config.model}-{context_length or 'free'}"
            self.run_dir = make_run_dir(config.output, name, saved)

    def train(self) -> None:
        """Leave best.safetensors in the run folder.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved.
            NonFiniteError: NaN or infinity came up.
        """
        table, parts = self.table, ", ".join(f"{p} {end - start}" for p, (start, end) in self._parts().items())
        shape = f"{len(table.dates)} rows x {len(table.columns)} columns, step {table.frequency.offset}"
        print(f"{table.source}: {shape}, split {self.split.name} (rows: {parts})")
        linear, report = self._fit_linear()
        if self.config.model == "linear_ssm":
            self._log_ridge(report)
            self._forecaster(linear).save(self.run_dir / BEST_FILE)
        else:
            self._fit_patches(linear)

    def report(self) -> dict[str, Scores]:
        """Print and write the test scores beside the naive forecasts, and draw.

        Returns:
            Scores by forecaster, the trained one first.
        """
        config, season = self.config, self.table.frequency.season
        best = Forecaster.load(self.run_dir)
        h = config.prediction_length
        rivals: dict[str, Method] = {config.model: best.from_origins, "naive": partial(naive, horizon=h)}
        if season > 1:
            rivals[f"seasonal naive ({season})"] = partial(seasonal_naive, horizon=h, season=season)
        origins = self.split.origins("test", self.context_length, h)
        scores = {name: score(method, self.values, origins, h) for name, method in rivals.items()}
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
        )

    def _fit_linear(self) -> tuple[LinearSSM, RidgeReport]:
        options, started = self.config.linear, time.monotonic()
        poles = default_poles(
            self.table.frequency.periods,
            self.context_length,
            time_constants=options.time_constants,
            harmonics=(options.daily_harmonics, options.weekly_harmonics),
        )
        linear = LinearSSM(self.config.prediction_length, *poles, context_length=self.context_length)
        train, validation = self._origins("train"), self._origins("validation")
        # A stretch loses a horizon at either end: one that is not twice as long says little.
        folds = min(options.folds, len(train) // (2 * self.config.prediction_length))
        folds = folds if folds >= 2 else 0
        report = fit_linear_ssm(
            linear, self.values, train, validation, strengths=options.ridge, select=options.select, folds=folds
        )
        ridge = report.strengths[report.chosen]
        choice = "the naive forecast" if math.isinf(ridge) else f"ridge {ridge:.3g}"
        print(
            f"LinearSSM: {len(linear.angles)} poles, {choice} by "
            f"{f'{folds} folds and validation' if folds else f'validation {options.select}'} "
            f"(validation MSE {report.mse[report.chosen]:.4f}, MAE {report.mae[report.chosen]:.4f}), "
            f"{time.monotonic() - started:.1f} s"
        )
        return linear, report

    def _log_ridge(self, report: RidgeReport) -> None:
        with (self.run_dir / METRICS_FILE).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["ridge", "val_mse", "val_mae", "chosen"])
            rows = zip(report.strengths, report.mse, report.mae, strict=True)
            writer.writerows([*row, int(i == report.chosen)] for i, row in enumerate(rows))

    def _fit_patches(self, linear: LinearSSM) -> None:
        from ssmcore.engine import RunSettings, fit, make_loader

        from .models.patch_forecaster import PatchForecaster
        from .task import ForecastTask, Windows

        config, h = self.config, self.config.prediction_length
        torch.manual_seed(config.seed)
        model = PatchForecaster(linear, config.model, config.patch)
        forecaster = self._forecaster(model)
        base = score(forecaster.from_origins, self.values, self._origins("validation"), h).mae
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        data = [
            Windows(self.values.float(), self._origins(part), linear.context_length, h)
            for part in ("train", "validation")
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
        task = ForecastTask(model, config.patch.loss, config.lr, config.weight_decay, config.epochs * len(train))
        trainable = sum(p.numel() for p in model.parameters())
        print(f"{config.model} on patches: {trainable} parameters, {len(train)} batches an epoch, starts at {base:.4f}")
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
