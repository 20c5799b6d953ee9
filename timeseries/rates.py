"""One model at several sampling rates: the state-space model is a system in continuous time, so its step can change."""

from dataclasses import replace

import torch

from .models.linear_base import LinearBase
from .models.network import Network
from .predictor import SSMPredictor
from .series import period_freq


def at_rate(predictor: SSMPredictor, step: float, freq: str) -> SSMPredictor:
    """A predictor for the same quantity sampled every `step` of the steps that it was trained on.

    Args:
        predictor: Of a LinearSSM estimator with conformal intervals and no covariates.
        step: 0.5 for data twice as dense.
        freq: Frequency of those data.
    Returns:
        It forecasts floor(prediction_length / step) of the new steps; the intervals of steps in between are those of
        the next trained step.
    Raises:
        ValueError: The predictor has a part that is tied to its own rate.
    """
    trained = predictor.trained
    sizes = trained.blueprint.sizes
    if not predictor.network.closed_form or sizes.known:
        raise ValueError(
            "at_rate: only a linear predictor with conformal output and no covariates or cycle changes its rate"
        )
    linear = predictor.network.base.linear.at_rate(step)
    base = LinearBase(linear, 0, sizes.channels)
    base.ratio.copy_(predictor.network.base.ratio)
    rows = (step * torch.arange(1, linear.prediction_length + 1) - 1e-9).ceil().long() - 1
    calibration = replace(
        trained.calibration,
        sketch=trained.calibration.sketch[:, rows],
        inflation=trained.calibration.inflation[rows],
    )
    sizes = replace(sizes, prediction_length=linear.prediction_length)
    blueprint = replace(trained.blueprint, sizes=sizes, base_context=linear.context_length)
    network = Network(base, None, predictor.network.head, sizes)
    schema = replace(trained.schema, freq=period_freq(freq))
    return SSMPredictor(network, replace(trained, blueprint=blueprint, schema=schema, calibration=calibration))
