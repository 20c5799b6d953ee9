"""Training for every domain on Lightning's Trainer: run folder, exact resume, guards. Names load on first use."""

from importlib import import_module

_HOME = {
    "RunSettings": "run",
    "fit": "run",
    "make_run_dir": "folder",
    "make_trainer": "run",
    "guarded": "guard",
    "Interrupted": "errors",
    "NonFiniteError": "errors",
    "EpochSampler": "loader",
    "make_loader": "loader",
    "parameter_groups": "optim",
    "make_optimizer": "optim",
    "cosine_schedule": "optim",
    "load_weights": "weights",
    "save_weights": "weights",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'ssmcore.engine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
