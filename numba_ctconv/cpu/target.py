"""What the CPU kernels know of the machine: how they are compiled and launched, and how much a task works on.

The kernel files take `kernel`, `helper` and `reduction` as decorators, the engine (cpu/__init__) asks for tiles and
threads. A tile decides which worker computes an element and how often data is read again, never the order in which it
is summed.
"""

import contextlib
import functools
import hashlib
import pathlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.core import registry

# Contraction lets a product and a sum become one FMA; nothing else is relaxed, so order, NaN and Inf hold.
EXACT = {"contract"}
# A reduction over contiguous memory may also be split into one partial sum a vector lane.
REDUCTION = {"contract", "reassoc"}

# Where the sums of a task wait: half of the 32 to 48 KB first-level caches of today's cores, beside what they meet.
SUMS_BYTES = 16 * 1024
LONGEST_STRETCH = 512
MOST_PHASES = 32
CHANNELS_TOGETHER = 4  # rows of a slab: input channels that meet a sum while it is in a register

_one_at_a_time = threading.Lock()


def helper(function: Callable[..., Any]) -> Any:
    """A serial function that kernels of the same file call; compiled into them."""
    return numba.njit(nogil=True, error_model="numpy", fastmath=EXACT)(function)


def reduction(function: Callable[..., Any]) -> Any:
    """A helper that sums over contiguous memory."""
    return numba.njit(nogil=True, error_model="numpy", fastmath=REDUCTION)(function)


def kernel(arguments: str, sizes: type | None = None) -> Callable[[Callable[..., Any]], "Kernel"]:
    """Decorate a kernel with what it takes, a letter and a digit each: see :class:`Kernel`."""
    return lambda function: Kernel(function, arguments.split(), sizes)


class Kernel:
    """A parallel function compiled once for each dtype, on its first call, for arrays of any strides.

    `arguments` has a word an argument: "i" an integer; "r3" a three-dimensional array that is read, with any strides,
    read-only or not, aligned or not; "w3" one that is written, with any strides; "c3" contiguous scratch memory, "n1" of
    integers that are read and "o1" of integers that are written; "s" a named tuple of integers, of the class `sizes`. So a new layout of a caller's array costs no compilation. The last argument is an array and tells the dtype. The code
    is kept on disk, or in memory where no folder for it can be written. The GIL is released.
    """

    def __init__(self, function: Callable[..., Any], arguments: list[str], sizes: type | None = None) -> None:
        self.function = function
        self.sizes = sizes
        self.arguments = arguments
        self.compiled: dict[np.dtype[Any], Any] = {}
        self._compiling = threading.Lock()
        self.__doc__ = function.__doc__

    def __call__(self, *values: Any) -> None:
        """Run with Numba's number of threads for the calling thread."""
        compiled = self.compiled.get(values[-1].dtype) or self.compile(values[-1].dtype)
        with _launching():
            compiled(*values)

    def signature(self, dtype: np.dtype[Any]) -> Any:
        """The one signature for a dtype."""
        element = numba.from_dtype(dtype)
        layouts = {
            "r": lambda dimensions: types.Array(element, dimensions, "A", readonly=True, aligned=False),
            "w": lambda dimensions: types.Array(element, dimensions, "A", aligned=False),
            "c": lambda dimensions: types.Array(element, dimensions, "C"),
            "n": lambda dimensions: types.Array(types.int64, dimensions, "C", readonly=True),
            "o": lambda dimensions: types.Array(types.int64, dimensions, "C"),
        }
        whole = {"i": types.int64}
        if self.sizes is not None:
            whole["s"] = types.NamedUniTuple(types.int64, len(self.sizes._fields), self.sizes)
        return types.void(*(whole[a] if a in whole else layouts[a[0]](int(a[1])) for a in self.arguments))

    def compile(self, dtype: np.dtype[Any]) -> Any:
        """The compiled function for a dtype."""
        with self._compiling:
            if dtype not in self.compiled:
                compiled = numba.njit(parallel=True, nogil=True, error_model="numpy", fastmath=EXACT)(self.function)
                keep_on_disk(compiled)
                compiled.compile(self.signature(dtype))
                compiled.disable_compile()
                self.compiled[dtype] = compiled
            return self.compiled[dtype]


def keep_on_disk(compiled: Any) -> None:
    """Cache the code where a folder can be written, and let it serve only for the sources that it was made from.

    Numba itself looks at the file of the kernel alone; the helpers that are compiled into it stand in others.
    """
    try:
        compiled.enable_caching()
    except RuntimeError:  # no folder that can be written: the code lives as long as the process
        return
    compiled._cache._cache_file._source_stamp = _sources()  # noqa: SLF001  # Numba has no public way


@functools.cache
def _sources() -> str:
    """A digest of every file of this engine."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _launching() -> contextlib.AbstractContextManager[Any]:
    """Numba's own "workqueue" threads abort the process when two Python threads use them at once; others do not."""
    try:
        concurrent = numba.threading_layer() != "workqueue"
    except ValueError:  # no parallel function has run yet
        concurrent = False
    return contextlib.nullcontext() if concurrent else _one_at_a_time


def threads() -> int:
    """Workers that a kernel may keep busy: Numba's setting for the calling thread."""
    return int(numba.get_num_threads())


@functools.cache
def vector_bytes() -> int:
    """Width of the widest vectors that the host computes with: 64 (AVX-512), 32 (AVX2) or 16 (NEON, and the rest)."""
    features = _features()
    return 64 if "avx512f" in features else 32 if {"avx2", "fma"} <= features else 16


@functools.cache
def vector_registers() -> int:
    """Vector registers of the host."""
    features = _features()
    return 32 if "avx512f" in features or "neon" in features else 16


def _features() -> set[str]:
    """What Numba compiles for: the host's features, or those that its settings name."""
    target_machine = registry.cpu_target.target_context.codegen().magic_tuple()
    return {name[1:] for name in target_machine[2].split(",") if name.startswith("+")}


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
