"""Build and list the models of this package by name, through timm's registry."""

from typing import Any

import timm
from torch import nn

from ssmcore.registry import resolve

FAMILIES = ("localmamba", "mambavision", "plainmamba", "s4nd", "simba", "vim", "vmamba")
"""The modules of this package that register models."""


def list_models(pattern: str = "*") -> list[str]:
    """Names of this package's models.

    Args:
        pattern: A shell pattern, e.g. "vim*".
    Returns:
        The names that match, sorted. No shapes, raises nothing.
    """
    return sorted({name for family in FAMILIES for name in timm.list_models(pattern, module=family)})


def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
    """Build a model, as `timm.create_model` does.

    Args:
        name: See `list_models`.
        pretrained: Load the weights that its authors published (needs the network).
        **options: What timm's models take (num_classes, in_chans, drop_path_rate, img_size, features_only, ...), and
            what the family takes besides (`mixer`).
    Returns:
        The model: images (b, in_chans, height, width) to logits (b, num_classes).
    Raises:
        ValueError: No such name; gives the near misses.
        TypeError: The model does not take an option.
    """
    family, _, _ = name.partition(".")  # a name may end in a tag of the pretrained weights
    resolve(family, dict.fromkeys(list_models()), "vision model")
    return timm.create_model(name, pretrained=pretrained, **options)
