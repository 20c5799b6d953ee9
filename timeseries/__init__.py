"""Forecasting with state-space models: LinearSSM in closed form, and networks trained on what it leaves over.

Importing this package costs nothing; each name below is loaded on first use.
"""

from importlib import import_module

_HOME = {
    "TrainConfig": "config",
    "LinearSSMConfig": "config",
    "PatchConfig": "config",
    "DataError": "errors",
    "Table": "data",
    "Split": "data",
    "Scaler": "data",
    "read_csv": "data",
    "make_split": "data",
    "standardize": "data",
    "LinearSSM": "models.linear_ssm",
    "fit_linear_ssm": "models.ridge",
    "WindowForecaster": "models.window_forecaster",
    "SMamba": "models.s_mamba",
    "TimeMachine": "models.time_machine",
    "Simba": "models.simba",
    "Forecaster": "forecaster",
    "StructuralConfig": "config",
    "StructuralEstimator": "gaussian",
    "DeepStateEstimator": "deep_state",
    "fit_structural": "structural",
    "StreamConfig": "config",
    "SMambaConfig": "config",
    "TimeMachineConfig": "config",
    "SimbaConfig": "config",
    "FitConfig": "config",
    "SSMEstimator": "estimator",
    "LinearSSMEstimator": "estimator",
    "S4DForecaster": "estimator",
    "MambaForecaster": "estimator",
    "SMambaForecaster": "estimator",
    "TimeMachineForecaster": "estimator",
    "SimbaForecaster": "estimator",
    "SSMPredictor": "predictor",
    "Stream": "update",
    "at_rate": "rates",
    "from_pandas": "frames",
    "backtest": "backtesting",
    "anomaly_scores": "anomaly",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'timeseries' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
