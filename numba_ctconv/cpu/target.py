"""What the CPU engine knows of the machine: threads, vectors, and how much a task works on.

Asked by the engine (cpu/__init__), layout and compilation. A tile decides which worker computes an element and how
often data is read again, never the order in which it is summed.
"""

import ctypes
import functools
from typing import Any, NamedTuple

import numba
from numba.core import registry
from numba.np.ufunc import parallel

from ..forks import fork

CACHE_LINE = 64  # bytes
# Where the sums of a task wait: half of the 32 to 48 KB first-level caches of today's cores, beside what they meet.
SUMS_BYTES = 16 * 1024
LONGEST_STRETCH = 512
MOST_PHASES = 32
FEW_PRODUCTS = 30_000  # a microsecond's, up to which neither waking other workers nor giving up the GIL would pay
CHANNELS_TOGETHER = 4  # rows of a slab: input channels that meet a sum while it is in a register


def share(products: int) -> tuple[int, bool]:
    """Workers for so many products, and whether they last long enough to let other Python threads run meanwhile."""
    long = products > FEW_PRODUCTS
    return threads() if long else 1, long


def threads() -> int:
    """Workers that a kernel may keep busy: Numba's setting for the calling thread, and 1 where its threads are lost."""
    if fork.threads_lost:
        return 1
    count = _count() if hasattr(parallel, "_get_num_threads") else numba.get_num_threads
    return max(1, int(count()))  # "workqueue" knows of none in a thread that was started after a fork


@functools.cache
def _count() -> Any:
    """What numba.get_num_threads() asks once the threads run, under two locks, which take seven times as long.

    Asked here with the GIL held: each time that it is given up, another Python thread may keep it.
    """
    given = ctypes.cast(parallel._get_num_threads, ctypes.c_void_p)  # noqa: SLF001  # there is no public way
    return ctypes.PYFUNCTYPE(ctypes.c_int)(given.value or 0)


@functools.cache
def vector_bytes() -> int:
    """Width of the widest vectors that the host computes with: 64 (AVX-512), 32 (AVX2) or 16 (NEON, and the rest)."""
    features = _features()
    return 64 if "avx512f" in features else 32 if {"avx2", "fma"} <= features else 16


@functools.cache
def vector_registers() -> int:
    """Vector registers of the host: the triple tells of AArch64, of which LLVM names no features on some systems."""
    return 32 if "avx512f" in _features() or _target()[0].startswith(("aarch64", "arm64")) else 16


@functools.cache
def follows_streams() -> bool:
    """Whether the host's prefetchers follow a few streams by themselves, so that asking far ahead costs time: Zen's."""
    return _target()[1].startswith("znver")


def _features() -> set[str]:
    """The features that Numba compiles for: the host's, or those that its settings name."""
    return {name[1:] for name in _target()[2].split(",") if name.startswith("+")}


def _target() -> tuple[str, str, str]:
    """What Numba compiles for: a triple, a processor and its features."""
    triple, cpu, features = registry.cpu_target.target_context.codegen().magic_tuple()
    return str(triple), str(cpu), str(features)


class Tile(NamedTuple):
    """What one task owns: rows (channels) × phases × a stretch of positions in time."""

    rows: int
    phases: int
    stretch: int


def tile(rows: int, phases: int, positions: int, itemsize: int) -> Tile:
    """The tile of a problem with so many rows and phases and so many positions in time.

    Time first, so that inner loops are long; then phases, then rows, which share what they meet.
    """
    room = SUMS_BYTES // itemsize
    stretch = max(1, min(positions, LONGEST_STRETCH))
    owned_phases = max(1, min(phases, MOST_PHASES, room // stretch))
    return Tile(max(1, min(rows, room // (stretch * owned_phases))), owned_phases, stretch)


def stretches(workers: int, rows: int, length: int) -> int:
    """Into how many stretches of time a scatter kernel cuts each row, so that all workers have work."""
    return max(1, min(length, -(-workers // rows)))
