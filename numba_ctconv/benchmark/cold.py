"""Layers that find their weights in memory, as in a model whose layers together are larger than the caches.

Many layers of the same shape are called in turn, so that each finds its packed weights gone. A contestant beside
"layer out", which calls the same layer again and again; for inputs so short that the weights are most of what is read.
"""

import functools
import itertools
import math
import pathlib

import numpy as np

from .checking import Arrays
from .contestants import Pass, traffic
from .ours import Ours
from .timing import Call
from .workloads import Operands, Problem

STYLE = "layer cold"
LONGEST_INPUT = 16  # samples
MOST_LAYERS = 1024
# All weights together are twice as large as the last cache, and never larger than this: a virtual machine names the
# cache of a whole processor, of which it has a part. Without the size of a cache it is this much as well.
MOST_BYTES = 512 * 1024 * 1024
PART_OF_MEMORY = 8  # of what is free; it is taken three times: weights, packed weights, and the loop beside them
CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}


@functools.cache
def footprint() -> int:
    """Bytes of all weights that are called in turn."""
    cache, free = last_cache(), _free_memory()
    wanted = MOST_BYTES if cache is None else min(2 * cache, MOST_BYTES)
    return wanted if free is None else min(wanted, free // PART_OF_MEMORY)


def last_cache() -> int | None:
    """Bytes of the last-level cache, as Linux tells; None elsewhere."""
    sizes = {}
    for index in CACHES.glob("index*"):
        try:
            level, size = (int((index / "level").read_text()), (index / "size").read_text().strip())
            sizes[level] = int(size[:-1]) * UNITS[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return sizes[max(sizes)] if sizes else None


def _free_memory() -> int | None:
    """Bytes of memory that are available, as Linux tells; None elsewhere."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


class Cold:
    """As many layers of this package in turn as make their weights cold.

    Parameters
    ----------
    algorithm : str
    threads : int
        Numba's threads.
    """

    exact = True
    cold = True

    def __init__(self, algorithm: str, threads: int) -> None:
        self.name = f"{algorithm} {STYLE}"
        self.threads = threads
        self._one = Ours(algorithm, "cpu", "layer out", threads)

    def takes(self, problem: Problem, what: Pass, dtype: str) -> bool:
        """What reads the weights of a short input, where not too many layers have to be made."""
        reads = what in {"forward", "grad_input"} and problem.input_length <= LONGEST_INPUT
        return reads and layers(problem, what, dtype) <= MOST_LAYERS

    def prepare(self, problem: Problem, what: Pass, operands: Operands) -> Call:
        """A call of the next layer; each has been called before, so that its weight is packed."""
        count = layers(problem, what, operands.weight.dtype.name)
        calls = [self._one.prepare(problem, what, operands) for _ in range(count)]
        for call in calls:
            call.run()
        turn = itertools.cycle(calls)
        return Call(lambda: next(turn).run(), calls[0].finish, calls[0].set_up)

    def arrays(self, what: Pass, result: object) -> Arrays:
        """What a call computed."""
        return self._one.arrays(what, result)


def weight_bytes(problem: Problem, what: Pass, dtype: str) -> int:
    """Of one layer."""
    return traffic(problem, what).read[1] * np.dtype(dtype).itemsize


def layers(problem: Problem, what: Pass, dtype: str) -> int:
    """How many have so many weights together that none is found in a cache."""
    return max(2, math.ceil(footprint() / weight_bytes(problem, what, dtype)))
