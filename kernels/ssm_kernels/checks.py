"""Checks at the public boundary of every operator: one clear sentence, and no bad pointer ever reaches native code."""

from collections.abc import Iterable

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)


class Shapes:
    """Binds legend letters to sizes while an operator's arguments are checked.

    The first tensor that uses a letter fixes its size, so that a later message can say where the size came from.
    """

    def __init__(self, op: str):
        self.op = op
        self.sizes: dict[str, int] = {}
        self.source: dict[str, str] = {}

    def check(self, name: str, tensor: Tensor, *specs: str) -> str:
        """Match `tensor` against the first fitting spec ("b l d"); returns it.

        Args:
            name: Argument name for the message.
            tensor: The argument, any shape.
            specs: Allowed shapes as letters separated by spaces; digits stand for themselves.
        Raises:
            ValueError: `tensor` is no tensor, or no spec fits; names the argument, what was expected and what came.
        """
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{self.op}: {name} must be a torch.Tensor, got {type(tensor).__name__}")
        for spec in specs:
            letters = spec.split()
            found = self._fit(letters, tensor.shape) if len(letters) == tensor.ndim else None
            if found is not None:
                self.sizes |= found
                self.source |= dict.fromkeys(found, name)
                return spec
        expected = " or ".join("(" + ", ".join(map(self._show, spec.split())) + ")" for spec in specs)
        raise ValueError(f"{self.op}: {name} has shape {tuple(tensor.shape)}, expected {expected}")

    def _fit(self, letters: list[str], shape: Iterable[int]) -> dict[str, int] | None:
        """The letters that this shape binds, None where it does not fit."""
        found: dict[str, int] = {}
        for letter, size in zip(letters, shape, strict=True):
            if letter in self.sizes:
                expected = self.sizes[letter]
            else:
                expected = int(letter) if letter.isdigit() else found.setdefault(letter, size)
            if size != expected:
                return None
        return found

    def _show(self, letter: str) -> str:
        if letter in self.sizes:
            return f"{letter}={self.sizes[letter]} from {self.source[letter]}"
        return letter


def check_devices(op: str, tensors: dict[str, Tensor | None]) -> None:
    """All given tensors lie on the device of the first.

    Args:
        op: Operator name for the message.
        tensors: Arguments by name, any shapes; None where one is not given.
    Raises:
        ValueError: Two devices; names both arguments.
    """
    first, home = next((name, t.device) for name, t in tensors.items() if t is not None)
    for name, t in tensors.items():
        if t is not None and t.device != home:
            raise ValueError(f"{op}: {name} is on {t.device}, but {first} is on {home}")


def check_dtype(op: str, name: str, tensor: Tensor, allowed: Iterable[torch.dtype]) -> None:
    """The dtype of one argument.

    Args:
        op: Operator name for the message.
        name: Argument name for the message.
        tensor: The argument, any shape.
        allowed: Its possible dtypes.
    Raises:
        ValueError: The dtype is not among them.
    """
    allowed = tuple(allowed)
    if tensor.dtype not in allowed:
        names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        raise ValueError(f"{op}: {name} has dtype {str(tensor.dtype).removeprefix('torch.')}, expected one of {names}")


def check_choice(op: str, name: str, value: str, allowed: Iterable[str]) -> None:
    """One of a few words.

    Raises:
        ValueError: `value` is not in `allowed`.
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{op}: {name}={value!r}, expected one of {', '.join(map(repr, allowed))}")


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """State and decay arithmetic: float64 when any input (any shape) is, else float32, whatever the autocast type."""
    wide = (torch.float64, torch.complex128)
    return torch.float64 if any(t is not None and t.dtype in wide for t in tensors) else torch.float32


def state_dtype(real: torch.dtype, is_complex: bool) -> torch.dtype:
    """The compute dtype of a state. (`dtype.to_complex()` breaks torch.compile's graph.)"""
    return torch.promote_types(real, torch.complex64) if is_complex else real
