"""Vision: state-space image models in timm's dress.

    import vision.models                    registers with timm: timm.create_model("vim_tiny_patch16_224")
    vision.create_model(name, ...), vision.list_models("vim*"), vision.load_checkpoint(model, path)

    python -m vision.train, .evaluate, .predict, .benchmark     with timm's flags, for any timm model

`import vision` alone imports neither torch nor timm, so that `--help` is quick; the three functions do when they are
first asked for. The models are in `vision.models`, a family a file.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models import create_model, list_models, load_checkpoint

__all__ = ["create_model", "list_models", "load_checkpoint"]


def __getattr__(name: str) -> Any:
    """The public functions, imported on first use (PEP 562). No shapes.

    Raises:
        AttributeError: There is no such name.
    """
    if name in __all__:
        return getattr(importlib.import_module(".models", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
