"""Device memory: what an array's interface says of it, and the views of it that kernels take.

Called by the engine and by producers. In Numba's simulator device memory is host memory.
"""

import dataclasses
import functools
import math
import sys
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from .. import checks
from ..checks import BFLOAT16
from . import captures
from .queues import SIMULATED, DriverError, Queue, on_device, one_gpu, pointer_of, stream_of

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


def memory_of(value: Any) -> Memory:
    """Where a device array lies.

    Numba's own arrays are read by their attributes: the interface that they export drops strides of zero and does not
    know our bfloat16, and the simulator's have none but NumPy's.
    """
    if type(value) is VIEW:
        memory: Memory = value.memory
        return memory
    if hasattr(value, "__cuda_ndarray__"):
        own = value.__array_interface__["data"] if SIMULATED else (value.device_ctypes_pointer.value or 0, False)
        address, read_only = own
        dtype, stream = _ours(value.dtype), own_stream(value)
        return Memory(address, read_only, tuple(value.shape), tuple(value.strides), dtype, stream, False)
    interface = value.__cuda_array_interface__
    address, read_only = interface["data"]
    shape, dtype = tuple(interface["shape"]), interface["typestr"]
    dtype = BFLOAT16 if dtype == BFLOAT16_EXPORTED else np.dtype(dtype)
    strides = interface.get("strides")
    strides = contiguous(shape, dtype.itemsize) if strides is None else tuple(strides)
    masked = interface.get("mask") is not None
    return Memory(address, read_only, shape, strides, dtype, interface.get("stream"), masked)


def own_stream(value: Any) -> int | None:
    """Where Numba works on an array of its own, as a pointer."""
    if SIMULATED or isinstance(value.stream, int):
        return None
    return pointer_of(value.stream)


