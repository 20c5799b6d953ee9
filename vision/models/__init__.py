"""The model families. Importing this registers them with timm: `timm.create_model`, `timm.list_models` then know them.

A family is one file: the model, its variants as timm entry points, and `checkpoint_filter_fn` for the weights that its
authors published.
"""

from . import localmamba, mambavision, plainmamba, s4nd, simba, vim, vmamba
from .checkpoint import load_checkpoint
from .factory import create_model, list_models

__all__ = [
    "create_model",
    "list_models",
    "load_checkpoint",
    "localmamba",
    "mambavision",
    "plainmamba",
    "s4nd",
    "simba",
    "vim",
    "vmamba",
]
