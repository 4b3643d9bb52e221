"""Device memory as Numba sees it: views, address ranges, streams, devices. All of Numba's private API is used here.

Called by the engine and by producers. In Numba's simulator device memory is host memory and there are no streams.
"""

import contextlib
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import config, cuda

from .launch import Configuration

SIMULATED = bool(config.ENABLE_CUDASIM)

if SIMULATED:
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    class SimulatedArray(FakeCUDAArray):  # type: ignore[misc]  # Numba is untyped
        """The simulator's array with a plain shape, as real arrays have it; its own refuses negative indices."""

        @property
        def shape(self) -> tuple[int, ...]:
            """As NumPy has it."""
            return tuple(self._ary.shape)

else:
    from numba.cuda import types
    from numba.cuda.cudadrv import driver
    from numba.cuda.np import numpy_support


class Memory(NamedTuple):
    """What the CUDA array interface says of an array, strides always spelt out."""

    address: int
    read_only: bool
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None  # where the producer works on it, as a pointer
    masked: bool


class Queue(NamedTuple):
    """Where the work of a call goes: a GPU and, as a pointer, one of its streams; 0 is the default stream."""

    device: int
    stream: int


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_of(value: Any) -> Memory:
    """Where a device array lies.

    Numba's own arrays are read by their attributes: the interface that they export drops strides of zero, and the
    simulator's have none but NumPy's.
    """
    if hasattr(value, "__cuda_ndarray__"):
        address, read_only = (value.__array_interface__ if SIMULATED else value.__cuda_array_interface__)["data"]
        stream = None if isinstance(value.stream, int) or SIMULATED else int(value.stream)
        return Memory(address, read_only, tuple(value.shape), tuple(value.strides), value.dtype, stream, False)
    interface = value.__cuda_array_interface__
    address, read_only = interface["data"]
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is None:
        strides = (math.prod(shape[d + 1 :]) * dtype.itemsize for d in range(len(shape)))
    masked = interface.get("mask") is not None
    return Memory(address, read_only, shape, tuple(strides), dtype, interface.get("stream"), masked)


def view(memory: Memory, owner: Any) -> Any:
    """The array that the kernels take, which keeps `owner` alive.

    Its type says "any strides" whatever they are, so that a kernel is compiled once for a dtype.
    """
    interface = {
        "version": 3,
        "data": (memory.address, memory.read_only),
        "shape": memory.shape,
        "strides": memory.strides,
        "typestr": memory.dtype.str,
    }
    if SIMULATED and memory.address == 0:  # no elements; NumPy 2.0 takes no interface without an address
        return SimulatedArray(np.empty(memory.shape, memory.dtype))
    if SIMULATED:
        array = SimulatedArray(np.asarray(_Exported(interface, owner)))
        array.owner = owner
        return array
    array = cuda.from_cuda_array_interface(interface, owner, sync=False)
    array.owner = owner
    array._numba_type_ = types.Array(numpy_support.from_dtype(memory.dtype), len(memory.shape), "A")
    return array


def owner_of(array: Any) -> Any:
    """What the caller passed, of which this is a view."""
    owner = getattr(array, "owner", None)
    return array if owner is None else owner_of(owner)


@dataclasses.dataclass(frozen=True)
class _Exported:
    """The simulator's memory as NumPy takes it."""

    __array_interface__: dict[str, Any]
    owner: Any


def batched(array: Any) -> Any:
    """A view with a leading dimension of one."""
    memory = memory_of(array)
    return view(memory._replace(shape=(1, *memory.shape), strides=(0, *memory.strides)), array)


def reshaped(value: Any, shape: tuple[int, ...]) -> Any:
    """A view of contiguous memory in another shape."""
    memory = memory_of(value)
    strides = tuple(math.prod(shape[d + 1 :]) * memory.dtype.itemsize for d in range(len(shape)))
    return view(memory._replace(shape=shape, strides=strides), value)


