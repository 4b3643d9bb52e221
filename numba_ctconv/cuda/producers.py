"""The libraries that device arrays come from: on which device and stream they work, and how they allocate.

Called by the engine. A library is asked only where its user has imported it.
"""

import contextlib
import functools
import operator
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from .. import checks
from ..checks import BFLOAT16
from . import arrays, captures, dlpack, queues
from .arrays import VIEW, Form, Memory
from .queues import Queue

BYTE = np.dtype(np.uint8)
KEPT_MEMORIES = 8  # for as many streams, the latest: others may be gone


class Producer(Protocol):
    """What the engine asks of a library."""

    pooled: bool  # memory that is given back waits for the next to ask, and the driver is not asked
    knows_graphs: bool  # memory that is asked for while a graph is captured is given to nobody else

    def memory(self, value: Any, name: str) -> Memory:
        """Where a value lies; `name` is that of the argument, for refusals."""

    def device(self, value: Any) -> int | None:
        """The number of the GPU that a value is on; None where it has no elements."""

    def stream(self, value: Any) -> int | None:
        """The stream that a value is worked on, as a pointer; None where the library names none."""

    def order(self, value: Any, queue: Queue) -> None:
        """Have the queue wait for the work on a value whose stream the library does not name."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], queue: Queue) -> Any:
        """A new value, in memory that work on the queue may use."""

    def keep(self, value: Any, queue: Queue) -> None:
        """Keep the memory of a value from being used again before the work queued is done."""


class Numba:
    """Numba's own arrays, and those of any library that is not known here but has the CUDA array interface."""

    pooled = knows_graphs = False

    def memory(self, value: Any, name: str) -> Memory:
        """By its attributes or its interface."""
        memory = arrays.memory_of(value)
        if memory.masked:
            checks.masked(name, "device array with a mask")
        return memory

    def device(self, value: Any) -> int | None:
        """By its address."""
        return arrays.device_of(arrays.memory_of(value))

    def stream(self, value: Any) -> int | None:
        """As its interface says."""
        pointer: int | None = (value.memory if type(value) is VIEW else arrays.memory_of(value)).stream
        return pointer

    def order(self, value: Any, queue: Queue) -> None:
        """What names no stream wants no order."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], queue: Queue) -> Any:
        """From the driver: slow, and no part of a captured graph; `out` spares it."""
        return arrays.allocate(shape, dtype, queue)

    def keep(self, value: Any, queue: Queue) -> None:
        """Numba frees through the driver, which waits."""


class DLPack(Numba):
    """Arrays that have DLPack's protocol alone; results are Numba's.

    They are exported twice: to be looked at, and to be ordered before the queue, which is only then known.
    """

    def memory(self, value: Any, name: str) -> Memory:
        """By its capsule."""
        try:
            return dlpack.memory_of(value)
        except BufferError as reason:  # what a library says of arrays that it can't export
            checks.not_exported(name, reason)

    def device(self, value: Any) -> int | None:
        """As the protocol says."""
        return dlpack.device(value)

    def stream(self, value: Any) -> int | None:  # noqa: ARG002  # the protocol's
        """The protocol names none: it orders."""
        return None

    def order(self, value: Any, queue: Queue) -> None:
        """By a second export, to the queue's stream."""
        dlpack.order(arrays.owner_of(value), queue.stream)


class CuPy(Numba):
    """CuPy's arrays, from CuPy's pool."""

    pooled = True

    def device(self, value: Any) -> int | None:
        """As the array says."""
        return int(value.device.id)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], queue: Queue) -> Any:
        """From the pool of the launch stream."""
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(queue.device), cupy.cuda.ExternalStream(queue.stream):
            return cupy.empty(shape, dtype)

    def keep(self, value: Any, queue: Queue) -> None:
        """CuPy's pool can't be told; with a `stream` other than CuPy's, the caller keeps what is in use."""


class Torch(Numba):
    """torch's tensors, from torch's caching allocator."""

    pooled = knows_graphs = True

    def memory(self, value: Any, name: str) -> Memory:
        """By its attributes; a tensor whose layout or pending sign they don't tell is refused."""
        if value.layout is not sys.modules["torch"].strided:
            checks.not_dense(name, f"layout {value.layout}")
        if value.is_neg():
            checks.not_dense(name, "a view that is negated when it is read")
        dtype = _dtype(value.dtype)
        itemsize = dtype.itemsize
        strides = tuple([step * itemsize for step in value.stride()])
        return Memory(value.data_ptr(), False, tuple(value.shape), strides, dtype, None, False)

    def device(self, value: Any) -> int | None:
        """As the tensor says."""
        return int(value.device.index)

    def stream(self, value: Any) -> int | None:
        """The current one of torch; the interface does not say."""
        return int(sys.modules["torch"].cuda.current_stream(arrays.owner_of(value).device).cuda_stream)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], queue: Queue) -> Any:
        """From the allocator's pool of the launch stream, which may write to it at once."""
        torch = sys.modules["torch"]
        with torch.cuda.stream(self._stream(queue)):
            return torch.empty(shape, dtype=getattr(torch, dtype.name), device=f"cuda:{queue.device}")

    def keep(self, value: Any, queue: Queue) -> None:
        """By telling the allocator."""
        arrays.owner_of(value).record_stream(self._stream(queue))

    def _stream(self, queue: Queue) -> Any:
        return sys.modules["torch"].cuda.ExternalStream(queue.stream, device=f"cuda:{queue.device}")


