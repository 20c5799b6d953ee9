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


def register_autograd(name: str, setup: Callable, gradient: Callable) -> None:
    """The autograd formula of operator `name`, whose inputs have no default values.

    `torch.library.register_autograd` does the same, and reads the schema anew at every call: 0.2 ms for an operator of
    18 inputs, as long as a small scan takes.

    Args:
        name: The operator.
        setup: (ctx, inputs, output) -> None, keeps what `gradient` wants.
        gradient: (ctx, *cotangents) -> one gradient, or None, for every input.
    """
    operator = getattr(torch.ops.ssm_kernels, name).default

    def below(keyset, inputs):
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

    def forward(ctx, keyset, *inputs):
        output = below(keyset, inputs)
        setup(ctx, inputs, output)
        return output

    def backward(ctx, *cotangents):
        return None, *gradient(ctx, *cotangents)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    node = type(f"{name}_gradient", (torch.autograd.Function,), methods)

    def run(keyset, *inputs):
        wanted = torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in inputs)
        return node.apply(keyset, *inputs) if wanted else below(keyset, inputs)

    LIBRARY.impl(name, run, "Autograd", with_keyset=True)
