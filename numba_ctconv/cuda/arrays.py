"""Device memory as Numba sees it: views, address ranges, streams, devices. All of Numba's private API is used here.

Called by the engine and by producers. In Numba's simulator device memory is host memory and there are no streams.
"""

import contextlib
import dataclasses
import functools
import math
import sys
import warnings
from typing import Any, NamedTuple

import numpy as np
from numba import config, cuda

from .. import checks
from ..checks import BFLOAT16
from .launch import Configuration

SIMULATED = bool(config.ENABLE_CUDASIM)
DriverError: type[Exception] = RuntimeError  # what the driver's refusals are; the simulator has no driver
BFLOAT16_EXPORTED = "<V2"  # how torch and ml_dtypes export it

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

    DriverError = driver.CudaAPIError


class Memory(NamedTuple):
    """What the CUDA array interface says of an array, strides always spelt out."""

    address: int
    read_only: bool
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None  # where the producer works on it, as a pointer
    masked: bool
    owner: Any = None  # what keeps the memory, where that is not the array itself


class Queue(NamedTuple):
    """Where the work of a call goes: a GPU and, as a pointer, one of its streams; 0 is the default stream."""

    device: int
    stream: int


DEFAULT_STREAMS = (0, 1, 2)  # the legacy one, under both its pointers, and that of each thread


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_of(value: Any) -> Memory:
    """Where a device array lies.

    Numba's own arrays are read by their attributes: the interface that they export drops strides of zero and does not
    know our bfloat16, and the simulator's have none but NumPy's.
    """
    if hasattr(value, "__cuda_ndarray__"):
        if "described" in vars(value):
            return value.described  # type: ignore[no-any-return]  # view() says so
        own = value.__array_interface__["data"] if SIMULATED else (value.device_ctypes_pointer.value or 0, False)
        address, read_only = own
        stream = None if isinstance(value.stream, int) or SIMULATED else pointer_of(value.stream)
        return Memory(address, read_only, tuple(value.shape), tuple(value.strides), _ours(value.dtype), stream, False)
    interface = value.__cuda_array_interface__
    address, read_only = interface["data"]
    shape, dtype = tuple(interface["shape"]), interface["typestr"]
    dtype = BFLOAT16 if dtype == BFLOAT16_EXPORTED else np.dtype(dtype)
    strides = interface.get("strides")
    strides = contiguous(shape, dtype.itemsize) if strides is None else tuple(strides)
    masked = interface.get("mask") is not None
    return Memory(address, read_only, shape, strides, dtype, interface.get("stream"), masked)


def contiguous(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The strides of an array in C order."""
    return tuple(math.prod(shape[d + 1 :]) * itemsize for d in range(len(shape)))


def _ours(dtype: Any) -> Any:
    """A dtype of Numba's arrays; ml_dtypes' bfloat16 is that of this package."""
    return BFLOAT16 if dtype == BFLOAT16 else dtype


def allocatable(dtype: Any) -> Any:
    """The dtype under which Numba makes arrays; None for bfloat16 where ml_dtypes is not installed."""
    if dtype != BFLOAT16:
        return dtype
    return np.dtype("bfloat16") if "ml_dtypes" in sys.modules else None  # which numba-cuda imports


def view(memory: Memory, owner: Any) -> Any:
    """The array that the kernels take, which keeps `owner` alive.

    Its type says "any strides" whatever they are, so that a kernel is compiled once for a dtype.
    """
    interface = {
        "version": 3,
        "data": (memory.address, memory.read_only),
        "shape": memory.shape,
        "strides": memory.strides,
        "typestr": BFLOAT16_EXPORTED if memory.dtype == BFLOAT16 else memory.dtype.str,
    }
    if SIMULATED:
        dtype = allocatable(memory.dtype)
        if memory.address == 0:  # no elements; NumPy 2.0 takes no interface without an address
            return SimulatedArray(np.empty(memory.shape, dtype))
        array = SimulatedArray(np.asarray(_Exported(interface, owner)).view(dtype))
        array.owner = owner
        return array
    array = cuda.from_cuda_array_interface(interface, owner, sync=False)
    array.owner = owner
    array._numba_type_ = _strided(memory.dtype, len(memory.shape))
    array.dtype = memory.dtype
    array.described = Memory(memory.address, False, memory.shape, memory.strides, memory.dtype, None, False)
    return array


@functools.cache
def _strided(dtype: Any, dimensions: int) -> Any:
    """Numba's type of arrays of any strides."""
    return types.Array(types.bfloat16 if dtype == BFLOAT16 else numpy_support.from_dtype(dtype), dimensions, "A")


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


def allocate(shape: tuple[int, ...], dtype: Any, queue: Queue) -> Any:
    """A new array of Numba's, from the driver.

    Raises
    ------
    MemoryError
        With what was asked for.
    """
    known = allocatable(dtype)
    if known is None:
        checks.unallocatable(dtype)
    try:
        with on_device(queue):
            return cuda.device_array(shape, known, stream=stream_of(queue.stream))
    except DriverError as error:
        if "OUT_OF_MEMORY" not in str(error):
            raise
        checks.out_of_memory(math.prod(shape) * dtype.itemsize, queue.device, error)


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
    return contextlib.nullcontext() if len(cuda.gpus) == 1 else cuda.gpus[queue.device]


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


def start(kernel: Any, configuration: Configuration, queue: Queue, *arguments: Any) -> None:
    """Queue a kernel, if there is anything for it to do."""
    if configuration.blocks:
        configured = (
            _configured_once.__wrapped__ if SIMULATED else _configured_once
        )  # the simulator configures in place
        with on_device(queue):
            configured(kernel, configuration, queue.stream)(*arguments)


@functools.lru_cache(maxsize=1024)
def _configured_once(kernel: Any, configuration: Configuration, pointer: int) -> Any:
    """A kernel with its grid and stream. Numba warns of grids that leave a GPU idle, which short inputs can't help."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grid size")
        return kernel[configuration.blocks, configuration.threads, stream_of(pointer)]


def compile_for(kernel: Any, arguments: tuple[Any, ...], queue: Queue) -> None:
    """Compile a kernel for arguments of these types, unless it is."""
    if not SIMULATED and not kernel.overloads:
        with on_device(queue):
            kernel.compile(tuple(kernel.typeof_pyval(argument) for argument in arguments))


def is_simulated_stream(value: object) -> bool:
    """Whether this is a stream of the simulator, which has no pointer."""
    return SIMULATED and isinstance(value, cuda.stream)