NUMBA, DLPACK, CUPY, TORCH = Numba(), DLPack(), CuPy(), Torch()


@functools.lru_cache(maxsize=64)
def _dtype(kind: Any) -> Any:
    """NumPy's dtype of torch's, which share their names; void, which nothing takes, for one that NumPy lacks."""
    name = str(kind).removeprefix("torch.")
    if name == BFLOAT16.name:
        return BFLOAT16
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype((np.void, 1))


def producer_of(value: Any) -> Producer:
    """The library that a value, or the value under a view, comes from."""
    if type(value) is VIEW:
        known: Producer | None = value.producer
        if known is not None:
            return known
        value = arrays.owner_of(value)
    if hasattr(value, "__cuda_ndarray__"):
        return NUMBA
    for library, array_type, producer in (("torch", "Tensor", TORCH), ("cupy", "ndarray", CUPY)):
        own = getattr(sys.modules.get(library), array_type, None)
        if own is not None and isinstance(value, own):
            return producer
    return NUMBA if hasattr(value, "__cuda_array_interface__") else DLPACK


def memory(value: Any, name: str) -> Memory:
    """Where a value lies."""
    if arrays.is_view(value):
        return arrays.memory_of(value)
    return producer_of(value).memory(value, name)


def device(value: Any) -> int | None:
    """The number of the GPU that a value is on; None where it has no elements, unless there is but one."""
    return 0 if queues.one_gpu() else producer_of(value).device(arrays.owner_of(value))


def workspace(form: Form, like: Any, queue: Queue) -> Any:
    """A view of memory for work on the queue, from the library that a view or a value comes from."""
    producer = producer_of(like)
    value = producer.empty((form.size,), form.dtype, queue)
    found = producer.memory(value, "workspace")
    return arrays.view(found._replace(shape=form.shape, strides=form.strides), value, producer)


_given_back: dict[Queue, Any] = {}  # memory for what comes next on a queue, where the library has no pool


@contextlib.contextmanager
def borrowed(form: Form, like: Any, queue: Queue, of_graphs: list[Any] | None) -> Iterator[Any]:
    """Workspace for what is queued inside; others may have it for what comes later on the queue.

    What a graph works on goes to `of_graphs`, if there are any: it must be there for as long as the graph may run.
    """
    producer = producer_of(like)
    if not producer.knows_graphs and captures.capturing(queue):
        own = workspace(form, like, queue)
        if of_graphs is not None:
            of_graphs.append(own)
        yield own
    elif producer.pooled or queue.stream == queues.STREAM_OF_THREAD:
        yield workspace(form, like, queue)
    else:
        size = form.size * form.dtype.itemsize
        own = _given_back.pop(queue, None)
        if own is None or own.size < size:
            own = workspace(arrays.contiguous_form(BYTE, (size,)), like, queue)
        memory = arrays.memory_of(own)._replace(shape=form.shape, strides=form.strides, dtype=form.dtype)
        yield arrays.view(memory, own, producer, form)
        _given_back[queue] = own
        for other in list(_given_back)[:-KEPT_MEMORIES]:
            _given_back.pop(other, None)


def keep(view: Any, queue: Queue) -> None:
    """Keep the memory under a view from being used again before the work queued is done."""
    producer_of(view).keep(view, queue)


def queue_of(stream: Any, values: dict[str, Any]) -> Queue:
    """The queue of a call: `stream`, or that of the first of `values`; it waits for what is queued on all of them.

    The values may be views, which know what has been asked of them.
    """
    given = []
    place = None
    for value in values.values():
        if value is not None:
            producer = producer_of(value)
            pointer = producer.stream(value)
            given.append((value, producer, _legacy_as_default(pointer) if pointer else pointer))
            if place is None:
                place = device(value)
    queue = Queue(
        queues.current_device() if place is None else place,
        (given[0][2] or 0) if stream is None else _pointer(stream),
    )
    if not queues.belongs(queue):
        checks.foreign_stream(queue.device)
    for pointer in {pointer for _, _, pointer in given if pointer is not None} - {queue.stream}:
        queues.wait(queue, pointer)
    for value, producer, pointer in given:
        if pointer is None:
            producer.order(value, queue)
        elif pointer != queue.stream:
            producer.keep(value, queue)
    return queue


def _pointer(stream: Any) -> int:
    """The pointer of whatever a library calls a stream."""
    if queues.is_simulated_stream(stream):
        return 0
    if hasattr(stream, "__cuda_stream__"):
        _, stream = stream.__cuda_stream__()
    else:  # torch's, CuPy's, or a pointer itself
        stream = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))
    if isinstance(stream, bool) or not hasattr(stream, "__index__") or operator.index(stream) < 0:
        checks.not_a_stream(stream)
    return _legacy_as_default(operator.index(stream))


def _legacy_as_default(pointer: int) -> int:
    """The legacy default stream has two pointers; torch takes 0 alone."""
    return 0 if pointer == 1 else pointer
