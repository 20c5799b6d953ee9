"""Gradients by differentiating a reference: the backward of backends that have no kernel, and every double backward."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients_of_reference(
    run: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    output_grads: Sequence[Tensor | None],
    create_graph: bool = False,
) -> list[Tensor]:
    """Vector-Jacobian product of `run` at `inputs`.

    Args:
        run: Pure PyTorch function of tensors.
        inputs: Its arguments, any shapes.
        output_grads: One cotangent for each output of `run`; None for zero.
        create_graph: Keep the result differentiable with respect to `inputs` and `output_grads`.
    Returns:
        A gradient for each input, its shape; zeros where the output does not depend on it.
    """
    # An op's implementation runs below autograd's dispatch keys: they have to be put back for autograd to record.
    with torch._C._IncludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView), torch.enable_grad():
        if create_graph:
            leaves = [t if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        else:
            leaves = [t.detach().requires_grad_() for t in inputs]
        outputs = run(*leaves)
        pairs = [(y, g) for y, g in zip(outputs, output_grads, strict=True) if g is not None and y.requires_grad]
        if not pairs:
            return [torch.zeros_like(t) for t in inputs]
        grads = torch.autograd.grad(
            [y for y, _ in pairs],
            leaves,
            [g for _, g in pairs],
            allow_unused=True,
            create_graph=create_graph,
        )
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, grads, strict=True)]
