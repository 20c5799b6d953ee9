"""State of a mixer or of a whole stack: a dict of batch-first tensors, possibly nested, never changed in place.

Because it is plain data, keeping it, rolling it back, sending it elsewhere or reordering it (beam search) takes one of
these functions and no knowledge of the model: {"conv": (b, w - 1, d), "ssm": (b, d, n)}; a Stack nests one per layer.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .array_types import Bool, Int

State: TypeAlias = dict[str, Any]
"""Values are tensors (b, ...), or states again."""


def map_state(fn: Callable[..., Tensor], state: State, *others: State) -> State:
    """Apply `fn` to every tensor of a state, or to the tensors that several states hold at the same place.

    Args:
        fn: Takes one tensor of each state, returns a tensor.
        state: Tensors of shape (b, ...).
        others: States with the same keys.
    Returns:
        A new state with the keys of `state`.
    Raises:
        ValueError: The states do not have the same keys.
    """
    for other in others:
        if other.keys() != state.keys():
            raise ValueError(f"map_state: keys {sorted(other)} do not match {sorted(state)}")
    return {
        key: map_state(fn, value, *(other[key] for other in others))
        if isinstance(value, dict)
        else fn(value, *(other[key] for other in others))
        for key, value in state.items()
    }


def gather(state: State, index: Int[Tensor, "r"]) -> State:
    """Pick batch items: beam reorder, dropping finished sequences, repeating a prompt.

    Args:
        state: Tensors of shape (b, ...).
        index: Batch items to take, in order; may repeat, shape (r,).
    Returns:
        A new state of tensors (r, ...).
    Raises:
        IndexError: An index lies outside the batch.
    """
    return map_state(lambda t: t.index_select(0, index.to(t.device)), state)


def detach(state: State) -> State:
    """Cut the gradient, for truncated back-propagation through time: tensors (b, ...) as before. Raises nothing."""
    return map_state(Tensor.detach, state)


def to(state: State, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
    """Move or cast a state.

    Args:
        state: Tensors of shape (b, ...).
        device: Where to; None stays.
        dtype: Real float type, e.g. torch.float64; complex tensors take its complex twin, integers stay. None stays.
    Returns:
        A new state of tensors (b, ...).
    Raises:
        ValueError: dtype is not a real float type.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"to: dtype {dtype} is not a real float type")

    def cast(t: Tensor) -> Tensor:
        target = t.dtype
        if dtype is not None:
            target = dtype.to_complex() if t.is_complex() else dtype if t.is_floating_point() else t.dtype
        return t.to(device=device or t.device, dtype=target)

    return map_state(cast, state)


def where(condition: Bool[Tensor, "b"], state: State, other: State) -> State:
    """Take each batch item from `state` where the condition holds, else from `other`.

    Args:
        condition: One truth value a batch item, shape (b,).
        state: Tensors of shape (b, ...).
        other: The same keys and shapes.
    Returns:
        A new state of tensors (b, ...).
    Raises:
        ValueError: The states do not have the same keys.
    """
    return map_state(lambda t, o: torch.where(condition.view(-1, *[1] * (t.ndim - 1)), t, o), state, other)


def batch_size(state: State) -> int | None:
    """The number of batch items b that the tensors (b, ...) of a state hold; None when there is no tensor in it.

    Raises:
        ValueError: Two tensors disagree.
    """
    sizes: set[int] = set()
    map_state(lambda t: sizes.add(t.shape[0]) or t, state)
    if len(sizes) > 1:
        raise ValueError(f"batch_size: the state's tensors have batch sizes {sorted(sizes)}, expected one")
    return sizes.pop() if sizes else None
