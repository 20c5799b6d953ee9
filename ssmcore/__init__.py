"""State-space models and what stands beside them, as modules that all speak one interface."""

from . import functional
from .mixer import Mixer, ParamSpec, Unsupported
from .mixers import build_mixer, create_mixer, list_mixers
from .stack import Stack
from .wrappers import Bidirectional, ScanOrder

__all__ = [
    "Bidirectional",
    "Mixer",
    "ParamSpec",
    "ScanOrder",
    "Stack",
    "Unsupported",
    "build_mixer",
    "create_mixer",
    "functional",
    "list_mixers",
]
