"""A stream: histories read once, then one value of every series at a time, at a cost that does not grow.

What it knows is a dict of tensors: the states of the linear base and of the encoder, the forecasts whose outcome is
still to come, and the latest errors. It equals what a look at the whole history gives, and can be saved and restored.

    b  items      c  channels      h  prediction_length      j  errors that are kept
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssmcore.engine import load_weights, save_weights
from ssmcore.state import State, map_state

from .conformal import recent_errors
from .fitting import whole_window
from .models.window import Hidden, Window
from .series import Series

if TYPE_CHECKING:
    from gluonts.model.forecast import Forecast

    from .predictor import SSMPredictor


class Stream:
    """Made by `SSMPredictor.start`.

    Args:
        predictor: Whose network it is.
        items: The series, for their names and units; their history is no longer needed.
        state: See the head of this file.
    """

    def __init__(self, predictor: SSMPredictor, items: Sequence[Series], state: State):
        self.predictor, self.items, self.state = predictor, list(items), state
        self.steps = 0

    @classmethod
    @torch.no_grad()
    def begin(cls, predictor: SSMPredictor, items: Sequence[Series]) -> Stream:
        """Read the histories.

        Raises:
            ValueError: There is no item.
        """
        if not items:
            raise ValueError("start: the dataset has no entries; give at least one series")
        states = [_after(predictor, series) for series in items]
        return cls(predictor, items, map_state(lambda *parts: torch.cat(parts), states[0], *states[1:]))

    @torch.no_grad()
    def update(self, values: Any, *, known: Any = None, past: Any = None, dt: Any = None) -> np.ndarray:
        """Take in the next value of every series.

        Args:
            values: NaN where missing, shape (b,) or (b, c); a number where there is one series of one channel.
            known: Covariates of this step that are known for the future, shape (b, q), where the training had any.
            past: Covariates of the past of this step, shape (b, p), where the training had any.
            dt: Time since the value before, in steps, shape (b,) or a number; None is 1.
        Returns:
            The value less what was forecast for it one step before, shape (b, c); NaN where either is unknown.
        Raises:
            ValueError: A shape disagrees, or a value is infinite.
        """
        schema, state, network = self.predictor.trained.schema, self.state, self.predictor.network
        b, c = state["first"].shape
        values = _numbers("values", values, (b, c), missing=True)
        known, past = _numbers("known", known, (b, schema.known)), _numbers("past", past, (b, schema.past))
        known = torch.cat([known, self._cycles(range(1))[:, 0]], 1)
        steps = None if dt is None else _numbers("dt", np.broadcast_to(dt, (b,)), (b,))
        if steps is not None and bool((steps <= 0).any()):
            raise ValueError(f"update: dt must be positive, got {float(steps.min())}")
        value = values - state["first"]
        surprise = self._learn(value, known)
        new, scale, level = network.base.step(value, state["base"], state["first"], known, steps)
        state |= {"base": new, "scale": scale, "level": level}
        if network.encoder is not None:
            inputs = torch.cat([known, past, state["static"]], 1).float()
            device = self.predictor.device
            hidden, state["encoder"] = network.encoder.step(
                value.to(device), inputs.to(device), scale.to(device), state["encoder"], steps
            )
            state["hidden"] = {"features": hidden.features, "scale": hidden.scale}
        if "errors" in state:
            self._remember()
        self.steps += 1
        return surprise.numpy()

    @torch.no_grad()
    def forecast(self, known: Any = None) -> list[Forecast]:
        """Forecast what follows the latest value.

        Args:
            known: Covariates of the steps to forecast, shape (b, h, q), where the training had any.
        Returns:
            One forecast for each series.
        Raises:
            ValueError: The covariates are absent or have another shape.
        """
        from .predictor import make_forecast

        predictor, state = self.predictor, self.state
        b, _ = state["first"].shape
        horizon = predictor.prediction_length
        ahead = _numbers("known", known, (b, horizon, predictor.trained.schema.known))
        ahead = torch.cat([ahead, self._cycles(range(horizon))], 2)
        window, hidden = self._look(ahead)
        mean = None
        if predictor.trained.calibration is None:
            prediction = predictor.network.head.predict(window, hidden, predictor.trained.num_samples)
        else:
            point = predictor.network.head.point(window, hidden)[:, :, 0].cpu()
            prediction, mean = predictor.interval(point, state["errors"], state["scale"], state.get("width"))
        return [
            make_forecast(
                replace(series, start=series.start + self.steps),
                replace(prediction, values=prediction.values[:, i : i + 1]),
                None if mean is None else mean[i : i + 1],
            )
            for i, series in enumerate(self.items)
        ]

    def save(self, path: str | Path) -> None:
        """Write the state to a .safetensors file."""
        save_weights(path, _flatten(self.state), {"steps": self.steps})

    def load(self, path: str | Path) -> None:
        """Go on from a state that `save` wrote.

        Raises:
            ValueError: There is no such file, or it belongs to other series or another predictor.
        """
        tensors, note = load_weights(path)
        here = _flatten(self.state)
        wrong = sorted(k for k in here.keys() | tensors.keys() if _shape(here, k) != _shape(tensors, k))
        if wrong:
            raise ValueError(f"Stream.load: {path} does not fit these series and this predictor ({', '.join(wrong)})")
        self.state, self.steps = _unflatten(self.state, tensors), note["steps"]

    # -- inner ------------------------------------------------------------------------------------------------------

    def _cycles(self, ahead: range) -> Tensor:
        """What the calendar says of steps after the latest value, which is step -1: (b, len(ahead), q)."""
        schema, steps = self.predictor.trained.schema, (ahead.start + self.steps, ahead.stop + self.steps)
        made = [schema.cycles(s.start, range(s.length + steps[0], s.length + steps[1])) for s in self.items]
        return torch.from_numpy(np.stack(made)).double()

    def _learn(self, value: Tensor, known: Tensor) -> Tensor:
        """Keep the errors of the forecasts that this value is the outcome of; returns that of one step, (b, c)."""
        if "errors" not in self.state:
            return torch.full_like(value, torch.nan)
        pending, errors = self.state["pending"], self.state["errors"]
        horizon = pending["point"].shape[-1]
        # Row i of `pending` was made i + 1 steps ago: of it, step i + 1 is now.
        steps = torch.arange(horizon)
        rows = (self.steps - 1 - steps) % horizon
        point = pending["point"][:, :, rows, steps]
        point = point + self.predictor.network.known_effect(
            known[:, None], pending["scale"][:, :, rows], pending["local"][:, :, rows]
        )
        latest = value[..., None] - point
        if "width" in self.state:
            calibration = self.predictor.trained.calibration
            reach = calibration.reach(latest, pending["scale"][:, :, rows])
            issued = pending["width"][:, :, rows, steps]
            self.state["width"] = calibration.wider(self.state["width"], reach, issued)
        # The rings are this stream's own: written in place, so that the cost does not depend on how long they are.
        errors[:, :, self.steps % errors.shape[2]] = latest
        return latest[..., 0]

    def _remember(self) -> None:
        """Keep the newest point forecast, less the effect of covariates to come, until its outcomes are known."""
        network, pending = self.predictor.network, self.state["pending"]
        window, hidden = self._look(torch.zeros(len(self.items), network.horizon, network.sizes.known).double())
        row = self.steps % network.horizon
        pending["point"][:, :, row] = network.head.point(window, hidden)[:, :, 0].cpu()
        pending["scale"][:, :, row] = window.scale[..., 0].cpu()
        pending["local"][:, :, row] = hidden.scale[..., 0].cpu()
        if "width" in self.state:
            pending["width"][:, :, row] = self.state["width"]

    def _look(self, known: Tensor) -> tuple[Window, Hidden]:
        """What the head needs for a forecast from here; known is (b, h, q)."""
        state, network = self.state, self.predictor.network
        nothing = known.new_zeros
        b, c = state["first"].shape
        window = Window(
            target=nothing(b, c, 0),
            inputs=nothing(b, 0, 0),
            known=known[:, None].float(),
            static=state["static"].float(),
            category=state["category"],
            base=network.base.forecast(state["base"], state["scale"], known)[:, :, None],
            scale=state["scale"][..., None],
            level=state["level"][..., None],
            first=state["first"],
        )
        window = self.predictor.on_device(window)
        encoded = Hidden(**state["hidden"]) if "hidden" in state else None
        return window, network.hidden(window, encoded)


def _after(predictor: SSMPredictor, series: Series) -> State:
    """The state after one history, with a batch axis of 1."""
    network, calibration = predictor.network, predictor.trained.calibration
    count = 1 if calibration is None else calibration.looks_back(series.length)
    window = predictor.on_device(whole_window(network, series, count))
    encoded, state = None, {}
    if network.encoder is not None:
        encoded, state["encoder"] = network.encoder.read(window)
        state["hidden"] = {"features": encoded.features[:, :, -1:], "scale": encoded.scale[:, :, -1:]}
    target, first = series.target[None], series.first[None]
    scale, level = network.base.scales(target, first)
    x = network.base.adjusted(target, series.known[None, : series.length], scale)
    dt = None if series.dt is None else series.dt[None].expand(len(x[0]), -1)
    state["base"] = {
        "linear": network.base.linear.state_after(x[0], dt),
        "sums": network.base.sums(target, first)[..., -1, :],
    }
    state |= {"scale": scale[..., -1], "level": level[..., -1], "first": first}
    state |= {"static": series.static[None].double(), "category": series.category[None]}
    if calibration is not None:
        state |= _rings(predictor, window, network.hidden(window, encoded), target)
    return state


def _rings(predictor: SSMPredictor, window: Window, hidden: Hidden, target: Tensor) -> State:
    """The latest errors, and the forecasts whose outcome is to come; the newest stand last, the next go first."""
    network, calibration = predictor.network, predictor.trained.calibration
    assert calibration is not None
    point = network.head.point(window, hidden).cpu()
    scale, local = window.scale.cpu(), hidden.scale.cpu()
    errors = recent_errors(target, point, calibration.memory)
    bare = point - network.known_effect(window.known.cpu(), scale[..., None], local[..., None])

    def ring(latest: Tensor, size: int) -> Tensor:
        made = torch.full((*latest.shape[:2], size, *latest.shape[3:]), torch.nan, dtype=torch.float64)
        kept = latest[:, :, -size:]
        made[:, :, size - kept.shape[2] :] = kept
        return made

    pending, state = {"point": bare, "scale": scale, "local": local}, {}
    if calibration.gain:
        pending["width"] = calibration.widths(recent_errors(target, point, point.shape[2]), scale)
        state["width"] = pending["width"][:, :, -1]
    return {
        **state,
        "errors": ring(errors, calibration.memory),
        "pending": {name: ring(values, network.horizon) for name, values in pending.items()},
    }


def _numbers(name: str, value: Any, shape: tuple[int, ...], missing: bool = False) -> Tensor:
    """An argument as float64 of this shape."""
    if value is None and 0 in shape:
        return torch.zeros(shape, dtype=torch.float64)
    array = np.asarray(value, dtype=np.float64)
    if array.size != np.prod(shape) or (array.ndim > 1 and array.shape != shape):
        raise ValueError(f"update: {name} has shape {array.shape}, expected {shape}")
    if np.isinf(array).any() or (not missing and np.isnan(array).any()):
        raise ValueError(f"update: {name} must be finite numbers" + (", or NaN where missing" if missing else ""))
    return torch.from_numpy(array.reshape(shape).copy())


def _flatten(state: State, prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = torch.view_as_real(value) if value.is_complex() else value
    return flat


def _unflatten(like: State, flat: dict[str, Tensor], prefix: str = "") -> State:
    new: State = {}
    for key, value in like.items():
        if isinstance(value, dict):
            new[key] = _unflatten(value, flat, f"{prefix}{key}/")
        else:
            tensor = flat[prefix + key].to(value.device)
            new[key] = torch.view_as_complex(tensor) if value.is_complex() else tensor
    return new


def _shape(tensors: dict[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(tensors[key].shape) if key in tensors else None
