"""Other packages' names for what this suite does: for programs that were written for mamba_ssm and causal_conv1d.

    import ssmcore.compat
    ssmcore.compat.install()          # from here on `import mamba_ssm` and `import causal_conv1d` find these
    from mamba_ssm import Mamba

Signatures, layouts (channel-first, (b, d, l)), in-place updates of states and names of parameters are those of the
packages. So constructors take what theirs take, many or not, and nothing here is a model for the rest of the house.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .block import Block
    from .conv import causal_conv1d_fn, causal_conv1d_update, causal_conv1d_varlen_states
    from .finder import install, uninstall
    from .inference import InferenceParams
    from .language import MambaConfig, MambaLMHeadModel
    from .mamba import Mamba
    from .mamba2 import Mamba2
    from .scan import mamba_inner_fn, selective_scan_fn, selective_state_update
    from .ssd import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined

_HOMES = {
    "Block": "block",
    "InferenceParams": "inference",
    "Mamba": "mamba",
    "Mamba2": "mamba2",
    "MambaConfig": "language",
    "MambaLMHeadModel": "language",
    "causal_conv1d_fn": "conv",
    "causal_conv1d_update": "conv",
    "causal_conv1d_varlen_states": "conv",
    "install": "finder",
    "mamba_chunk_scan_combined": "ssd",
    "mamba_inner_fn": "scan",
    "mamba_split_conv1d_scan_combined": "ssd",
    "selective_scan_fn": "scan",
    "selective_state_update": "scan",
    "uninstall": "finder",
}

__all__ = [
    "Block",
    "InferenceParams",
    "Mamba",
    "Mamba2",
    "MambaConfig",
    "MambaLMHeadModel",
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "causal_conv1d_varlen_states",
    "install",
    "mamba_chunk_scan_combined",
    "mamba_inner_fn",
    "mamba_split_conv1d_scan_combined",
    "selective_scan_fn",
    "selective_state_update",
    "uninstall",
]


def __getattr__(name: str):
    """Import a public name on first use (PEP 562)."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
