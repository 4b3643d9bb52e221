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
cores = os.cpu_count() or 1
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(4, cores)))  # tests ask for up to four threads,
os.environ.setdefault("NUMBA_DEFAULT_NUM_THREADS", str(cores))  # whatever the machine has

import numpy as np  # noqa: E402  # after the switch


class PoisonedNumpy:
    """NumPy, but new memory holds NaN."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def empty(shape, dtype):
        return np.full(shape, np.nan, dtype) if np.dtype(dtype).kind == "f" else np.empty(shape, dtype)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU engine gets memory full of NaN, so that an element nobody wrote shows instead of passing as zero."""
    for module in ("numba_ctconv.cpu", "numba_ctconv.cpu.fast"):
        monkeypatch.setattr(f"{module}.np", PoisonedNumpy())


@pytest.fixture
def numba_threads():
    """Set Numba's number of threads; `counts` are those that this process can have. Restored afterwards."""
    import numba  # noqa: PLC0415  # not before the switch above

    class Threads:
        counts = tuple(range(1, numba.config.NUMBA_NUM_THREADS + 1))

        def __call__(self, count: int) -> None:
            numba.set_num_threads(count)

    before = numba.get_num_threads()
    yield Threads()
    numba.set_num_threads(before)
