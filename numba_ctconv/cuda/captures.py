"""What is done beside a stream that is being captured into a CUDA graph, and is no part of it.

A captured stream can't wait for an event that was recorded outside its capture, and the driver lets a thread ask for
one, for memory, or load a kernel, only where the thread says that it knows what it does: no graph depends on it.
Called by fast.py for weights that a layer keeps, and where memory is asked for and kernels are loaded.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from . import queues
from .queues import SIMULATED, Queue

if not SIMULATED:
    from cuda.bindings import driver

LEGACY_STREAMS = (0, 1)  # the default stream under both its pointers, which is never captured


def capturing(queue: Queue) -> bool:
    """Whether what is queued goes into a graph."""
    if SIMULATED or queue.stream in LEGACY_STREAMS:
        return False
    with queues.on_device(queue):
        status = _result(driver.cuStreamIsCapturing(queue.stream))
    return bool(status != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)


def order(event: Any, queue: Queue) -> bool:
    """Work queued from now on comes after an event that is in no graph; True where that was reached, for all streams.

    The host waits for nothing but an event that was not reached by the time of a capture, which could not wait for it.
    """
    with queues.on_device(queue), allowed():
        if event.query():
            return True
        if capturing(queue):
            event.synchronize()
            return True
    queues.after(event, queue)
    return False


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """The thread may ask the driver for anything while it, or any other, captures."""
    if SIMULATED:
        yield
        return
    before = _result(
        driver.cuThreadExchangeStreamCaptureMode(driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
    )
    try:
        yield
    finally:
        _result(driver.cuThreadExchangeStreamCaptureMode(before))


@functools.cache
def stream_beside(device: int) -> int:
    """A stream, as a pointer, that waits for no other; what goes by the default one would wait for a captured one."""
    with queues.on_device(Queue(device, 0)):
        return int(_result(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)))


def _result(answer: tuple[Any, ...]) -> Any:
    """What a function of the driver's returns beside its status."""
    status, result = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        raise queues.DriverError(int(status), driver.CUresult(status).name)
    return result
