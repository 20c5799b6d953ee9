"""Makes `import mamba_ssm` and `import causal_conv1d` find this suite's functions, by a finder on sys.meta_path.

A table says which module has which names. Programs decide at import which functions they use (Hugging Face transformers
does, when a model's file is imported): install first.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

PACKAGES = ("causal_conv1d", "mamba_ssm")
VERSIONS = {"causal_conv1d": "1.5.3+ssmcore", "mamba_ssm": "2.3.2+ssmcore"}
"""The versions whose signatures these are, for programs that ask."""

_CONV = {name: f"conv.{name}" for name in ("causal_conv1d_fn", "causal_conv1d_update")}
# Upstream's references in PyTorch are here what they are references of.
_CONV_TOO = {"causal_conv1d_ref": "conv.causal_conv1d_ref", "causal_conv1d_update_ref": "conv.causal_conv1d_update"}
_SCAN = {name: f"scan.{name}" for name in ("selective_scan_fn", "mamba_inner_fn")}
_SCAN_TOO = {"selective_scan_ref": "scan.selective_scan_fn", "mamba_inner_ref": "scan.mamba_inner_fn"}
_SSD = {name: f"ssd.{name}" for name in ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined")}
_STEP = {name: "scan.selective_state_update" for name in ("selective_state_update", "selective_state_update_ref")}
_GATED = {"LayerNorm": "norm.LayerNormGated", "RMSNorm": "norm.RMSNormGated", "layernorm_fn": "norm.layernorm_fn",
          "rmsnorm_fn": "norm.rmsnorm_fn"}  # fmt: skip
_LANGUAGE = {name: f"language.{name}" for name in ("MambaLMHeadModel", "MixerModel", "create_block")}
_GENERATION = {name: f"generation.{name}" for name in ("GenerationMixin", "decode", "sample")}
_NORMS = {name: f"norm.{name}" for name in ("RMSNorm", "layer_norm_fn", "rms_norm_fn")}

MODULES: dict[str, dict[str, str]] = {
    "causal_conv1d": _CONV,
    "causal_conv1d.causal_conv1d_interface": {**_CONV, **_CONV_TOO},
    "causal_conv1d.causal_conv1d_varlen": {"causal_conv1d_varlen_states": "conv.causal_conv1d_varlen_states"},
    "mamba_ssm": {
        **_SCAN,
        "Mamba": "mamba.Mamba",
        "Mamba2": "mamba2.Mamba2",
        "MambaLMHeadModel": "language.MambaLMHeadModel",
    },
    "mamba_ssm.models": {},
    "mamba_ssm.models.config_mamba": {"MambaConfig": "language.MambaConfig"},
    "mamba_ssm.models.mixer_seq_simple": _LANGUAGE,
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.block": {"Block": "block.Block"},
    "mamba_ssm.modules.mamba_simple": {"Mamba": "mamba.Mamba", "Block": "block.Block"},
    "mamba_ssm.modules.mamba2": {"Mamba2": "mamba2.Mamba2"},
    "mamba_ssm.modules.mamba2_simple": {"Mamba2Simple": "mamba2_simple.Mamba2Simple"},
    "mamba_ssm.modules.mlp": {"GatedMLP": "block.GatedMLP"},
    "mamba_ssm.modules.ssd_minimal": {"ssd_minimal_discrete": "ssd.ssd_minimal_discrete"},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": {**_SCAN, **_SCAN_TOO},
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.layer_norm": _NORMS,
    "mamba_ssm.ops.triton.layernorm": _NORMS,
    "mamba_ssm.ops.triton.layernorm_gated": _GATED,
    "mamba_ssm.ops.triton.selective_state_update": _STEP,
    "mamba_ssm.ops.triton.ssd_combined": _SSD,
    "mamba_ssm.utils": {},
    "mamba_ssm.utils.generation": {**_GENERATION, "InferenceParams": "inference.InferenceParams"},
    "mamba_ssm.utils.hf": {name: f"language.{name}" for name in ("load_config_hf", "load_state_dict_hf")},
}
"""What each module offers: its names, and where in ssmcore.compat they are."""


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of the table, and loads them."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None):
        """The spec of a module in the table, None for others."""
        if fullname not in MODULES:
            return None
        is_package = any(name.startswith(f"{fullname}.") for name in MODULES)
        return importlib.machinery.ModuleSpec(fullname, self, origin="ssmcore.compat", is_package=is_package)

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module with its names, and a package with its modules: some programs import the package alone."""
        name = module.__name__
        module.__doc__ = f"{name}, as ssmcore.compat has it."
        for public, place in MODULES[name].items():
            home, attribute = place.split(".")
            setattr(module, public, getattr(importlib.import_module(f"ssmcore.compat.{home}"), attribute))
        if name in VERSIONS:
            module.__version__ = VERSIONS[name]  # type: ignore[attr-defined]
        for inner in MODULES:
            if inner.rpartition(".")[0] == name:
                importlib.import_module(inner)


_finder = _Finder()


def _foreign() -> list[str]:
    """The packages that are imported already and are not ours."""
    return [name for name in PACKAGES if name in sys.modules and not _is_ours(sys.modules[name])]


def _is_ours(module: ModuleType | None) -> bool:
    spec = getattr(module, "__spec__", None)
    return spec is not None and spec.loader is _finder


def install() -> None:
    """From here on `import mamba_ssm` and `import causal_conv1d` find ssmcore.compat, also where the real ones are.

    Twice does no harm. No shapes.

    Raises:
        RuntimeError: The real package is imported already.
    """
    if foreign := _foreign():
        raise RuntimeError(
            f"ssmcore.compat.install: {' and '.join(foreign)} is imported already, and others may hold parts of "
            "it; call install() before the first import"
        )
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        importlib.invalidate_caches()
    names = {name for offered in MODULES.values() for name in offered}
    late = [
        key
        for key, module in sys.modules.items()
        if key.startswith("transformers.models.") and ".modeling_" in key and names & vars(module).keys()
    ]
    if late:
        warnings.warn(
            f"ssmcore.compat.install: {', '.join(sorted(late))} was imported before and keeps what it found then; "
            "call install() before importing transformers' models",
            RuntimeWarning,
            stacklevel=2,
        )


def uninstall() -> None:
    """Undo `install`: later imports find the real packages, or none. What holds our functions keeps them.

    Twice does no harm. No shapes, raises nothing.
    """
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for name in MODULES:
        if _is_ours(sys.modules.get(name)):
            del sys.modules[name]
