"""What every test may use: where CUDA kernels run, memory that no one wrote, and the targets."""

import ctypes
import os

import pytest


def has_gpu() -> bool:
    """Whether the driver finds a GPU; asked without importing numba, which reads the simulator's switch on import."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


if not has_gpu():  # before anything imports numba
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")

import numpy as np  # noqa: E402  # after the switch


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds NaN, so that an element nobody wrote shows, instead of passing as a lucky zero."""
    empty = np.empty

    def poisoned(shape, dtype=float, *args, **kwargs):
        array = empty(shape, dtype, *args, **kwargs)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", poisoned)
