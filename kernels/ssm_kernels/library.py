"""The torch.library namespace "ssm_kernels": operators are defined and implemented through it.

`torch.library.custom_op` would do the same with several times the call overhead.
"""

from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("ssm_kernels", "DEF")


def define(schema: str) -> None:
    """Define an operator by its schema."""
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))


def register(name: str) -> Callable[[Callable], Callable]:
    """Decorator: the implementation of operator `name` on every device."""

    def decorate(function: Callable) -> Callable:
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return function

    return decorate
