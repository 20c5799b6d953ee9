"""`python -m apps.bench kalman`: the exact likelihood of many series under structural models, against statsmodels.

Each row is one structural model and a batch of series under its own variances. statsmodels takes one series after the
other; ours takes all at once. Times are CPU times of the process on one thread, per series and step, medians of calls
in turns; the largest difference of the log-likelihoods is in nats.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "level": ({"trend": "level"}, {"level": "local level"}),
    "trend": ({"trend": "linear"}, {"level": "local linear trend"}),
    "trend, season 12": ({"trend": "linear", "seasons": (12,)}, {"level": "local linear trend", "seasonal": 12}),
    "trend, season 24": ({"trend": "linear", "seasons": (24,)}, {"level": "local linear trend", "seasonal": 24}),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model; times in microseconds a series and step."""

    model: str
    states: int
    statsmodels: float
    ours: float
    gradient: float
    """Of ours with the gradient of every variance."""
    difference: float

    @property
    def times(self) -> float:
        """statsmodels to ours."""
        return self.statsmodels / self.ours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `kalman`."""
    parser.add_argument("--series", type=int, default=256, help="series in a batch (default: 256)")
    parser.add_argument("--steps", type=int, default=500, help="steps of each (default: 500)")
    parser.add_argument("--calls", type=int, default=7, help="timed calls (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the file."""
    import torch

    torch.set_num_threads(1)
    print(
        f"{'model':18}{'states':>7}{'statsmodels':>13}{'ours':>9}{'times':>8}{'+ gradient':>12}{'difference':>12}",
        end="",
    )
    print(f"   (microseconds a series and step; {args.series} series of {args.steps} steps)")
    rows = []
    for name in MODELS:
        row = measure(name, args.series, args.steps, args.calls)
        rows.append(row)
        print(
            f"{row.model:18}{row.states:7}{row.statsmodels:13.3f}{row.ours:9.3f}{row.times:8.1f}{row.gradient:12.3f}"
            f"{row.difference:12.1e}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def measure(name: str, series: int, steps: int, calls: int) -> Row:
    """One model on random walks.

    Args:
        name: Key of MODELS.
        series: In the batch.
        steps: Of each.
        calls: Timed calls of each side, in turns.
    """
    import numpy as np
    import torch
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    from ssmcore.kalman import log_likelihood
    from timeseries.config import StructuralConfig
    from timeseries.models.structural import VAGUE, structural_model, variance_names

    ours, theirs = MODELS[name]
    config = StructuralConfig(**ours)
    rng = np.random.default_rng(0)
    y = rng.standard_normal((series, steps)).cumsum(1) + rng.standard_normal((series, steps))
    variances = torch.tensor(rng.uniform(0.2, 1.5, (series, len(variance_names(config)))))
    batch, few = torch.tensor(y)[..., None], 8
    peers = [UnobservedComponents(row, **theirs) for row in y[:few]]
    for peer in peers:
        peer.ssm.initialize_approximate_diffuse(VAGUE)
        peer.ssm.loglikelihood_burn = 0

    def likelihood() -> Any:
        return log_likelihood(structural_model(config, variances), batch)[0].sum(1)

    def gradient() -> None:
        free = variances.clone().requires_grad_()
        log_likelihood(structural_model(config, free), batch)[0].sum().backward()

    def reference() -> list[float]:
        return [peer.loglike(row.numpy()) for peer, row in zip(peers, variances, strict=False)]

    difference = max(abs(a - float(b)) for a, b in zip(reference(), likelihood(), strict=False))
    gradient()
    times: dict[Callable, list[float]] = {reference: [], likelihood: [], gradient: []}
    for _ in range(calls):
        for call, seconds in times.items():
            started = time.process_time()
            call()
            seconds.append(time.process_time() - started)
    micro = {call: statistics.median(seconds) / steps * 1e6 for call, seconds in times.items()}
    return Row(
        model=name,
        states=structural_model(config, variances).transition.shape[-1],
        statsmodels=micro[reference] / few,
        ours=micro[likelihood] / series,
        gradient=micro[gradient] / series,
        difference=difference,
    )
