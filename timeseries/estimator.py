"""Forecasters as GluonTS estimators: `train(dataset)` gives a predictor that saves, loads, predicts and streams.

    LinearSSMEstimator(24).train(dataset)                              seconds, in closed form
    MambaForecaster(24, output="student_t").train(dataset)             a Mamba on top of it, and a distribution
    SSMEstimator(24, mixer={"name": "s5", "d_state": 32}, ...)         any registered mixer

How it works is in fitting.py (what is done in which order), models/ (the networks), heads.py (the outputs).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from gluonts.core.component import validated

from .config import FitConfig, LinearSSMConfig, SimbaConfig, SMambaConfig, StreamConfig, TimeMachineConfig
from .fitting import Choice, Item, calibrate, fit_base, pair, validation_errors
from .frequency import harmonics_of, periods_of
from .heads import describe_output
from .models.blueprint import STACKS, Blueprint
from .models.linear_base import LinearBase
from .models.linear_ssm import LinearSSM, default_poles
from .models.network import Network
from .models.window_forecaster import MIXERS
from .predictor import SSMPredictor, Trained
from .series import Schema, period_freq, read_schema, read_series
from .trainable import OTHER_OPTIONS, Entries, Trainable, check_counts, check_kinds


class SSMEstimator(Trainable[SSMPredictor]):
    """LinearSSM, with a state-space network on top of it if `mixer` is given.

    Args:
        prediction_length: Steps to forecast.
        freq: Frequency of the series; None takes that of the data. Any pandas name will do (`ME` and `M`, `h` and `H`).
        context_length: Values that a forecast may use; None for all in the linear base, and ten seasons, between 64 and
            512 steps, for the windows that a network is trained on.
        mixer: Sequence mixer of the network, a name or a dict of a name and options; None for the linear base alone.
        stack: StreamConfig for a causal network that can be updated in constant time; PatchConfig, SMambaConfig,
            TimeMachineConfig or SimbaConfig for one that reads each window as a whole.
        output: `conformal` for intervals from past errors, a name of `heads.OUTPUTS`, or a GluonTS output.
        covariates: Use feat_dynamic_real, past_feat_dynamic_real, feat_static_real and feat_static_cat where the data
            have them; LinearSSM itself uses the first. False leaves them alone.
        linear: Options of the linear base: its poles, ridge, select, median and mean_by; the others are of
            timeseries.train. None for the default ones without the median, which is all closed form.
        fit: What is held out, and how the part that has no closed form is trained.
        num_samples: Samples of a forecast, where the output draws them.
        callbacks: Lightning callbacks, kept for every training.
        cycle: Harmonics of each season, shortest first, of a cycle of the calendar that is taken off every channel, in
            units of the item's scale, if that helps on the validation part; the default is none.
    Raises:
        ValueError: A value that cannot be used; the text names it.
    """

    default_mixer: ClassVar[dict[str, Any] | None] = None
    """What `mixer=None` means."""
    default_stack: ClassVar[type] = StreamConfig
    """What `stack=None` means."""

    @validated()
    def __init__(
        self,
        prediction_length: int,
        freq: str | None = None,
        context_length: int | None = None,
        mixer: str | dict | None = None,
        stack: Any = None,
        output: Any = "conformal",
        covariates: bool = True,
        linear: Any = None,
        fit: Any = None,
        num_samples: int = 100,
        callbacks: Any = (),
        cycle: Sequence[int] = (),
    ):
        super().__init__(lead_time=0)
        check_counts(type(self).__name__, prediction_length=prediction_length, context_length=context_length)
        self.prediction_length, self.context_length = prediction_length, context_length
        self.freq = None if freq is None else period_freq(freq)
        self.mixer = self.default_mixer if mixer is None else mixer
        self.stack = None if self.mixer is None else stack or self.default_stack()
        if self.stack is not None and type(self.stack) not in STACKS.values():
            known = ", ".join(kind.__name__ for kind in STACKS.values())
            raise ValueError(f"{type(self).__name__}: stack is {stack!r}, expected one of {known}")
        self.output: dict[str, Any] = describe_output(output)
        self.covariates, self.num_samples, self.callbacks = covariates, num_samples, list(callbacks)
        self.linear, self.cycle, self.fit = linear or LinearSSMConfig(median=False), tuple(cycle), fit or FitConfig()
        check_kinds(
            type(self).__name__,
            linear=(self.linear, LinearSSMConfig, "a LinearSSMConfig"),
            fit=(self.fit, FitConfig, "a FitConfig"),
        )

    def _train(
        self, predictor: SSMPredictor | None, training_data: Entries, validation_data: Entries | None
    ) -> SSMPredictor:
        entries = list(training_data)
        schema = read_schema(entries, self.freq, self.covariates)
        longest = max(np.size(entry.get("target")) for entry in entries) // schema.channels
        schema = replace(schema, harmonics=harmonics_of(periods_of(schema.freq), self.cycle, longest))
        if predictor is not None:
            schema = predictor.trained.schema
        apart = None if validation_data is None else _read(validation_data, schema)
        items = pair(_read(entries, schema), apart, self.prediction_length, self.fit.validation_share)
        torch.manual_seed(self.fit.seed)
        blueprint, network = self._network(schema)
        if predictor is not None:
            if predictor.trained.blueprint.to_dict() != blueprint.to_dict():
                raise ValueError(OTHER_OPTIONS)
            network.load_state_dict(predictor.network.state_dict())
        choice = fit_base(network.base, items, self.linear, named=schema.known, keep=predictor is not None)
        if not network.closed_form:
            self._learn(network, items)
        calibration = None
        if self.output["name"] == "conformal":
            errors, seen = validation_errors(network, items), None
            if validation_data is None and predictor is None:
                self._refit(network.base, items, choice)
                seen = validation_errors(network, items)
            calibration = calibrate(errors, seen, self.fit.memory, self.fit.gain)
        trained = Trained(blueprint=blueprint, schema=schema, calibration=calibration, num_samples=self.num_samples)
        return SSMPredictor(network, trained)

    def _network(self, schema: Schema) -> tuple[Blueprint, Network]:
        periods = periods_of(schema.freq)
        options = self.linear
        tau, angles = default_poles(
            periods,
            self.context_length,
            time_constants=options.time_constants,
            harmonics=(options.daily_harmonics, options.weekly_harmonics),
        )
        blueprint = Blueprint(
            sizes=schema.sizes(self.prediction_length),
            poles=len(tau),
            base_context=self.context_length,
            output=self.output,
            mixer=self.mixer,
            stack=self.stack,
            context_length=0 if self.mixer is None else self.context_length or min(max(10 * periods[0], 64), 512),
        )
        network = blueprint.build()
        linear: LinearSSM = network.base.linear
        linear.time_constants.copy_(tau)
        linear.angles.copy_(angles)
        return blueprint, network

    def _learn(self, network: Network, items: Sequence[Item]) -> None:
        from .training import train_network

        stream = isinstance(self.stack, StreamConfig)
        context = network.encoder.memory if stream else getattr(network.encoder, "context_length", 1)
        origins = self.stack.origins if stream else 32 if self.stack is None else 1
        train_network(network, items, int(context), origins, self.fit, self.callbacks)

    def _refit(self, base: LinearBase, items: Sequence[Item], choice: Choice) -> None:
        """Once more on all that is known, with what was chosen."""
        if math.isfinite(choice.ridge):
            whole = [Item(series=i.series, train=_both(i.train, i.validation), validation=i.validation) for i in items]
            fit_base(base, whole, self.linear, chosen=choice)


class LinearSSMEstimator(SSMEstimator):
    """LinearSSM in closed form: fixed poles, a ridge read-out, intervals from its own past errors."""


class S4DForecaster(SSMEstimator):
    """S4D on top of LinearSSM."""

    default_mixer: ClassVar = {"name": "s4d", "d_state": 16}


class MambaForecaster(SSMEstimator):
    """Mamba on top of LinearSSM."""

    default_mixer: ClassVar = {"name": "mamba", "d_state": 16}


class SMambaForecaster(SSMEstimator):
    """S-Mamba on top of LinearSSM: the channels of a multivariate target are scanned in both directions."""

    default_mixer: ClassVar = MIXERS["s_mamba"]
    default_stack: ClassVar = SMambaConfig


class TimeMachineForecaster(SSMEstimator):
    """TimeMachine on top of LinearSSM."""

    default_mixer: ClassVar = MIXERS["time_machine"]
    default_stack: ClassVar = TimeMachineConfig


class SimbaForecaster(SSMEstimator):
    """SiMBA on top of LinearSSM."""

    default_mixer: ClassVar = MIXERS["simba"]
    default_stack: ClassVar = SimbaConfig


def _read(entries: Entries, schema: Schema) -> list:
    return [read_series(entry, schema, 0, number) for number, entry in enumerate(entries)]


def _both(train: range, validation: range) -> range:
    """One range over two that follow each other, with what lies between."""
    return range(min(train.start, validation.start) if len(train) else validation.start, validation.stop)
