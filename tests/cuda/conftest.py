"""What the CUDA tests share: the real GPU where there is one, else Numba's simulator on launches it can carry."""

import functools
import os
import sys
import threading

import pytest

import numba_ctconv as nc

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"  # set by the conftest above, which looks for a GPU


@pytest.fixture
def operands(request):
    """Those of the module's PROBLEM."""
    return request.module.PROBLEM.operands()


@pytest.fixture
def forward(request):
    """Forward with the parameters of the module's PROBLEM: forward(x, w, b, **options)."""
    return functools.partial(nc.conv_transpose1d, **request.module.PROBLEM.forward_parameters)


@pytest.fixture
def backward(request):
    """The gradients likewise: backward(dy, x, w, **options)."""
    return functools.partial(nc.conv_transpose1d_backward, **request.module.PROBLEM.backward_parameters)


@pytest.fixture
def expected(forward, operands):
    """The module's PROBLEM as the CPU computes it."""
    return forward(*operands[:3])


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Make launches so small that the simulator, where a thread is a thread of Python, carries them.

    Odd sizes, and fewer threads than elements, so that every loop strides over the grid and trees are lopsided.
    """
    if SIMULATED:
        from numba_ctconv.cuda import fast, launch  # noqa: PLC0415  # after the skips of the test modules

        fast.forget()  # what a test before changed
        monkeypatch.setattr(launch, "THREADS", 3)
        monkeypatch.setattr(launch, "FEWEST_BLOCKS", 1)
        monkeypatch.setattr(launch, "MOST_BLOCKS", 1)
        monkeypatch.setattr(launch, "LANES", 3)


@pytest.fixture(autouse=True, scope="session")
def eager_switching():
    """Let waiting simulated threads run at once: by default each barrier costs a switch interval of 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class OneAtATime(dict):
    """Shared arrays by the line that asks for them; a thread that finds none has the lock until it has put one."""

    def __init__(self):
        super().__init__()
        self._lock = threading.Lock()

    def get(self, key):
        self._lock.acquire()
        found = super().get(key)
        if found is not None:
            self._lock.release()
        return found

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self._lock.release()


@pytest.fixture(autouse=True)
def shared_arrays(monkeypatch):
    """Have the threads of a simulated block share one array: the simulator looks and allocates without a lock."""
    if SIMULATED:
        from numba.cuda.simulator import kernelapi  # noqa: PLC0415  # there only where CUDA is simulated

        made = kernelapi.FakeCUDAShared.__init__

        def init(self, dynshared_size):
            made(self, dynshared_size)
            self._allocations = OneAtATime()

        monkeypatch.setattr(kernelapi.FakeCUDAShared, "__init__", init)