def aligned(memory: Memory) -> bool:
    """Whether a GPU can load every element, which it can at multiples of the element's size only."""
    steps = (stride for stride, size in zip(memory.strides, memory.shape, strict=True) if size > 1)
    return 0 in memory.shape or not any(step % memory.dtype.itemsize for step in (memory.address, *steps))


def overlap(one: Any, other: Any) -> bool:
    """Whether the address ranges of two arrays meet, even where their elements lie in between each other."""
    (begin, end), (other_begin, other_end) = _span(memory_of(one)), _span(memory_of(other))
    return max(begin, other_begin) < min(end, other_end)


def _span(memory: Memory) -> tuple[int, int]:
    if 0 in memory.shape:
        return 0, 0
    reach = [stride * (size - 1) for stride, size in zip(memory.strides, memory.shape, strict=True)]
    begin = memory.address + sum(min(r, 0) for r in reach)
    return begin, memory.address + sum(max(r, 0) for r in reach) + memory.dtype.itemsize


def constants(values: tuple[int, ...], device: int) -> Any:
    """Integers on a GPU, there for every stream."""
    with on_device(Queue(device, 0)):
        array = cuda.to_device(np.array(values, np.int64))
        cuda.default_stream().synchronize()
        return view(memory_of(array), array)


def nothing(dtype: np.dtype[Any]) -> Any:
    """A vector of no elements, which takes no memory: what kernels take for an absent bias."""
    return view(Memory(0, False, (0,), (dtype.itemsize,), dtype, None, False), None)


# --- devices and streams ----------------------------------------------------------------------------------------------


def device_of(memory: Memory) -> int | None:
    """The number of the GPU that the memory is on; None for an array without elements, which is nowhere."""
    if 0 in memory.shape:
        return None
    if len(cuda.gpus) == 1:
        return 0
    ordinal = driver.binding.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(driver.driver.cuPointerGetAttribute(ordinal, driver.binding.CUdeviceptr(memory.address)))


def current_device() -> int:
    """The GPU that is current in the calling thread."""
    return 0 if len(cuda.gpus) == 1 else cuda.get_current_device().id


def describe_device() -> dict[str, str]:
    """The name, compute capability and driver of the current GPU."""
    device = cuda.get_current_device()
    return {
        "name": device.name.decode() if isinstance(device.name, bytes) else str(device.name),
        "compute_capability": ".".join(str(part) for part in device.compute_capability),
        "driver": ".".join(str(part) for part in driver.driver.get_version()),
    }


def on_device(queue: Queue) -> contextlib.AbstractContextManager[Any]:
    """Makes the GPU of the queue the current one."""
    return contextlib.nullcontext() if len(cuda.gpus) == 1 else cuda.gpus[queue.device]


def stream_of(pointer: int) -> Any:
    """Numba's object for a stream."""
    return 0 if pointer == 0 or SIMULATED else _external_stream(pointer)


@functools.lru_cache(maxsize=64)
def _external_stream(pointer: int) -> Any:
    return cuda.external_stream(pointer)


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


def start(kernel: Any, configuration: Configuration, queue: Queue, *arguments: Any) -> None:
    """Queue a kernel, if there is anything for it to do."""
    if configuration.blocks:
        with on_device(queue):
            kernel[configuration.blocks, configuration.threads, stream_of(queue.stream)](*arguments)


def compile_for(kernel: Any, arguments: tuple[Any, ...], queue: Queue) -> None:
    """Compile a kernel for arguments of these types, unless it is."""
    if not SIMULATED and not kernel.overloads:
        with on_device(queue):
            kernel.compile(tuple(kernel.typeof_pyval(argument) for argument in arguments))


def is_simulated_stream(value: object) -> bool:
    """Whether this is a stream of the simulator, which has no pointer."""
    return SIMULATED and isinstance(value, cuda.stream)
