"""Registers an operator together with its first and second derivatives: the part of op.py that all operators share.

An operator is `name(tensors, index tensors, options) -> outputs`; its derivative is a second operator

    name_backward(cotangents, saved outputs, tensors, index tensors, options) -> one gradient for each given tensor

that a backend computes by its own kernel or, where it has none, through the reference. The second derivative always
goes through the reference. Gradients that a kernel makes from saved outputs count as functions of the inputs only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .autograd import differentiable_vector_jacobian, vector_jacobian
from .library import define, register

# (cotangents, saved outputs, all inputs) -> a gradient for each given tensor; None where this backend has no kernel.
Backward = Callable[[Sequence[Tensor | None], Sequence[Tensor], Sequence[Any]], list[Tensor] | None]


def register_differentiable(
    name: str,
    inputs: str,
    outputs: str,
    *,
    tensors: int,
    saved: Sequence[int],
    forward: Callable[..., tuple[Tensor, ...]],
    fake: Callable[..., tuple[Tensor, ...]],
    reference: Callable[..., tuple[Tensor, ...]],
    backward: Backward,
) -> None:
    """Define `ssm_kernels::name` and `ssm_kernels::name_backward`, with fake kernels and autograd formulas.

    Args:
        name: Operator name.
        inputs: Schema of the inputs: differentiable tensors first, then index tensors, then options.
        outputs: Schema of the outputs, e.g. "Tensor y, Tensor last_state"; a single one is returned as a tensor.
        tensors: How many inputs have a gradient.
        saved: Positions of the outputs that `backward` wants again.
        forward: The implementation, of all inputs; returns a tuple, also of one output.
        fake: The same on fake tensors.
        reference: The same by differentiable PyTorch operations alone; ignores the choice of backend.
        backward: The kernel for the gradients, or None from it where a backend has none.
    """
    all_inputs, all_outputs = inputs.split(", "), outputs.split(", ")
    single, held = len(all_outputs) == 1, sum(text.startswith("Tensor") for text in all_inputs)
    cotangents = [f"Tensor? d_{text.split()[1]}" for text in all_outputs]
    kept = [f"Tensor saved_{all_outputs[i].split()[1]}" for i in saved]
    define(f"{name}({inputs}) -> ({outputs})")
    define(f"{name}_backward({', '.join([*cotangents, *kept, inputs])}) -> Tensor[]")
    c, s = len(cotangents), len(kept)

    def as_reference(arguments: Sequence[Any]) -> Callable[..., tuple[Tensor, ...]]:
        """The reference as a function of the given tensors only."""

        def run(*given):
            it = iter(given)
            return reference(*(next(it) if t is not None else None for t in arguments[:tensors]), *arguments[tensors:])

        return run

    def given_of(arguments: Sequence[Any]) -> list[Tensor]:
        return [t for t in arguments[:tensors] if t is not None]

    @register(name)
    def _forward(*arguments):
        made = forward(*arguments)
        return made[0] if single else made

    @torch.library.register_fake(f"ssm_kernels::{name}")
    def _forward_fake(*arguments):
        made = fake(*arguments)
        return made[0] if single else made

    @register(f"{name}_backward")
    def _backward(*everything):
        given, arguments = everything[:c], everything[c + s :]
        grads = backward(given, everything[c : c + s], arguments)
        return vector_jacobian(as_reference(arguments), given_of(arguments), given) if grads is None else grads

    @torch.library.register_fake(f"ssm_kernels::{name}_backward")
    def _backward_fake(*everything):
        return [t.new_empty(t.shape) for t in given_of(everything[c + s :])]

    def setup(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        made = (output,) if single else output
        ctx.save_for_backward(*inputs[:held], *(made[i] for i in saved))
        ctx.options = inputs[held:]

    def forward_grad(ctx, *given):
        if all(g is None for g in given):
            return (*[None] * len(all_inputs),)
        arguments, again = ctx.saved_tensors[:held], ctx.saved_tensors[held:]
        call = getattr(torch.ops.ssm_kernels, f"{name}_backward")
        grads = iter(call(*given, *again, *arguments, *ctx.options))
        return (*(next(grads) if t is not None else None for t in arguments[:tensors]), *_nones(all_inputs, tensors))

    def setup_backward(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:c], *inputs[c + s : c + s + held])
        ctx.options = inputs[c + s + held :]

    def backward_grad(ctx, second):
        arguments = (*ctx.saved_tensors[c:], *ctx.options)
        run, leaves = as_reference(arguments), ctx.saved_tensors[: c + tensors]
        present = [t is not None for t in leaves]

        def gradients(*given):
            it = iter(given)
            full = [next(it) if there else None for there in present]
            return tuple(differentiable_vector_jacobian(run, [t for t in full[c:] if t is not None], full[:c]))

        grads = iter(differentiable_vector_jacobian(gradients, [t for t in leaves if t is not None], tuple(second)))
        full = [next(grads) if there else None for there in present]
        return (*full[:c], *[None] * s, *full[c:], *_nones(all_inputs, tensors))

    torch.library.register_autograd(f"ssm_kernels::{name}", forward_grad, setup_context=setup)
    torch.library.register_autograd(f"ssm_kernels::{name}_backward", backward_grad, setup_context=setup_backward)


def _nones(all_inputs: list[str], tensors: int) -> list[None]:
    return [None] * (len(all_inputs) - tensors)
