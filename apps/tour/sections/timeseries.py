"""Forecasting carbon dioxide at Mauna Loa a year ahead: 44 years of weekly air samples, with gaps."""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from timeseries import LinearSSMEstimator, from_pandas
from timeseries.config import PatchConfig, TrainConfig
from timeseries.data import make_split, read_csv
from timeseries.experiment import Experiment
from timeseries.forecaster import Forecaster
from timeseries.metrics import Method, Scores, naive, score, seasonal_naive

from ..charts import INK, SOFT, drawing, lines
from ..report import Command, Figure, Section, Table, Text
from . import Visit

HORIZON, CONTEXT, SEED = 52, 208, 0  # weeks: a year ahead from four years
PATCHES = PatchConfig(patch_length=52, stride=26)  # of a dozen settings the best on the validation part
LINEAR_SHORT, MAMBA = f"LinearSSM, {CONTEXT // HORIZON} years", "Mamba on LinearSSM"


@dataclass
class Contest:
    """The forecasters, fitted, and their scores on the test part."""

    experiment: Experiment
    methods: dict[str, Method]
    scores: dict[str, Scores]
    seconds: dict[str, float]
    origins: range

    @property
    def unit(self) -> float:
        """Parts per million in one standard unit."""
        return float(self.experiment.scaler.scale[0])


def write_series(path: Path, rows: int | None = None) -> Path:
    """The series as statsmodels ships it, as a CSV file with its gaps left open."""
    from statsmodels.datasets import co2

    frame = co2.load_pandas().data[:rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index_label="date")
    return path


def run(visit: Visit) -> Section:
    """Fit in closed form, train by gradient, compare on every window of the last years."""
    contest = compete(visit)
    ppm = {name: result.mae * contest.unit for name, result in contest.scores.items()}
    gain = ppm[MAMBA] - ppm[LINEAR_SHORT]
    least = f"{min(ppm.values()):.2f}"
    best = " and ".join(name for name, error in ppm.items() if f"{error:.2f}" == least)
    return Section(
        title="Time series: a year of carbon dioxide ahead",
        summary=f"{best}: off by {least} ppm on average over the year ahead; repeating the last year: "
        f"{ppm[_seasonal(contest)]:.2f} ppm.",
        blocks=[
            *_introduction(contest),
            Figure(
                _forecast_drawing(contest),
                "A forecast from the middle of the test part, chosen for its place alone, beside what was measured.",
                "Curves of the measured series for two years and of the forecasts for the year after.",
            ),
            _score_table(contest),
            Text(
                "Against the LinearSSM that it started from, learning by gradient changed the mean absolute error on "
                f"the test part by {gain:+z.3f} ppm."
                + " A series this short and regular leaves it little."
                * (abs(gain) < 0.03 * ppm[LINEAR_SHORT])
            ),
            Figure(
                _error_drawing(contest),
                "Mean absolute error by weeks ahead, over all test windows.",
                "Error curves from one to fifty-two weeks ahead for every forecaster.",
            ),
            *_stream(contest),
            Text(
                f"Protocol: all {len(contest.origins)} windows of the test part, one a week; weeks without a "
                "measurement do not count. Scale, weights and settings come from the training and validation "
                f"parts. One run with seed {SEED}: how much another seed would change is not shown here. The windows "
                "overlap, so they are far fewer independent trials than their number."
            ),
        ],
        next=[
            Command(
                f"python -m timeseries.train --data {contest.experiment.table.source} --prediction-length 104",
                "LinearSSM on the same series, two years ahead; any CSV file with a date column will do.",
            ),
            Command(
                "python -m timeseries.train --help",
                "Every option. Each run saves its configuration and goes on where it stopped with `--resume RUN_DIR`.",
            ),
        ],
    )


