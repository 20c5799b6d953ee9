"""Read the checkpoints that upstream projects published; the mapping of their names is each family's own.

A family's `checkpoint_filter_fn(state_dict, model)` takes what upstream's training script saved, or this package's own
weights, and returns weights by this package's names. timm calls it for `pretrained=True`, `load_checkpoint` here, and
a model's own `load_state_dict`, through which timm's `checkpoint_path` and scripts go.
"""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

_AVERAGED = ("model_ema", "state_dict_ema", "ema_model")
_PLAIN = ("model", "state_dict")
_PREFIXES = ("_orig_mod.", "module.", "backbone.", "model.")


# Training scripts save their arguments beside the weights; VMamba's a yacs CfgNode, which is a dict with attributes.
# For every reader: timm opens what it downloads by itself.
torch.serialization.add_safe_globals([argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")])


def unwrap(state_dict: Mapping[str, Any], use_ema: bool = True) -> dict[str, Tensor]:
    """The weights alone: out of their container, without the prefixes that wrappers and detectors put before them.

    Args:
        state_dict: Weights by name, or a dict that holds them under "model", "model_ema" or "state_dict" beside others.
        use_ema: Take averaged weights, where there are any, before the plain ones, as timm does.
    Returns:
        Tensors of any shape by name.
    Raises:
        ValueError: It holds no tensors.
    """
    for key in (*_AVERAGED, *_PLAIN) if use_ema else _PLAIN:
        if isinstance(inner := state_dict.get(key), Mapping) and inner:
            state_dict = inner
            break
    weights = {}
    for name, value in state_dict.items():
        while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        if isinstance(value, Tensor):
            weights[name] = value
    if not weights:
        raise ValueError(f"checkpoint: no tensors, only {', '.join(map(str, list(state_dict)[:5])) or 'nothing'}")
    return weights


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint file as it is. No code in it is run.

    Args:
        path: A .safetensors file, or one that torch.save wrote.
    Returns:
        What the file holds: tensors by name, perhaps inside containers.
    Raises:
        FileNotFoundError: There is no such file.
        pickle.UnpicklingError: It holds more than tensors and plain values.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def accept_upstream_names(model: nn.Module) -> None:
    """Let `model.load_state_dict` take what its family's `checkpoint_filter_fn` takes. No shapes, raises nothing."""
    model.register_load_state_dict_pre_hook(_rename)


def _rename(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    own = {name: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
    own = {name.removeprefix(prefix): value for name, value in own.items()}
    family = family_of(type(model))
    if family is not None and any(isinstance(value, Tensor) for value in own.values()):
        own = family.checkpoint_filter_fn(own, model)
    state_dict |= {prefix + name: value for name, value in own.items()}


def family_of(kind: type[nn.Module]) -> Any:
    """The module of this package that a class, or one above it, comes from; None for a stranger. Raises nothing."""
    names = [base.__module__ for base in kind.__mro__ if base.__module__.startswith(f"{__package__}.")]
    return next((sys.modules[name] for name in names if hasattr(sys.modules[name], "checkpoint_filter_fn")), None)


def load_checkpoint(model: nn.Module, weights: str | Path | Mapping[str, Any], use_ema: bool = True) -> nn.Module:
    """Load weights that upstream or this package saved, and check that every one found its place.

    Args:
        model: A model of this package.
        weights: A file, or its content.
        use_ema: Take averaged weights before the plain ones, where a file has both.
    Returns:
        The same model.
    Raises:
        ValueError: The model is none of this package; or names or shapes do not fit it: says which, and the number of
            classes where that is the cause.
        FileNotFoundError, pickle.UnpicklingError: As `read`.
    """
    given = weights if isinstance(weights, Mapping) else read(weights)
    family = family_of(type(model))
    if family is None:
        raise ValueError(f"load_checkpoint: model is a {type(model).__name__}, expected a model of {__package__}")
    mapped = family.checkpoint_filter_fn(unwrap(given, use_ema), model)
    expected = model.state_dict()
    wrong = [
        f"{name} is {tuple(mapped[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in mapped and mapped[name].shape != value.shape
    ]
    wrong += [f"{name} is missing" for name in expected if name not in mapped]
    wrong += [f"{name} is unknown" for name in mapped if name not in expected]
    if wrong:
        raise ValueError(_explain(model, mapped, wrong))
    model.load_state_dict(mapped)
    return model


def _explain(model: nn.Module, mapped: Mapping[str, Tensor], wrong: list[str]) -> str:
    shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
    names = model.pretrained_cfg["classifier"] if getattr(model, "pretrained_cfg", None) else ""
    name = f"{names if isinstance(names, str) else names[0]}.weight"
    classes = ""
    if name in mapped and mapped[name].shape[0] != model.num_classes:
        classes = f" The checkpoint has {mapped[name].shape[0]} classes, the model {model.num_classes}."
    return f"load_checkpoint: the weights do not fit {type(model).__name__}: {shown}.{classes}"
