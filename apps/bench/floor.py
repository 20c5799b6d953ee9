"""The floor of this machine: the work that a scan cannot avoid, counted, at the rates the machine measurably reaches.

Three bounds, each what the scan would take if only this one thing cost time; the floor is the largest of them.

multiply-add: operations of the multiply-add pipes (a multiply, an add or both fused), one lane each.
    per state update, forward, 9: dt A; 5 of the exponential's polynomial; u B; a h + .; y + C h
    per state update, backward, 17: dt A, 5 of the polynomial, u B and a h + . once more (8), then the adjoint (9):
        g + dy C, y + C h for the gate's gradient, dy h for dC, u g for dB, g B for du, g a, (g a) h, . A for ddt, . dt
        for dA
    per entry of (b, l, d): 27 forward (softplus 17, silu 8, skip and dt x 2), 40 backward (both again and derivatives)
exp: one a state update forward, one more backward.
bytes: forward reads x, dt, z and writes y: 16 a (b, l, d) entry. With backward it also writes and reads a state in
    every 32 steps (4 n/32 each way), reads x, dt, z, dy and writes dx, ddt, dz. B, C and their gradients count too.

A copy counts the bytes read and those written. Rates are the best of many short runs on the threads that the scan gets,
by the CPU time of the slowest thread, so that they hold up on a machine that others use as well.
"""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from ssm_kernels import native_build

from .cases import Case

UPDATE_OPS = {"forward": 9, "forward_backward": 9 + 17}
ENTRY_OPS = {"forward": 27, "forward_backward": 27 + 40}
EXPS = {"forward": 1, "forward_backward": 2}
KEEP_EVERY = 32  # backward starts from one kept state in so many steps
COPY_BYTES, COPY_SLICE = 256 * 2**20, 16 * 2**20


@dataclass(frozen=True)
class Rates:
    """What the machine reaches a second: exps, multiply-adds (of one lane, two flops each), bytes copied."""

    exp: float
    multiply_add: float
    copy: float
    threads: int
    lanes: int


def _best(call: Callable[[int], float], seconds: float) -> float:
    """Least that call(0), call(1), ... returned, over about `seconds`."""
    call(0)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        times.append(call(len(times)))
    return min(times)


def measure_rates(threads: int, seconds: float = 1.0) -> Rates:
    """Measure this machine, about `seconds` for each of the three rates.

    Raises:
        RuntimeError: There is no C compiler.
    """
    reason = native_build.why_unavailable()
    if reason is not None:
        raise RuntimeError(f"floor: {reason}")
    lib = native_build.load(Path(__file__).with_name("floor.c"), (f"-I{native_build.COMMON.parent}",))
    count, address = ctypes.c_int64, ctypes.c_void_p
    lib.floor_exp.argtypes = lib.floor_multiply_add.argtypes = [count, count]
    lib.floor_copy.argtypes = [count, count, address, address, count]
    lib.floor_exp.restype = lib.floor_multiply_add.restype = lib.floor_copy.restype = ctypes.c_double
    for name in ("floor_block", "floor_chain_lanes", "floor_lanes"):
        getattr(lib, name).restype = count
    exp_passes, chain_passes, share = 1000, 100_000, COPY_SLICE // threads
    exp = threads * exp_passes * lib.floor_block() / _best(lambda _: lib.floor_exp(exp_passes, threads), seconds)
    chains = threads * chain_passes * lib.floor_chain_lanes()
    multiply_add = chains / _best(lambda _: lib.floor_multiply_add(chain_passes, threads), seconds)
    source, target = torch.ones(COPY_BYTES, dtype=torch.uint8), torch.ones(COPY_BYTES, dtype=torch.uint8)

    def copy(turn: int) -> float:  # another slice each time, so that it comes from as far as a large tensor does
        at = turn * COPY_SLICE % COPY_BYTES
        return lib.floor_copy(1, threads, source.data_ptr() + at, target.data_ptr() + at, share)

    return Rates(exp, multiply_add, 2 * share * threads / _best(copy, seconds), threads, lib.floor_lanes())


def bounds(case: Case, which_pass: str, rates: Rates) -> dict[str, float]:
    """Seconds by each of the three bounds, and their largest as "floor"."""
    operations = UPDATE_OPS[which_pass] * case.updates + ENTRY_OPS[which_pass] * case.elements
    seconds = {
        "multiply_add": operations / rates.multiply_add,
        "exp": EXPS[which_pass] * case.updates / rates.exp,
        "bytes": traffic(case, which_pass) / rates.copy,
    }
    return {**seconds, "floor": max(seconds.values())}


def traffic(case: Case, which_pass: str) -> float:
    """Bytes that have to move between memory and the cores."""
    projections = 2 * 4 * case.batch * case.length * case.n  # B and C
    forward = 16 * case.elements + projections
    if which_pass == "forward":
        return forward
    kept = 4 * case.updates / KEEP_EVERY
    return forward + 2 * kept + 28 * case.elements + 2 * projections


def least_mib(case: Case, which_pass: str) -> float:
    """Memory that any implementation's results take: y, and with backward the gradients of x, dt, z, B and C."""
    rows = case.elements if which_pass == "forward" else 4 * case.elements + 2 * case.batch * case.length * case.n
    return 4 * rows / 2**20
