"""How surprising each value was: the negative log likelihood of a value given all before it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from .conformal import recent_errors
from .fitting import targets_after, whole_window
from .predictor import SSMPredictor
from .series import read_series
from .trainable import check_counts, check_kinds

NORMAL_80 = 2.5631031
"""Width of the middle 80 % of a normal distribution, in standard deviations."""


@torch.no_grad()
def anomaly_scores(
    predictor: SSMPredictor, dataset: Iterable[Mapping[str, Any]], *, memory: int = 500
) -> list[np.ndarray]:
    """One-step surprises, in nats; high is unlikely.

    Where the output is a distribution with a density, that density counts. Otherwise the one-step error is set against
    a normal distribution whose deviation fits the middle 80 % of the latest errors before it.

    Args:
        predictor: With any output.
        dataset: GluonTS data entries.
        memory: Errors that say how large an error is usual, where the output has no density.
    Returns:
        For each series shape (t,) or, multivariate, (c, t); NaN where a value is missing, and at the first.
    Raises:
        ValueError: An argument or an entry cannot be used.
    """
    wanted = "an SSMPredictor; a structural model scores anomalies by fit_structural(...).anomaly"
    check_kinds("anomaly_scores", predictor=(predictor, SSMPredictor, wanted))
    check_counts("anomaly_scores", memory=memory)
    scores = []
    for number, entry in enumerate(dataset):
        series = read_series(entry, predictor.trained.schema, 0, number)
        window = predictor.on_device(whole_window(predictor.network, series, series.length))
        hidden, head = predictor.network(window), predictor.network.head
        origins = torch.arange(series.length)
        future = targets_after(series, origins, predictor.prediction_length)[None].to(predictor.device)
        try:
            score = -head.log_prob(window, hidden, future)[0, :, :, 0].cpu()
        except (NotImplementedError, AttributeError):
            score = _against_normal(_median(head, window, hidden)[0, :, :, 0], series.target, memory)
        score = torch.cat([torch.full_like(score[:, :1], torch.nan), score[:, :-1]], 1)
        scores.append(score.numpy() if series.multivariate else score[0].numpy())
    return scores


def _median(head: Any, window: Any, hidden: Any) -> torch.Tensor:
    """(b, c, o, h)."""
    if hasattr(head, "point"):
        return head.point(window, hidden).cpu()
    return head.predict(window, hidden, 100).values.median(0).values.cpu()


def _against_normal(forecast: torch.Tensor, target: torch.Tensor, memory: int) -> torch.Tensor:
    """Forecasts (c, t) of the next value, and values (c, t), to surprises (c, t) of the next value."""
    errors = recent_errors(target[None], forecast[None, ..., None], target.shape[1])[0, ..., 0]
    scores = torch.full_like(target, torch.nan)
    for channel, row in enumerate(errors):
        known = row[~row.isnan()]
        if len(known) < 2:
            continue
        floor = 1e-9 + 1e-6 * known.abs().median()
        for t in range(1, len(row)):
            before = row[max(0, t - memory) : t]
            before = before[~before.isnan()]
            before = before if len(before) >= 10 else known
            low, high = torch.quantile(before, torch.tensor([0.1, 0.9], dtype=torch.float64))
            deviation = torch.maximum((high - low) / NORMAL_80, floor)
            z = (row[t] - before.median()) / deviation
            scores[channel, t - 1] = 0.5 * z.square() + deviation.log() + 0.9189385
    return scores
