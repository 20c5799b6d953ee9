"""A cache of large CPU buffers, as torch has one for GPUs: an operator's outputs reuse the memory of earlier ones.

Fresh memory costs a page fault (about a microsecond) for every 4 KiB, which was a third of the time of a long backward
pass. Blocks are mapped with huge pages, lent out as tensors, and come back when the last view of the tensor is gone.
At most LIMIT bytes wait in the cache; `release()` gives them back to the system.
"""

import ctypes
import math
import mmap
import os
import threading
import weakref

import torch
from torch import Tensor

LARGE = 1 << 20
"""Bytes from which a tensor comes from here; smaller ones mostly reuse memory that malloc has kept."""
HUGE_PAGE = 2 << 20
LIMIT = min(2 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8) if hasattr(os, "sysconf") else 0

_free: dict[int, list[mmap.mmap]] = {}
_waiting = 0  # bytes in _free
# Reentrant: the garbage collector may run inside a locked region and give another block back from there.
_lock = threading.RLock()


def _new_lock() -> None:
    """A forked child must not inherit a lock that another thread of its parent was holding."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised contiguous CPU tensor of this shape and dtype, any of them; as torch.empty."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < LARGE or LIMIT == 0:
        return torch.empty(shape, dtype=dtype)
    block = _take(-(-size // HUGE_PAGE) * HUGE_PAGE)
    view = (ctypes.c_char * size).from_address(_start(block))
    weakref.finalize(view, _give_back, block).atexit = False
    return torch.frombuffer(view, dtype=dtype, count=count).view(shape)


def release() -> None:
    """Give all waiting memory back to the system."""
    global _waiting
    with _lock:
        _free.clear()
        _waiting = 0


def _start(block: mmap.mmap) -> int:
    """Address of the block's first whole huge page."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    return -(-address // HUGE_PAGE) * HUGE_PAGE


def _take(size: int) -> mmap.mmap:
    global _waiting
    with _lock:
        if _free.get(size):
            _waiting -= size
            return _free[size].pop()
    block = mmap.mmap(-1, size + HUGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _give_back(block: mmap.mmap) -> None:
    """The block waits for the next tensor, or goes back to the system when enough wait already."""
    global _waiting
    size = len(block) - HUGE_PAGE
    with _lock:
        if _waiting + size <= LIMIT:
            _free.setdefault(size, []).append(block)
            _waiting += size
