"""Interleaved timing: every row of a comparison meets the same noise of the machine."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Samples:
    """Times of one row, in seconds of the wall clock and of the process's CPUs."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    @property
    def best(self) -> float:
        return min(self.wall)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu)


@dataclass(frozen=True)
class Protocol:
    """How long to measure.

    budget: Seconds a row is measured for, once it has `least` samples.
    turn: A row's turn lasts at least this long: a quick row is called several times before the next one's turn, so that
        it is not always met with the caches and the heap as a slow one left them.
    least: Samples of a row at least. A row whose first call, otherwise dropped as warm-up, takes longer than the budget
        keeps that one, and is called `least_slow` times in all.
    """

    budget: float = 3.0
    turn: float = 0.05
    least: int = 5
    least_slow: int = 2


class Neighbours:
    """How many cores other processes kept busy since this was made."""

    def __init__(self):
        self.start, self.busy, self.own = time.perf_counter(), _busy_seconds(), time.process_time()

    def cores(self) -> float | None:
        """Their mean number, or None where the system does not tell."""
        busy = _busy_seconds()
        if busy is None or self.busy is None:
            return None
        own, wall = time.process_time() - self.own, time.perf_counter() - self.start
        return max(0.0, round((busy - self.busy - own) / wall, 2)) if wall > 0 else None


def _busy_seconds() -> float | None:
    """Core seconds that this machine worked, or was kept from working, since it started."""
    table = Path("/proc/stat")
    if not table.exists():
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, table.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _call(job: Callable[[], object], samples: Samples) -> float:
    cpu, wall = time.process_time(), time.perf_counter()
    result = job()
    spent = time.perf_counter() - wall
    samples.wall.append(spent)
    samples.cpu.append(time.process_time() - cpu)
    del result
    return spent


def interleave(
    jobs: Mapping[str, Callable[[], object]], protocol: Protocol, tell: Callable[[str, float], None] = lambda *_: None
) -> dict[str, Samples]:
    """Time every job, in turns A B C A B C, until each has its seconds.

    Args:
        jobs: What to call, by name.
        protocol: When a row has enough.
        tell: Called after every turn with the row's name and the share of its work that the turn was, in 0..1.
    Returns:
        The samples of each job.
    """
    samples, least, left = {}, {}, dict.fromkeys(jobs, protocol.budget)
    for name, job in jobs.items():
        first = Samples()
        slow = _call(job, first) > protocol.budget
        samples[name], least[name] = (first, protocol.least_slow) if slow else (Samples(), protocol.least)
    done = dict.fromkeys(jobs, 0.0)
    while waiting := [n for n in jobs if left[n] > 0 or len(samples[n].wall) < least[n]]:
        for name in waiting:
            gc.collect()
            gc.disable()
            spent = _call(jobs[name], samples[name])
            while spent < protocol.turn:
                spent += _call(jobs[name], samples[name])
            gc.enable()
            left[name] -= spent
            share = min(1 - max(left[name], 0) / protocol.budget, len(samples[name].wall) / least[name], 1)
            tell(name, max(share - done[name], 0))
            done[name] = max(share, done[name])
    return samples
