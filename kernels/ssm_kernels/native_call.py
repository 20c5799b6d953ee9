"""One call into native code: a C struct of sizes, strides and pointers, and the tensors that must outlive it."""

import ctypes
from collections.abc import Iterable
from itertools import chain
from typing import overload

from torch import Tensor

from . import buffers
from .rows import Row

INTEGER, POINTER = ctypes.c_int64, ctypes.c_void_p


def structure(*fields: tuple[str, type]) -> type[ctypes.Structure]:
    """A C struct, its fields given as (names separated by spaces, INTEGER or POINTER), in the order of the C file."""
    pairs = [(name, kind) for names, kind in fields for name in names.split()]
    return type("Problem", (ctypes.Structure,), {"_fields_": pairs})


def output_like(x: Tensor, rows: Iterable[Row]) -> Tensor:
    """A contiguous output of x's shape (b, l, ...); zeros only where the rows leave steps out."""
    y = buffers.empty(tuple(x.shape), x.dtype)
    return y if covers(rows, x.shape[0], x.shape[1]) else y.zero_()


class NativeCall:
    """Fills a problem's fields; complex tensors count as real ones of twice the channels."""

    def __init__(self, problem: ctypes.Structure, rows: Iterable[Row]):
        self.problem = problem
        self.kept: list[Tensor | ctypes.Array] = []
        self.point_integers("row", chain.from_iterable(rows))

    @overload
    def point(self, name: str, t: Tensor) -> Tensor: ...
    @overload
    def point(self, name: str, t: None) -> None: ...
    def point(self, name: str, t: Tensor | None) -> Tensor | None:
        """Set a pointer field; returns the tensor."""
        if t is not None:
            self.kept.append(t)
            setattr(self.problem, name, t.data_ptr())
        return t

    def point_integers(self, name: str, values: Iterable[int]) -> None:
        """Set a pointer field to an array of these."""
        numbers = list(values)
        array = (INTEGER * len(numbers))(*numbers)
        self.kept.append(array)
        setattr(self.problem, name, ctypes.addressof(array))

    def point_packed(self, name: str, t: Tensor | None) -> None:
        """Set a pointer field to a contiguous form of the tensor."""
        self.point(name, None if t is None else t.contiguous())

    def point_steps(self, name: str, t: Tensor | None) -> None:
        """Set a pointer to (b, l, d) steps and its strides; only the channels have to be contiguous."""
        if t is None:
            return
        t = t if t.stride(2) == 1 or t.shape[2] == 1 else t.contiguous()
        self.point(name, t)
        planes = 2 if t.is_complex() else 1
        setattr(self.problem, f"{name}_batch", t.stride(0) * planes)
        setattr(self.problem, f"{name}_step", t.stride(1) * planes)


def covers(rows: Iterable[Row], batch: int, length: int) -> bool:
    """Whether the rows leave no step of a (b, l, ...) tensor out, so that an output needs no zeros."""
    return sum(row.length for row in rows) == batch * length
