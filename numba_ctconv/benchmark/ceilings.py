"""How fast this machine can be at this moment: its peak of multiply-adds, and a plain loop over a row's arrays.

Measured by measure around every row, so that a share of the peak means the clock and the neighbours of that minute.
gpu_ceilings does so for a GPU. The floor of a row is the longer of its operations at the peak and its loop: what no
implementation gets below by much, unless it leaves caches out when it writes.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..cpu import target
from . import loops
from .cold import footprint
from .contestants import Traffic
from .device import threads

TRY_SECONDS = 0.005  # long beside the start of the threads, short beside a row
TRIES = 3
WORTH_SHARING = 2e-5  # seconds; starting the threads takes a microsecond, or many where others use the cores
ROUNDS = 1000  # of multiply-adds in one repetition
LEAST_CHAINS = 12  # four cycles on each of two or three units; machines with 32 registers get twice as many


class Ceilings(NamedTuple):
    """Floating-point operations a second, where they are known, and the seconds in which the arrays can be moved."""

    peak: float | None
    loop: float

    def floor(self, flops: int) -> float:
        """Seconds below which so many operations over those arrays can't be expected."""
        return self.loop if self.peak is None else max(flops / self.peak, self.loop)

    def better(self, other: "Ceilings | None") -> "Ceilings":
        """The higher ceilings of two measurements: what disturbs one only lowers it."""
        if other is None:
            return self
        peaks = [peak for peak in (self.peak, other.peak) if peak is not None]
        return Ceilings(max(peaks, default=None), min(self.loop, other.loop))


def measure(moved: Traffic, dtype: str, workers: int, *, cold: bool = False) -> Ceilings:
    """Both ceilings, with so many of Numba's threads; the loop is that of cold weights alone where they are so."""
    loop = cold_seconds(moved, dtype, workers) if cold else loop_seconds(moved, dtype, workers)
    return Ceilings(peak(dtype, workers), loop)


def peak(dtype: str, workers: int) -> float:
    """Floating-point operations a second of multiply-adds in registers, none of which waits for another."""
    itemsize = np.dtype(dtype).itemsize
    lanes = target.vector_bytes() // itemsize
    chains = LEAST_CHAINS * (2 if target.vector_registers() >= 32 else 1)
    run, sums = loops.multiply_adds(itemsize == 8, lanes, chains), np.empty(workers)
    once = _best(lambda count, repeats: run(count, repeats * ROUNDS, sums), workers)
    return 2 * lanes * chains * ROUNDS * workers / once


def loop_seconds(moved: Traffic, dtype: str, workers: int) -> float:
    """Seconds of a loop that reads and writes arrays of these sizes, by the threads or, where faster, by one."""
    arrays = [np.ones(size, dtype) for sizes in moved for size in (*sizes, 0, 0)[:3]]
    sums = np.zeros(workers)
    alone = _best(lambda count, repeats: loops.sweeps(parallel=False)(count, repeats, *arrays, sums), 1)
    if workers == 1 or alone < WORTH_SHARING:
        return alone
    return min(alone, _best(lambda count, repeats: loops.sweeps(parallel=True)(count, repeats, *arrays, sums), workers))


def cold_seconds(moved: Traffic, dtype: str, workers: int) -> float:
    """Seconds in which a loop over as much memory as all cold weights take reads as much as one layer's."""
    size = max(footprint() // np.dtype(dtype).itemsize, 1)
    weights, nothing, sums = np.ones(size, dtype), np.ones(0, dtype), np.zeros(workers)
    sweep = loops.sweeps(parallel=workers > 1)
    once = _best(lambda count, repeats: sweep(count, repeats, weights, *[nothing] * 5, sums), workers)
    return once * moved.read[1] / size


def _best(run: Callable[[int, int], None], workers: int) -> float:
    """Seconds a repetition, of the fastest try. One worker alone tells how many repetitions a try needs."""
    with threads(1):
        run(1, 1)  # compiles, and maps the memory
        repeats = 1
        while (taken := _seconds(run, 1, repeats)) < TRY_SECONDS:
            repeats = max(2 * repeats, int(1.1 * repeats * TRY_SECONDS / max(taken, TRY_SECONDS / 1000)))
    with threads(workers):
        return min(_seconds(run, workers, repeats) for _ in range(TRIES)) / repeats


def _seconds(run: Callable[[int, int], None], workers: int, repeats: int) -> float:
    start = time.perf_counter()
    run(workers, repeats)
    return time.perf_counter() - start
