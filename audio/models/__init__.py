"""Models of raw audio. A model knows levels and tensors; files, rates and labels' names stay outside."""

from importlib import import_module

_HOME = {"DiffWave": "diffwave", "SaShiMi": "sashimi", "load_upstream": "upstream"}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
