"""State-space models and what stands beside them, as modules that all speak one interface.

Names are imported when they are first used: a command that only answers --help does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import functional
    from .mixer import Mixer, ParamSpec, Unsupported
    from .mixers import build_mixer, create_mixer, list_mixers
    from .presets import create_backbone, list_backbones
    from .stack import Stack
    from .wrappers import Bidirectional, ScanOrder

_HOMES = {
    "Bidirectional": "wrappers",
    "Mixer": "mixer",
    "ParamSpec": "mixer",
    "ScanOrder": "wrappers",
    "Stack": "stack",
    "Unsupported": "mixer",
    "build_mixer": "mixers",
    "create_backbone": "presets",
    "create_mixer": "mixers",
    "list_backbones": "presets",
    "list_mixers": "mixers",
}

__all__ = [
    "Bidirectional",
    "Mixer",
    "ParamSpec",
    "ScanOrder",
    "Stack",
    "Unsupported",
    "build_mixer",
    "create_backbone",
    "create_mixer",
    "functional",
    "list_backbones",
    "list_mixers",
]


def __getattr__(name: str):
    """Import a public name on first use (PEP 562)."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name == "functional":
        return importlib.import_module(".functional", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
