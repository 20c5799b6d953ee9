"""Gradients by differentiating a reference: the backward of backends that have no kernel, and every double backward."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

# A pure PyTorch function from tensors to a tuple of tensors.
Reference = Callable[..., tuple[Tensor, ...]]


def vector_jacobian(run: Reference, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> list[Tensor]:
    """Gradients of `run` at `inputs`, from inside an operator's implementation.

    The dispatcher has switched autograd off there, for this thread; so the gradient is taken in a thread of its own.

    Args:
        run: The reference, a function of tensors only.
        inputs: Its arguments, any shapes.
        cotangents: One for each output of `run`; None for zero.
    Returns:
        A gradient for each input, of its shape.
    """
    plain = [t.detach() for t in inputs]
    given = [g if g is None else g.detach() for g in cotangents]
    with ThreadPoolExecutor(1) as thread:
        grads = thread.submit(differentiable_vector_jacobian, run, plain, given, False).result()
    return [g.detach().contiguous() for g in grads]


def differentiable_vector_jacobian(
    run: Reference, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], create_graph: bool = True
) -> list[Tensor]:
    """The same as an expression that autograd can differentiate again, from inside an autograd formula.

    Args:
        run: The reference, a function of tensors only.
        inputs: Its arguments, any shapes.
        cotangents: One for each output of `run`; None for zero.
        create_graph: Whether the result is to be differentiated again.
    Returns:
        A gradient for each input, of its shape; zeros where no output depends on it.
    """
    with torch.enable_grad():
        leaves = [t if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        pairs = [(y, g) for y, g in zip(run(*leaves), cotangents, strict=True) if g is not None and y.requires_grad]
        if not pairs:
            return [torch.zeros_like(t) for t in inputs]
        outputs, given = zip(*pairs, strict=True)
        grads = torch.autograd.grad(outputs, leaves, given, allow_unused=True, create_graph=create_graph)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, grads, strict=True)]
