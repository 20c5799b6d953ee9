"""Peak memory of one row, in a fresh process: the resident set's high-water mark above what imports and inputs hold.

A warm-up on four steps comes first, so that loaded code, built kernels and autograd's start are not counted.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

from .cases import Case

MIB = 2**20


def peak_mib(impl: str, case: Case, which_pass: str, threads: int) -> float:
    """Run one row once in a process of its own and return its peak, in MiB above the baseline."""
    return peak_of(_row, impl, case, which_pass, threads=threads)


def peak_of(make: Callable[..., Callable[[], object]], *args, threads: int) -> float:
    """Peak of `make(*args, small=False)()` in a process of its own, in MiB above the baseline.

    Args:
        make: A function at the top of a module; with small=True it makes a warm-up of the same code on little data.
        args: What it needs, picklable.
        threads: For torch.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["apps.bench.peers"])
    _start_server()
    with context.Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(_measure, (make, args, threads))


def _start_server() -> None:
    """Start the process that the others are forked from. Ctrl-C is for the parent, which ends them; they ignore it."""
    before = None
    with contextlib.suppress(ValueError):  # not in the main thread: handlers cannot be changed there
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _row(impl: str, case: Case, which_pass: str, small: bool) -> Callable[[], object]:
    from .peers import PEERS

    return getattr(PEERS[impl].make(replace(case, batch=1, length=4) if small else case), which_pass)


def _measure(make: Callable[..., Callable[[], object]], args: tuple, threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    make(*args, small=True)()
    run = make(*args, small=False)
    _give_back_freed_memory()
    baseline = _restart_high_water()
    result = run()
    peak = _high_water() - baseline
    del result
    return max(peak, 0) / MIB


def _give_back_freed_memory() -> None:
    """Leave no freed heap that the row would fill unseen (glibc keeps it otherwise)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _restart_high_water() -> int:
    """Set the kernel's high-water mark back to the present, where it can be; returns the baseline in bytes."""
    with contextlib.suppress(OSError):  # then the mark stays where imports left it: peaks below it read as zero
        Path("/proc/self/clear_refs").write_text("5")
    return _high_water()


def _high_water() -> int:
    """Largest resident set so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
