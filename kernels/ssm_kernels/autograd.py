"""Gradients by differentiating a reference: the backward of backends that have no kernel, and every double backward."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

# A pure PyTorch function from tensors to a tuple of tensors.
Reference = Callable[..., tuple[Tensor, ...]]


def vector_jacobian(run: Reference, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> list[Tensor]:
    """Gradients of `run` at `inputs`, from inside an operator's implementation.

    Autograd is switched off there (the dispatcher is below its keys), but torch.func brings its own.

    Args:
        run: The reference, a function of tensors only.
        inputs: Its arguments, any shapes.
        cotangents: One for each output of `run`; None for zero.
    Returns:
        A gradient for each input, of its shape.
    """
    # A dispatch mode (such as opcheck's) has watched the operator itself; it cannot look into torch.func's wrappers.
    with _disable_current_modes(), torch.enable_grad():
        outputs, pull_back = torch.func.vjp(lambda *args: tuple(run(*args)), *(t.detach() for t in inputs))
        full = tuple(torch.zeros_like(y) if g is None else g.detach() for y, g in zip(outputs, cotangents, strict=True))
        return [g.detach().contiguous() for g in pull_back(full)]


def differentiable_vector_jacobian(
    run: Reference, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor]:
    """The same as an expression that autograd can differentiate again, from inside an autograd formula.

    Args:
        run: The reference, a function of tensors only.
        inputs: Its arguments, any shapes.
        cotangents: One for each output of `run`; None for zero.
    Returns:
        A gradient for each input, of its shape; zeros where no output depends on it.
    """
    with torch.enable_grad():
        leaves = [t if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        pairs = [(y, g) for y, g in zip(run(*leaves), cotangents, strict=True) if g is not None and y.requires_grad]
        if not pairs:
            return [torch.zeros_like(t) for t in inputs]
        outputs, given = zip(*pairs, strict=True)
        grads = torch.autograd.grad(outputs, leaves, given, allow_unused=True, create_graph=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, grads, strict=True)]
