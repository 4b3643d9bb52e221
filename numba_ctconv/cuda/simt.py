"""What the tiled kernels are written in: Numba's `cuda` and the instructions of ptx.py, or their emulated twins.

Kernels of this kind are written so that both can run them: what steers their loops and branches is the same for all
threads of a block, and what differs from thread to thread is computed, selected or masked. The simulator's threads know
no warps, and are slow; the emulator runs a block as vectors of lanes.
"""

from typing import Any

import numba.cuda

from . import emulator, emulator_tensor
from .queues import SIMULATED

if not SIMULATED:
    from . import ptx as compiled
    from . import ptx_tensor as compiled_tensor

cuda: Any = emulator.cuda if SIMULATED else numba.cuda
ptx: Any = emulator if SIMULATED else compiled
tensor: Any = emulator_tensor if SIMULATED else compiled_tensor


def kernel(threads: int, blocks: int) -> Any:
    """Decorate a kernel of blocks of so many threads, so many of which share a multiprocessor."""
    if SIMULATED:
        return lambda function: emulator.Kernel(function, threads)
    return cuda.jit(launch_bounds=(threads, blocks))


def device(function: Any) -> Any:
    """Decorate a function that kernels call, and whose tuples stay in registers: it is always inlined."""
    return function if SIMULATED else cuda.jit(device=True, forceinline=True)(function)
