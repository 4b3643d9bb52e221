"""Calls of what the CPU engine compiles to be called by its address."""

import ctypes


def call(address, *integers):
    """Call a function of integers that returns nothing, as Numba's own code would."""
    nothing = [ctypes.byref(ctypes.c_void_p()) for _ in range(2)]  # where a result and an error would go
    kinds = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * len(integers)
    assert ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)(int(address))(*nothing, *integers) == 0
