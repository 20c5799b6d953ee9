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
    def cpu_mean(self) -> float:
        """A mean: the clock of a thread on another core moves in ticks of milliseconds."""
        return statistics.fmean(self.cpu)


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


class _Row:
    """One job on its way to enough samples."""

    def __init__(self, job: Callable[[], object], protocol: Protocol):
        self.job, self.protocol, self.least = job, protocol, protocol.least
        self.samples, self.spent, self.share = Samples(), 0.0, 0.0
        first = _call(job, self.samples)
        if first > protocol.budget:
            self.spent, self.least = first, protocol.least_slow
        else:
            self.samples = Samples()

    @property
    def enough(self) -> bool:
        return self.spent >= self.protocol.budget and len(self.samples.wall) >= self.least

    def turn(self) -> float:
        """Call the job for one turn; returns the share of the row's work that this was."""
        gc.collect()
        gc.disable()
        try:
            spent = _call(self.job, self.samples)
            while spent < self.protocol.turn:
                spent += _call(self.job, self.samples)
        finally:
            gc.enable()
        self.spent += spent
        before = self.share
        self.share = min(self.spent / self.protocol.budget, len(self.samples.wall) / self.least, 1.0)
        return self.share - before


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
    rows = {name: _Row(job, protocol) for name, job in jobs.items()}
    gc.collect()
    gc.freeze()  # what imports left needs no second look before every turn
    try:
        while waiting := [name for name, row in rows.items() if not row.enough]:
            for name in waiting:
                tell(name, rows[name].turn())
    finally:
        gc.unfreeze()
    return {name: row.samples for name, row in rows.items()}
