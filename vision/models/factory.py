"""Build and list the models of this package by name, through timm's registry."""

from typing import Any

import timm
from timm.models import build_model_with_cfg
from torch import nn

from ssmcore.registry import resolve

from .checkpoint import family_of

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


def build(kind: type[nn.Module], variant: str, pretrained: bool, options: dict[str, Any], **own: Any) -> nn.Module:
    """A variant of a family, through timm: what stands behind every entry point.

    Args:
        kind: The family's class.
        variant: Name in timm's registry.
        pretrained: Load the weights that its authors published.
        options: What the caller asked for; wins over the variant's own.
        **own: Arguments of the class that make the variant.
    Returns:
        The model, or with features_only its maps: all stages of a pyramid, the last three blocks of a plain model.
    Raises:
        TypeError: The class does not take an option.
    """
    levels = options.pop("out_indices", kind.feature_levels)
    return build_model_with_cfg(
        kind,
        variant,
        pretrained,
        pretrained_filter_fn=family_of(kind).checkpoint_filter_fn,
        feature_cfg={"out_indices": levels, "feature_cls": "getter"},
        **{**own, **options},
    )