def _introduction(contest: Contest) -> list[Text]:
    table, split = contest.experiment.table, contest.experiment.split
    first, last = (table.dates[i].year for i in (0, -1))
    gaps = int(np.isnan(table.values).sum())
    train, validation, test = (end - start for start, end in (split.train, split.validation, split.test))
    return [
        Text(
            f"Weekly carbon dioxide in the air of Mauna Loa, Hawaii, {first} to {last}: {len(table.dates)} weeks, "
            f"{gaps} of them not measured. The gaps stay gaps: a state-space model skips what it has not seen. "
            f"The first {train} weeks are for training, the next {validation} for choosing, the last {test} (from "
            f"{table.dates[split.test[0]]:%B %Y}) only for the scores below. Each forecast covers {HORIZON} weeks."
        ),
        Text(
            "LinearSSM keeps a bank of fixed memories and oscillations and solves for its read-out in closed form; "
            f"it may look back to the first week. Mamba reads patches of the last {CONTEXT // HORIZON} years in "
            "both directions and learns by gradient what a LinearSSM of the same memory leaves over; that one is "
            "in the table too, and where no epoch helps on the validation part Mamba stays equal to it. The naive "
            "rivals repeat the last value, or the last year."
        ),
    ]


def compete(visit: Visit) -> Contest:
    """Fit both forecasters on the same split and score them beside the naive ones."""
    table = read_csv(write_series(visit.folder / "co2.csv", 700 if visit.tiny else None))
    entries = {"LinearSSM": ("linear_ssm", None), MAMBA: ("mamba", CONTEXT)}
    methods: dict[str, Method] = {}
    seconds: dict[str, float] = {}
    for name, (model, context) in entries.items():
        config = TrainConfig(
            data=table.source,
            prediction_length=HORIZON,
            context_length=context or "free",
            model=model,
            epochs=1 if visit.tiny else 8,
            steps_per_epoch=2 if visit.tiny else None,
            patch=PatchConfig(d_model=8, num_layers=1) if visit.tiny else PATCHES,
            lr=1e-4,
            seed=SEED,
            output=str(visit.folder / "runs"),
            accelerator="cpu",
        )
        split = make_split(table, config.split, context, HORIZON)
        experiment, started = Experiment(config, table, split, context), time.monotonic()
        experiment.train()
        seconds[name] = time.monotonic() - started
        forecaster = Forecaster.load(experiment.run_dir)
        methods[name] = forecaster.method(experiment.known)
    methods[LINEAR_SHORT] = replace(forecaster, model=forecaster.linear).method(experiment.known)  # Mamba's base
    season = table.frequency.season
    methods[f"last year again ({season} weeks)"] = partial(seasonal_naive, horizon=HORIZON, season=season)
    methods["last value again"] = partial(naive, horizon=HORIZON)
    origins = split.origins("test", CONTEXT, HORIZON)
    scores = {name: score(method, experiment.values, origins, HORIZON) for name, method in methods.items()}
    return Contest(experiment, methods, scores, seconds, origins)


def _seasonal(contest: Contest) -> str:
    return next(name for name in contest.methods if name.startswith("last year"))


def _score_table(contest: Contest) -> Table:
    rows = [
        [
            name, f"{result.mae * contest.unit:.3f}", f"{result.mse**0.5 * contest.unit:.3f}", f"{result.mae:.4f}",
            f"{result.mse:.5f}", f"{contest.seconds[name]:.0f} s" if name in contest.seconds else "",
        ]
        for name, result in contest.scores.items()
    ]  # fmt: skip
    best = [i for i, row in enumerate(rows) if row[1] == min(row[1] for row in rows)]
    head = ["", "MAE, ppm", "RMSE, ppm", "MAE, standard", "MSE, standard", "training"]
    caption = f"Test scores over {len(contest.origins)} windows of {HORIZON} weeks; the smallest error in bold."
    return Table(head, rows, caption, strong=best)


