"""GPUs, streams and events as Numba has them. Called by the engine, producers, arrays and launches.

In Numba's simulator there are no streams. What is private of Numba's is used here, in arrays.py and in launches.py.
"""

import contextlib
import functools
from typing import Any, NamedTuple

from numba import config, cuda

SIMULATED = bool(config.ENABLE_CUDASIM)
DriverError: type[Exception] = RuntimeError  # what the driver's refusals are; the simulator has no driver
STREAM_OF_THREAD = 2  # of each its own, under one pointer
DEFAULT_STREAMS = (0, 1, STREAM_OF_THREAD)  # the legacy one, under both its pointers, and that of each thread

if not SIMULATED:
    from numba.cuda.cudadrv import driver

    DriverError = driver.CudaAPIError


class Queue(NamedTuple):
    """Where the work of a call goes: a GPU and, as a pointer, one of its streams; 0 is the default stream."""

    device: int
    stream: int


@functools.cache
def one_gpu() -> bool:
    """Whether there is no other to choose."""
    return len(cuda.gpus) == 1


def current_device() -> int:
    """The GPU that is current in the calling thread."""
    return 0 if one_gpu() else cuda.get_current_device().id


def describe_device() -> dict[str, str]:
    """The name, compute capability and driver of the current GPU."""
    device = cuda.get_current_device()
    return {
        "name": device.name.decode() if isinstance(device.name, bytes) else str(device.name),
        "compute_capability": ".".join(str(part) for part in device.compute_capability),
        "driver": ".".join(str(part) for part in driver.driver.get_version()),
    }


def has_tensor_cores(queue: Queue) -> bool:
    """Whether the GPU has what the tiled kernels ask for: asynchronous copies, and tensor cores for all dtypes."""
    return capability(queue.device) >= (8, 0)


@functools.cache
def capability(device: int) -> tuple[int, int]:
    """The compute capability of a GPU; that of none is the emulator's, which has all instructions."""
    if SIMULATED:
        return 9, 0
    with on_device(Queue(device, 0)):
        major, minor = cuda.get_current_device().compute_capability
    return major, minor


def on_device(queue: Queue) -> contextlib.AbstractContextManager[Any]:
    """Makes the GPU of the queue the current one."""
    return contextlib.nullcontext() if one_gpu() else cuda.gpus[queue.device]


def stream_of(pointer: int) -> Any:
    """Numba's object for a stream."""
    return 0 if pointer == 0 or SIMULATED else _external_stream(pointer)


@functools.lru_cache(maxsize=64)
def _external_stream(pointer: int) -> Any:
    return cuda.external_stream(pointer)


def pointer_of(stream: Any) -> int:
    """The pointer of a stream of Numba's, or of one that has its protocol."""
    return int(stream.__cuda_stream__()[1])


def belongs(queue: Queue) -> bool:
    """Whether the stream is one of the context that Numba has on the GPU; the default streams are of every one."""
    if SIMULATED or queue.stream in DEFAULT_STREAMS:
        return True
    try:
        context = driver.driver.cuStreamGetCtx(driver.binding.CUstream(queue.stream))
    except DriverError:
        return False
    return int(context) == int(cuda.gpus[queue.device].get_primary_context().handle)


def wait(queue: Queue, pointer: int) -> None:
    """Work queued from now on waits for what the stream `pointer` holds; the caller does not."""
    after(mark(Queue(queue.device, pointer)), queue)


def mark(queue: Queue) -> Any:
    """An event after all that is queued by now."""
    if SIMULATED:
        return None
    with on_device(queue):
        event = cuda.event(timing=False)
        event.record(stream_of(queue.stream))
    return event


def after(event: Any, queue: Queue) -> None:
    """Work queued from now on waits for an event; the caller does not."""
    if event is not None:
        with on_device(queue):
            event.wait(stream_of(queue.stream))


def is_simulated_stream(value: object) -> bool:
    """Whether this is a stream of the simulator, which has no pointer."""
    return SIMULATED and isinstance(value, cuda.stream)
