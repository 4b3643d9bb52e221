"""The driver's graphs, events and copies on a stream of their own: what the benchmark times with.

Imported by the benchmark's device module alone. The stream is none that waits for the default one, so that an upload
elsewhere breaks no capture. Work of any library of this process may be queued on it.
"""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import driver
from numba import cuda

from . import arrays, launch, launches, queues, rates
from .queues import Queue

MOST_COPIED = 2**29  # bytes of the copied array,
PART_OF_MEMORY = 16  # and at most this part of what is free
BLOCKS = 8  # of multiply-adds on each multiprocessor: as many threads as it holds
ROUNDS = 2000  # of them: some milliseconds


class DriverError(RuntimeError):
    """What the driver answers to a call that it does not carry out."""


class Graphs:
    """A stream of the current GPU with what the benchmark queues on it.

    Parameters
    ----------
    flushed_bytes : callable
        How much to write for a second-level cache of so many bytes.
    """

    def __init__(self, flushed_bytes: Callable[[int], int]) -> None:
        context = cuda.current_context()  # the driver's calls below are about it
        device = cuda.get_current_device()
        self.stream = int(_call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value))
        self._events_on = cuda.external_stream(self.stream)
        self._queue = Queue(queues.current_device(), self.stream)
        self._threads = device.MULTIPROCESSOR_COUNT * BLOCKS * launch.THREADS
        self._flushed = cuda.device_array(flushed_bytes(device.L2_CACHE_SIZE), np.uint8)
        size = min(MOST_COPIED, int(context.get_memory_info().free) // PART_OF_MEMORY)
        self._source, self._target = cuda.device_array(size, np.uint8), cuda.device_array(size, np.uint8)
        self._sums: dict[str, tuple[Any, Any]] = {}

    def capture(self, run: Callable[[], Any]) -> Callable[[], None]:
        """What replays the work that `run` queues on the stream.

        `run` may ask the driver for memory, which is not given back while the graph is there to write to it.
        """
        kept = contextlib.ExitStack()
        kept.enter_context(cuda.defer_cleanup())
        _call("cuStreamBeginCapture", self.stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            result = run()
        except BaseException:
            with contextlib.suppress(DriverError):  # the capture may be broken; it has to end all the same
                _call("cuGraphDestroy", _call("cuStreamEndCapture", self.stream))
            kept.close()
            raise
        return _Graph(_call("cuStreamEndCapture", self.stream), self.stream, kept, result)

    def flush(self) -> None:
        """Write more than the second-level cache holds."""
        _call("cuMemsetD8Async", arrays.memory_of(self._flushed).address, 0, self._flushed.size, self.stream)

    def mark(self) -> Any:
        """An event of Numba's."""
        event = cuda.event(timing=True)
        event.record(self._events_on)
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """As the GPU counted them."""
        return float(begin.elapsed_time(end)) / 1e3

    def wait(self) -> None:
        """For all streams: a library may have its own."""
        cuda.synchronize()

    def copy(self) -> int:
        """From one large array to another."""
        source, target = (arrays.memory_of(array).address for array in (self._source, self._target))
        _call("cuMemcpyDtoDAsync", target, source, self._source.size, self.stream)
        return 2 * int(self._source.size)

    def multiply_adds(self, dtype: str) -> int:
        """On all multiprocessors."""
        if dtype not in self._sums:
            constants = cuda.to_device(np.array([0.5, 1.0, 0.0], dtype))
            sums = cuda.device_array(self._threads, dtype)
            self._sums[dtype] = (
                arrays.view(arrays.memory_of(constants), constants), arrays.view(arrays.memory_of(sums), sums),
            )  # fmt: skip
            cuda.synchronize()  # they were copied on another stream
        grid = launch.Configuration(self._threads // launch.THREADS, launch.THREADS)
        launches.start(rates.multiply_adds, grid, self._queue, ROUNDS, *self._sums[dtype])
        return 2 * rates.CHAINS * rates.STEPS * ROUNDS * int(self._threads)

    def nothing(self) -> None:
        """No round of them, by as few blocks as Numba does not warn of."""
        if not self._sums:
            self.multiply_adds("float32")
        constants, sums = next(iter(self._sums.values()))
        few = launch.Configuration(launch.FEWEST_BLOCKS, launch.WARP)
        launches.start(rates.multiply_adds, few, self._queue, 0, constants, sums)


class _Graph:
    """A graph that can be launched, and what it works on."""

    def __init__(self, graph: Any, stream: int, memory: contextlib.ExitStack, result: Any) -> None:
        self._stream = stream
        self._result = result
        weakref.finalize(self, memory.close).atexit = False
        try:
            self._executable = _call("cuGraphInstantiate", graph, 0)
        finally:
            _call("cuGraphDestroy", graph)
        weakref.finalize(
            self, _call, "cuGraphExecDestroy", self._executable
        ).atexit = False  # the driver ends by itself

    def __call__(self) -> None:
        """Queue it."""
        _call("cuGraphLaunch", self._executable, self._stream)


def _call(name: str, *arguments: Any) -> Any:
    """A function of the driver's, by name; what it returns beside its status."""
    status, *results = getattr(driver, name)(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(status)
        raise DriverError(f"{name}: {text.decode() if isinstance(text, bytes) else status}")
    return results[0] if results else None