@functools.lru_cache(maxsize=1024)
def contiguous(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The strides of an array in C order."""
    return tuple(math.prod(shape[d + 1 :]) * itemsize for d in range(len(shape)))


@functools.cache
def _ours(dtype: Any) -> Any:
    """A dtype of Numba's arrays; ml_dtypes' bfloat16 is that of this package."""
    return BFLOAT16 if dtype == BFLOAT16 else dtype


def allocatable(dtype: Any) -> Any:
    """The dtype under which Numba makes arrays; None for bfloat16 where ml_dtypes is not installed."""
    if dtype != BFLOAT16:
        return dtype
    return np.dtype("bfloat16") if "ml_dtypes" in sys.modules else None  # which numba-cuda imports


class Form:
    """All that is told of an array but where it lies: one object for each dtype, shape and strides, while it is in use.

    So what is worked out for forms is found again by what they are, and no tuple is compared.
    """

    __slots__ = ("aligned", "dtype", "first", "last", "shape", "size", "strides", "taken", "words")

    def __init__(self, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.dtype, self.shape, self.strides, self.size = dtype, shape, strides, math.prod(shape)
        self.taken = dtype in checks.DEVICE_DTYPES  # by the engine
        steps = [(stride, size - 1) for stride, size in zip(strides, shape, strict=True) if size > 1]
        # a GPU can load every element at multiples of its size only; where the first one lies, the address says
        self.aligned = self.size == 0 or not any(stride % dtype.itemsize for stride, _ in steps)
        # the bytes that it spans, from its address
        self.first = sum(min(stride, 0) * count for stride, count in steps)
        self.last = sum(max(stride, 0) * count for stride, count in steps) + dtype.itemsize if self.size else self.first
        # what a kernel of Numba's takes for an array: two pointers to its own memory's keepers come first
        self.words = (0, 0, self.size, dtype.itemsize, 0, *shape, *strides)


ADDRESS_WORD = 4  # of the words of a form


@functools.lru_cache(maxsize=1024)
def form_of(dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Form:
    """The form of arrays of these."""
    return Form(dtype, shape, strides)


def contiguous_form(dtype: Any, shape: tuple[int, ...]) -> Form:
    """That of an array in C order."""
    return form_of(dtype, shape, contiguous(shape, dtype.itemsize))


class View:
    """The array that the kernels take, which keeps `owner` alive: a form, and where it lies."""

    __cuda_ndarray__ = True  # Numba's mark of a device array
    __slots__ = ("address", "form", "memory", "owner", "producer")

    def __init__(self, memory: Memory, owner: Any, producer: Any, form: Form) -> None:
        self.memory, self.owner, self.producer, self.form = memory, owner, producer, form
        self.address = memory.address

    @property
    def dtype(self) -> Any:
        """As NumPy has it."""
        return self.form.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As NumPy has it."""
        return self.form.shape

    @property
    def strides(self) -> tuple[int, ...]:
        """In bytes."""
        return self.form.strides

    @property
    def size(self) -> int:
        """Elements."""
        return self.form.size


@functools.cache
def type_of(dtype: Any, dimensions: int) -> Any:
    """Numba's type: it says "any strides" whatever they are, so that a kernel is compiled once for a dtype."""
    return types.Array(types.bfloat16 if dtype == BFLOAT16 else numpy_support.from_dtype(dtype), dimensions, "A")


VIEW: Any = SimulatedArray if SIMULATED else View


def view(memory: Memory, owner: Any, producer: Any = None, form: Form | None = None) -> Any:
    """The array that the kernels take, which keeps `owner` alive; its library and its form are found if not given."""
    form = form or form_of(memory.dtype, memory.shape, memory.strides)
    if not SIMULATED:
        return View(memory, owner, producer, form)
    interface = {
        "version": 3,
        "data": (memory.address, memory.read_only),
        "shape": memory.shape,
        "strides": memory.strides,
        "typestr": BFLOAT16_EXPORTED if memory.dtype == BFLOAT16 else memory.dtype.str,
    }
    dtype = allocatable(memory.dtype)
    if memory.address == 0:  # no elements; NumPy 2.0 takes no interface without an address
        array = SimulatedArray(np.empty(memory.shape, dtype))
    else:
        array = SimulatedArray(np.asarray(_Exported(interface, owner)).view(dtype))
    array.memory, array.owner, array.producer, array.form = memory, owner, producer, form
    array.address = memory.address
    return array


def is_view(value: Any) -> bool:
    """Whether this is such an array already."""
    return type(value) is VIEW


def owner_of(array: Any) -> Any:
    """What the caller passed, of which this is a view."""
    while type(array) is VIEW and array.owner is not None:
        array = array.owner
    return array


@dataclasses.dataclass(frozen=True)
class _Exported:
    """The simulator's memory as NumPy takes it."""

    __array_interface__: dict[str, Any]
    owner: Any


def batched(array: Any) -> Any:
    """A view with a leading dimension of one."""
    memory = memory_of(array)
    return view(memory._replace(shape=(1, *memory.shape), strides=(0, *memory.strides)), array)


def swapped(form: Form) -> Form:
    """A form with the first two dimensions swapped."""
    shape, strides = ((each[1], each[0], *each[2:]) for each in (form.shape, form.strides))
    return form_of(form.dtype, shape, strides)


def transposed(array: Any) -> Any:
    """A view with the first two dimensions swapped."""
    form = swapped(array.form)
    return view(memory_of(array)._replace(shape=form.shape, strides=form.strides), array, form=form)


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
        with on_device(queue), captures.allowed():
            return cuda.device_array(shape, known, stream=stream_of(queue.stream))
    except DriverError as error:
        if "OUT_OF_MEMORY" not in str(error):
            raise
        checks.out_of_memory(math.prod(shape) * dtype.itemsize, queue.device, error)


def reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    """A view of contiguous memory in another shape."""
    memory = memory_of(array)
    return view(memory._replace(shape=shape, strides=contiguous(shape, memory.dtype.itemsize)), array)


def overlapped(array: Any, others: dict[str, Any]) -> str | None:
    """The first whose address range meets the array's, even where their elements lie in between each other."""
    begin, end = _span(array)
    for name, other in others.items():
        if other is not None:
            other_begin, other_end = _span(other)
            if other_begin < end and begin < other_end and begin < end and other_begin < other_end:
                return name
    return None


def _span(array: Any) -> tuple[int, int]:
    if type(array) is not VIEW:
        array = view(memory_of(array), array)
    address, form = array.address, array.form
    return address + form.first, address + form.last


def constants(values: tuple[int, ...], device: int) -> Any:
    """Integers on a GPU, there for every stream, and for a graph that is being captured."""
    with on_device(Queue(device, 0)), captures.allowed():
        if SIMULATED:
            array = cuda.to_device(np.array(values, np.int64))
        else:
            beside = stream_of(captures.stream_beside(device))
            array = cuda.to_device(np.array(values, np.int64), stream=beside)
            beside.synchronize()
        return view(memory_of(array), array)


@functools.cache
def nothing(dtype: np.dtype[Any], dimensions: int = 1) -> Any:
    """An array of no elements, which takes no memory: what kernels take for an absent bias."""
    shape = (0,) * dimensions
    return view(Memory(0, False, shape, contiguous(shape, dtype.itemsize), dtype, None, False), None)


def device_of(memory: Memory) -> int | None:
    """The number of the GPU that the memory is on; None for an array without elements, which is nowhere."""
    if 0 in memory.shape:
        return None
    if one_gpu():
        return 0
    ordinal = driver.binding.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(driver.driver.cuPointerGetAttribute(ordinal, driver.binding.CUdeviceptr(memory.address)))
