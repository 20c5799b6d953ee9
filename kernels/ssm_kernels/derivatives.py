"""Registers an operator together with its first and second derivatives: the part of op.py that all operators share.

An operator is `name(tensors, index tensors, options) -> outputs`; its derivative is a second operator

    name_backward(cotangents, saved outputs, tensors, index tensors, options) -> one gradient for each given tensor

that a backend computes by its own kernel or, where it has none, through the reference. The second derivative always
goes through the reference. Gradients that a kernel makes from saved outputs count as functions of the inputs only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .autograd import differentiable_vector_jacobian, vector_jacobian
from .library import define, register, register_autograd

Outputs = tuple[Tensor, ...]
# (cotangents, saved outputs, all inputs) -> a gradient for each given tensor; None where this backend has no kernel.
Backward = Callable[[Sequence[Tensor | None], Sequence[Tensor], Sequence[Any]], list[Tensor] | None]


def register_differentiable(
    name: str,
    inputs: str,
    outputs: str,
    *,
    tensors: int,
    saved: Sequence[int] = (),
    forward: Callable[..., Outputs],
    fake: Callable[..., Outputs],
    reference: Callable[..., Outputs],
    backward: Backward,
) -> None:
    """Define `ssm_kernels::name` and `ssm_kernels::name_backward`, with fake kernels and autograd formulas.

    Args:
        name: Operator name.
        inputs: Schema of the inputs: differentiable tensors first (any shape), then index tensors, then options.
        outputs: Schema of the outputs, e.g. "Tensor y, Tensor last_state"; a single one is returned as a tensor.
        tensors: How many inputs have a gradient.
        saved: Positions of the outputs that `backward` wants again.
        forward: The implementation, of all inputs; returns a tuple, also of one output.
        fake: The same on fake tensors.
        reference: The same by differentiable PyTorch operations alone; ignores the choice of backend.
        backward: The kernel for the gradients, or None from it where a backend has none.
    """
    _Operator(name, inputs, outputs, tensors, tuple(saved), forward, fake, reference, backward).register()


@dataclass(frozen=True)
class _Operator:
    name: str
    inputs: str
    outputs: str
    tensors: int
    saved: tuple[int, ...]
    forward: Callable[..., Outputs]
    fake: Callable[..., Outputs]
    reference: Callable[..., Outputs]
    backward: Backward

    def register(self) -> None:
        outputs, back = self.outputs.split(", "), f"{self.name}_backward"
        extra = [f"Tensor? d_{text.split()[1]}" for text in outputs]
        extra += [f"Tensor saved_{outputs[i].split()[1]}" for i in self.saved]
        define(f"{self.name}({self.inputs}) -> ({self.outputs})")
        define(f"{back}({', '.join([*extra, self.inputs])}) -> Tensor[]")
        register(self.name)(self._single(self.forward))
        register(back)(self._run_backward)
        torch.library.register_fake(f"ssm_kernels::{self.name}", self._single(self.fake))
        torch.library.register_fake(f"ssm_kernels::{back}", self._fake_backward)
        register_autograd(self.name, self._setup, self._gradient)
        torch.library.register_autograd(f"ssm_kernels::{back}", self._second, setup_context=self._setup_second)

    @cached_property
    def _held(self) -> int:
        """How many inputs are tensors, index tensors included."""
        return sum(text.startswith("Tensor") for text in self.inputs.split(", "))

    @cached_property
    def _nones(self) -> list[None]:
        """The gradients of the inputs that have none."""
        return [None] * (len(self.inputs.split(", ")) - self.tensors)

    @cached_property
    def _cotangents(self) -> int:
        return len(self.outputs.split(", "))

    def _single(self, function: Callable[..., Outputs]) -> Callable[..., Outputs | Tensor]:
        return (lambda *arguments: function(*arguments)[0]) if self._cotangents == 1 else function

    def _split(self, everything: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        """The arguments of name_backward as cotangents, saved outputs and inputs."""
        c, s = self._cotangents, len(self.saved)
        return everything[:c], everything[c : c + s], everything[c + s :]

    def _given(self, inputs: Sequence[Any]) -> list[Tensor]:
        return [t for t in inputs[: self.tensors] if t is not None]

    def _of_given(self, inputs: Sequence[Any]) -> Callable[..., Outputs]:
        """The reference as a function of the given tensors only."""

        def run(*given: Tensor) -> Outputs:
            it, n = iter(given), self.tensors
            return self.reference(*(next(it) if t is not None else None for t in inputs[:n]), *inputs[n:])

        return run

    def _run_backward(self, *everything: Any) -> list[Tensor]:
        cotangents, saved, inputs = self._split(everything)
        grads = self.backward(cotangents, saved, inputs)
        return vector_jacobian(self._of_given(inputs), self._given(inputs), cotangents) if grads is None else grads

    def _fake_backward(self, *everything: Any) -> list[Tensor]:
        return [t.new_empty(t.shape) for t in self._given(self._split(everything)[2])]

    def _setup(self, ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)
        made = (output,) if self._cotangents == 1 else output
        ctx.save_for_backward(*inputs[: self._held], *(made[i] for i in self.saved))
        ctx.options = inputs[self._held :]

    def _gradient(self, ctx, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors  # once: activation checkpointing recomputes at every look
        inputs, saved = kept[: self._held], kept[self._held :]
        if all(g is None for g in cotangents):
            return (*[None] * self.tensors, *self._nones)
        call = getattr(torch.ops.ssm_kernels, f"{self.name}_backward")
        grads = iter(call(*cotangents, *saved, *inputs, *ctx.options))
        return (*(next(grads) if t is not None else None for t in inputs[: self.tensors]), *self._nones)

    def _setup_second(self, ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)
        cotangents, _, arguments = self._split(inputs)
        ctx.save_for_backward(*cotangents, *arguments[: self._held])
        ctx.options = arguments[self._held :]

    def _second(self, ctx, second: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Differentiate the reference's gradients once more, whichever backend made the first."""
        c, kept = self._cotangents, ctx.saved_tensors
        run = self._of_given((*kept[c:], *ctx.options))
        leaves = kept[: c + self.tensors]

        def spread(given: Sequence[Tensor]) -> list[Tensor | None]:
            it = iter(given)
            return [next(it) if t is not None else None for t in leaves]

        def gradients(*given: Tensor) -> Outputs:
            full = spread(given)
            return tuple(differentiable_vector_jacobian(run, [t for t in full[c:] if t is not None], full[:c]))

        given = [t for t in leaves if t is not None]
        full = spread(differentiable_vector_jacobian(gradients, given, tuple(second)))
        return (*full[:c], *[None] * len(self.saved), *full[c:], *self._nones)
