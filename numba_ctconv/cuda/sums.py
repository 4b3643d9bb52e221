"""The dtype that the simple kernels sum in: float32 for halves, which are rounded once, when the sum is stored.

The Python bodies are what the simulator runs; for a GPU the type of the argument decides when a kernel is compiled.
"""

import numpy as np

from .queues import SIMULATED


def wide(value):
    """A number in the dtype of sums; halves lose nothing."""
    return np.float32(value) if value.dtype.itemsize == 2 else value


def sum_dtype(array):
    """The dtype of sums over an array."""
    return np.dtype(np.float32) if array.dtype.itemsize == 2 else array.dtype


if not SIMULATED:
    from numba.cuda import types
    from numba.cuda.extending import overload

    HALVES = (types.float16, types.bfloat16)

    @overload(wide, target="cuda")
    def _wide(value):
        return (lambda value: np.float32(value)) if value in HALVES else (lambda value: value)  # noqa: PLW0108  # compiled

    @overload(sum_dtype, target="cuda")
    def _sum_dtype(array):
        return (lambda array: np.float32) if array.dtype in HALVES else (lambda array: array.dtype)  # noqa: ARG005