def _forecast_drawing(contest: Contest) -> str:
    experiment, origin = contest.experiment, contest.origins[len(contest.origins) // 2]
    dates, values = experiment.table.dates, experiment.table.values[:, 0]
    past, future = slice(origin + 1 - 2 * HORIZON, origin + 1), slice(origin + 1, origin + 1 + HORIZON)
    forecasts = {}
    for name, method in contest.methods.items():
        if name not in ("last value again", LINEAR_SHORT):
            standard = method(experiment.values[:, : origin + 1])(torch.tensor([origin]))[0, 0]
            forecasts[name] = experiment.scaler.inverse(standard.numpy()[:, None])[:, 0]
    with drawing(8, 3.4, "forecast") as (figure, svg):
        axis = figure.subplots()
        axis.plot(dates[past], values[past], color=SOFT, linewidth=1.2)
        axis.plot(dates[future], values[future], color=INK, linewidth=1.6, label="measured")
        lines(axis, dates[future], forecasts, list(contest.methods))
        axis.axvline(dates[origin], color=SOFT, linewidth=0.8, linestyle=":")
        axis.set(ylabel="carbon dioxide, ppm")
        axis.legend(loc="upper left", ncols=2, fontsize=9)
        axis.set_ylim(top=axis.get_ylim()[1] + 0.25 * np.ptp(axis.get_ylim()))
        return svg()


def _stream(contest: Contest) -> list[Text | Figure]:
    """A GluonTS predictor that takes in the test part week by week, and forecasts with intervals from its middle."""
    table, origin = contest.experiment.table, contest.origins[len(contest.origins) // 2]
    frame, known = pd.DataFrame({"co2": table.values[:, 0]}, index=table.dates), contest.experiment.split.test[0]
    predictor = LinearSSMEstimator(prediction_length=HORIZON).train(from_pandas(frame[:known]))
    predictor.start(from_pandas(frame[:known]))
    started = time.perf_counter()
    for value in table.values[known : origin + 1, 0]:
        predictor.update(value)
    update = (time.perf_counter() - started) / (origin + 1 - known)
    forecast, started = predictor.forecast()[0], time.perf_counter()
    whole = next(predictor.predict(from_pandas(frame[: origin + 1])))
    recompute = time.perf_counter() - started
    apart = max(np.abs(forecast.quantile(level) - whole.quantile(level)).max() for level in (0.1, 0.5, 0.9))
    future = slice(origin + 1, origin + 1 + HORIZON)
    measured = table.values[future, 0]
    inside = (forecast.quantile(0.1) <= measured) & (measured <= forecast.quantile(0.9))
    share = inside[~np.isnan(measured)].mean()
    with drawing(8, 2.8, "intervals") as (figure, svg):
        axis = figure.subplots()
        axis.fill_between(
            table.dates[future], forecast.quantile(0.1), forecast.quantile(0.9), color=SOFT, alpha=0.35, linewidth=0
        )
        axis.plot(table.dates[future], measured, color=INK, linewidth=1.6, label="measured")
        lines(axis, table.dates[future], {"LinearSSM": forecast.quantile(0.5)}, list(contest.methods))
        axis.set(ylabel="carbon dioxide, ppm")
        axis.legend(loc="upper left", ncols=2, fontsize=9)
        picture = svg()
    return [
        Text(
            "`LinearSSMEstimator` is the same model in GluonTS's dress. Trained on the weeks before "
            f"{table.dates[known]:%B %Y}, it took in the {origin + 1 - known} weeks after it one by one, "
            f"{update * 1e6:.0f} microseconds each, intervals included; reading the whole history again took "
            f"{recompute * 1e3:.0f} milliseconds for a forecast that differs by {apart:.0e} ppm."
        ),
        Figure(
            picture,
            f"The forecast of the stream with its 80 % interval, from errors of its own past: {share:.0%} of the "
            "measured weeks of this year lie in it.",
            "A band around the forecast of a year, with the measured curve.",
        ),
    ]


def _error_drawing(contest: Contest) -> str:
    curves = {name: (r.mae_by_step * contest.unit).numpy() for name, r in contest.scores.items()}
    with drawing(8, 2.8, "error") as (figure, svg):
        axis = figure.subplots()
        lines(axis, np.arange(1, HORIZON + 1), curves, list(contest.methods))
        axis.set(xlabel="weeks ahead", ylabel="MAE, ppm", ylim=(0, None), xlim=(1, HORIZON))
        axis.set_ylim(top=1.35 * axis.get_ylim()[1])
        axis.legend(fontsize=9, ncols=3, loc="upper left")
        return svg()
