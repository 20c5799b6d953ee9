"""The tables of `timeseries.ltsf`: Markdown to read, CSV to compute with, and a picture of the averages."""

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from .published import FREE_LOOKBACK, LOOKBACK_96, Pair

TITLES = {"short": "lookback fixed by the literature (96; 36 for ILI)", "free": "lookback free"}
PUBLISHED = {"short": LOOKBACK_96, "free": FREE_LOOKBACK}


def write_report(results: Sequence, folder: Path) -> list[Path]:
    """Write ltsf.csv, ltsf.md and ltsf.png.

    Args:
        results: Pairs of a Cell and its result.
        folder: Where.
    Returns:
        The files.
    """
    table = folder / "ltsf.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "lookback", "horizon", "model", "seed", "mse", "mae", "windows", "cpu_seconds"])
        for cell, r in results:
            key = (cell.dataset, cell.lookback, cell.horizon, cell.model, cell.seed)
            writer.writerow([*key, r["mse"], r["mae"], r["windows"], round(r["seconds"], 1)])
    text, picture = folder / "ltsf.md", folder / "ltsf.png"
    text.write_text(markdown(results))
    _draw(results, picture)
    return [table, text, picture]


def markdown(results: Sequence) -> str:
    """One table for each data set and lookback: MSE / MAE by horizon, their average, processor time.

    Args:
        results: Pairs of a Cell and its result.
    """
    parts = []
    groups = dict.fromkeys((cell.lookback, cell.dataset) for cell, _ in results)
    for lookback, dataset in groups:
        rows = [(cell, r) for cell, r in results if (cell.lookback, cell.dataset) == (lookback, dataset)]
        horizons = sorted({cell.horizon for cell, _ in rows})
        lines = [f"### {dataset}, {TITLES[lookback]}", "", _line("", *map(str, horizons), "average", "CPU min")]
        lines.append("|" + "---|" * (len(horizons) + 3))
        for model in dict.fromkeys(cell.model for cell, _ in rows):
            mine = {h: [r for cell, r in rows if cell.model == model and cell.horizon == h] for h in horizons}
            lines.append(_own_line(model, mine))
        for model, scores in PUBLISHED[lookback].get(dataset, {}).items():
            lines.append(_published_line(model, scores, horizons))
        parts.append("\n".join(lines))
    note = (
        "MSE / MAE on standardised values, every test window, no choice by test scores. "
        "Our rows: mean over seeds, with the standard deviation where there are several. *Italic*: as published.\n"
    )
    return "\n\n".join([*parts, note])


def _own_line(model: str, by_horizon: dict[int, list[dict]]) -> str:
    shown, means = [], []
    for runs in by_horizon.values():
        if not runs:
            shown.append("")
            continue
        mse, mae = ([r[name] for r in runs] for name in ("mse", "mae"))
        means.append((statistics.mean(mse), statistics.mean(mae)))
        spread = f" ±{statistics.stdev(mse):.3f}" if len(runs) > 1 else ""
        shown.append(_pair(means[-1]) + spread)
    seconds = sum(r["seconds"] for runs in by_horizon.values() for r in runs)
    average = _pair(_average(means)) if all(by_horizon.values()) else ""
    return _line(model, *shown, average, f"{seconds / 60:.1f}")


def _published_line(model: str, scores: dict[int, Pair], horizons: Sequence[int]) -> str:
    shown = [_pair(scores[h]) if h in scores else "" for h in horizons]
    average = _pair(_average([scores[h] for h in horizons])) if all(h in scores for h in horizons) else ""
    return _line(f"*{model}*", *shown, average, "")


def _average(pairs: Sequence[Pair]) -> Pair:
    return statistics.mean(p[0] for p in pairs), statistics.mean(p[1] for p in pairs)


def _pair(pair: Pair) -> str:
    return f"{pair[0]:.3f} / {pair[1]:.3f}"


def _line(*fields: str) -> str:
    return "| " + " | ".join(fields) + " |"


def _draw(results: Sequence, path: Path) -> None:
    """Average MSE of every model, relative to ridge, a panel a lookback."""
    lookbacks = list(dict.fromkeys(cell.lookback for cell, _ in results))
    datasets = list(dict.fromkeys(cell.dataset for cell, _ in results))
    models = [m for m in dict.fromkeys(cell.model for cell, _ in results) if m != "ridge"]
    figure, axes = plt.subplots(1, len(lookbacks), figsize=(5.5 * len(lookbacks), 3.6), sharey=True, squeeze=False)
    for axis, lookback in zip(axes[0], lookbacks, strict=True):
        scores: dict[tuple[str, str], dict[int, list[float]]] = {}
        for cell, r in results:
            if cell.lookback == lookback:
                scores.setdefault((cell.model, cell.dataset), {}).setdefault(cell.horizon, []).append(r["mse"])
        average = {  # only of models that have every horizon
            key: statistics.mean(statistics.mean(v) for v in by_horizon.values())
            for key, by_horizon in scores.items()
            if len(by_horizon) == len(scores["ridge", key[1]])
        }
        width = 0.8 / len(models)
        for i, model in enumerate(models):
            heights = [average.get((model, d), 0.0) / average.get(("ridge", d), 1.0) for d in datasets]
            axis.bar([k + i * width for k in range(len(datasets))], heights, width, label=model)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks([k + 0.4 - width / 2 for k in range(len(datasets))], datasets)
        axis.set_ylim(0.7, 1.5)
        axis.set_title(TITLES[lookback])
    axes[0, 0].set_ylabel("test MSE, relative to ridge")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
