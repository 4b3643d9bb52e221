"""Kernels queued on a stream, past what Numba asks of every argument of every call.

Numba compiles and loads a kernel; from then on a launch is one call of the driver's, with the arguments as a row of
64-bit words: an array's form brings its own, and each integer is one. All but where the arrays lie is put together once
and kept for the latest launches. In the simulator Numba launches.
"""

import array
import contextlib
import ctypes
import functools
import threading
from typing import Any, NamedTuple

from numba import cuda

from . import captures
from .arrays import ADDRESS_WORD, VIEW, Form, type_of
from .launch import Configuration
from .queues import SIMULATED, DriverError, Queue, on_device, one_gpu

if not SIMULATED:
    from cuda.bindings import driver

MOST_WORDS = 128  # of the arguments of a kernel
WORD = 8  # bytes


class Prepared(NamedTuple):
    """A launch that lacks nothing but a stream and where its arrays lie."""

    kernel: Any
    arguments: tuple[Any, ...]  # as they were given, with forms for arrays
    function: Any  # the driver's, on a GPU
    blocks: int
    threads: int
    words: Any  # of the arguments; those of addresses are still to come
    word_count: int
    places: tuple[int, ...]  # of addresses among them


class _Words(threading.local):
    """Where a thread's arguments lie while the driver reads them, and the addresses of all words."""

    def __init__(self) -> None:
        memory = (ctypes.c_int64 * MOST_WORDS)()
        first = ctypes.addressof(memory)
        self._addresses = (ctypes.c_void_p * MOST_WORDS)(*range(first, first + MOST_WORDS * WORD, WORD))
        self.addresses = ctypes.addressof(self._addresses)
        self.memory = memoryview(memory).cast("B").cast("q")


_words = _Words()


def start(kernel: Any, configuration: Configuration, queue: Queue, *arguments: Any) -> None:
    """Queue a kernel, if there is anything for it to do."""
    forms = [argument.form if type(argument) is VIEW else argument for argument in arguments]
    given = [argument for argument in arguments if type(argument) is VIEW]
    run(prepare(kernel, configuration, queue.device, *forms), queue, *given)


@functools.lru_cache(maxsize=1024)
def prepare(kernel: Any, configuration: Configuration, device: int, *arguments: Any) -> Prepared:
    """A launch of a kernel, compiled and loaded on a GPU unless there is nothing for it to do.

    An argument is an integer, a tuple of integers or, of an array, its form.
    """
    blocks, threads = configuration
    words: list[int] = []
    places = []
    for argument in arguments:
        if type(argument) is Form:
            places.append(len(words) + ADDRESS_WORD)
            words += argument.words
        elif isinstance(argument, tuple):
            words += argument
        else:
            words.append(argument)
    loaded = SIMULATED or not blocks
    function = None if loaded else _load(kernel, device, *(_type_of(kernel, argument) for argument in arguments))
    together = memoryview(array.array("q", words))
    return Prepared(kernel, arguments, function, blocks, threads, together, len(words), tuple(places))


def run(prepared: Prepared, queue: Queue, *arrays: Any) -> None:
    """Queue a launch on arrays of the forms that it was prepared for, in their order."""
    if not prepared.blocks:
        return
    if SIMULATED:
        given = iter(arrays)
        arguments = [next(given) if type(argument) is Form else argument for argument in prepared.arguments]
        prepared.kernel[prepared.blocks, prepared.threads, 0](*arguments)
        return
    words = _words
    memory = words.memory
    memory[: prepared.word_count] = prepared.words
    for place, view in zip(prepared.places, arrays, strict=True):
        memory[place] = view.address
    if one_gpu() and _has_context():
        status = _queue(prepared, queue.stream, words.addresses)
    else:
        with _context(queue):
            status = _queue(prepared, queue.stream, words.addresses)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DriverError(int(status), driver.CUresult(status).name)


def _queue(prepared: Prepared, stream: int, addresses: int) -> Any:
    """What the driver answers."""
    return driver.cuLaunchKernel(
        prepared.function, prepared.blocks, 1, 1, prepared.threads, 1, 1, 0, stream, addresses, 0
    )[0]


def compile_for(kernel: Any, arguments: tuple[Any, ...], device: int) -> None:
    """Compile a kernel for arguments of these types, unless it is."""
    if SIMULATED:
        return
    types = tuple(_type_of(kernel, argument) for argument in arguments)
    if types not in kernel.overloads:
        with on_device(Queue(device, 0)), captures.allowed():
            kernel.compile(types)


def _has_context() -> bool:
    """Whether the thread has one, which then is that of the only GPU."""
    return bool(int(driver.cuCtxGetCurrent()[1]))


@contextlib.contextmanager
def _context(queue: Queue) -> Any:
    with on_device(queue):
        cuda.current_context()
        yield


@functools.cache
def _load(kernel: Any, device: int, *types: Any) -> Any:
    """Compile a kernel for arguments of these types, if it isn't, and load it on a GPU."""
    with _context(Queue(device, 0)), captures.allowed():
        return driver.CUfunction(int(kernel.compile(types).library.get_cufunc().handle))


def _type_of(kernel: Any, argument: Any) -> Any:
    """Numba's type."""
    if type(argument) is Form:
        return type_of(argument.dtype, len(argument.shape))
    return kernel.typeof_pyval(argument)
