"""One call into native code: a C struct of sizes, strides and pointers, and the tensors that must outlive it."""

import ctypes
from collections.abc import Iterable
from typing import overload

import torch
from torch import Tensor

from .rows import Row

_LARGE = 1 << 20  # bytes; smaller tensors mostly reuse memory that the process has already

INTEGER, POINTER = ctypes.c_int64, ctypes.c_void_p


def structure(*fields: tuple[str, type]) -> type[ctypes.Structure]:
    """A C struct, its fields given as (names separated by spaces, INTEGER or POINTER), in the order of the C file."""
    pairs = [(name, kind) for names, kind in fields for name in names.split()]
    return type("Problem", (ctypes.Structure,), {"_fields_": pairs})


def fresh(library: ctypes.CDLL, shape: tuple[int, ...], dtype: torch.dtype, zero: bool = False) -> Tensor:
    """A new CPU tensor of this shape, its pages brought in at once if it is large; filled with zeros or not at all."""
    t = torch.empty(shape, dtype=dtype)
    if t.nbytes >= _LARGE:
        library.ssm_page_in(t.data_ptr(), t.nbytes, torch.get_num_threads())
    return t.zero_() if zero else t


def output_like(library: ctypes.CDLL, x: Tensor, rows: Iterable[Row]) -> Tensor:
    """A contiguous output of x's shape (b, l, ...); zeros only where the rows leave steps out."""
    return fresh(library, tuple(x.shape), x.dtype, zero=not covers(rows, x.shape[0], x.shape[1]))


class NativeCall:
    """Fills a problem's fields; complex tensors count as real ones of twice the channels."""

    def __init__(self, problem: ctypes.Structure, rows: Iterable[Row]):
        self.problem = problem
        self.kept: list[Tensor] = []
        self.point("row", torch.tensor(list(rows), dtype=torch.int64).reshape(-1))

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
