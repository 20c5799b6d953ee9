"""Forecasters. A model knows tensors in standard units; dates, files and scalers stay outside."""

from importlib import import_module

_HOME = {
    "LinearSSM": "linear_ssm",
    "default_poles": "linear_ssm",
    "fit_linear_ssm": "ridge",
    "RidgeReport": "ridge",
    "WindowForecaster": "window_forecaster",
    "PatchNetwork": "patch_network",
    "SMamba": "s_mamba",
    "TimeMachine": "time_machine",
    "Simba": "simba",
}
__all__ = sorted(_HOME)

CLOSED_FORM = ("linear_ssm",)
"""Models of `timeseries.train` that have nothing random in them and may look back to the first row."""


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'timeseries.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
