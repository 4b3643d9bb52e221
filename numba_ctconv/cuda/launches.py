"""Kernels queued on a stream, past what Numba asks of every argument of every call.

Numba compiles and loads a kernel; from then on a launch is one call of the driver's, with the arguments as a row of
64-bit words: a view brings its own, and each integer is one. In the simulator Numba launches.
"""

import contextlib
import ctypes
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda

from . import captures
from .arrays import View
from .launch import Configuration
from .queues import SIMULATED, DriverError, Queue, on_device, one_gpu

if not SIMULATED:
    from cuda.bindings import driver

MOST_WORDS = 128  # of the arguments of a kernel
WORD = 8  # bytes


class _Loaded(NamedTuple):
    """A kernel on a GPU."""

    function: Any  # the driver's
    pack: Callable[..., None]  # words into memory
    kernel: Any  # kept, so that no other gets its identity


class _Words(threading.local):
    """Where a thread's arguments lie while the driver reads them, and the addresses of all words."""

    def __init__(self) -> None:
        self.memory = (ctypes.c_int64 * MOST_WORDS)()
        first = ctypes.addressof(self.memory)
        self._addresses = (ctypes.c_void_p * MOST_WORDS)(*range(first, first + MOST_WORDS * WORD, WORD))
        self.addresses = ctypes.addressof(self._addresses)


_words = _Words()
_loaded: dict[Any, _Loaded] = {}


def start(kernel: Any, configuration: Configuration, queue: Queue, *arguments: Any) -> None:
    """Queue a kernel, if there is anything for it to do."""
    if not configuration.blocks:
        return
    if SIMULATED:
        kernel[configuration.blocks, configuration.threads, 0](*arguments)
        return
    words: list[int] = []
    kinds = [id(kernel), queue.device]
    for argument in arguments:
        if type(argument) is View:
            words += argument.words
            kinds.append(id(argument.kind))
        elif isinstance(argument, tuple):
            words += argument
            kinds.append(id(type(argument)))
        else:
            words.append(argument)
            kinds.append(0)
    key = tuple(kinds)
    with contextlib.nullcontext() if one_gpu() and _has_context() else _context(queue):
        loaded = _loaded.get(key) or _load(kernel, key, arguments, len(words))
        loaded.pack(_words.memory, 0, *words)
        (status,) = driver.cuLaunchKernel(
            loaded.function, configuration.blocks, 1, 1, configuration.threads, 1, 1, 0, queue.stream,
            _words.addresses, 0,
        )  # fmt: skip
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DriverError(int(status), driver.CUresult(status).name)


def compile_for(kernel: Any, arguments: tuple[Any, ...], queue: Queue) -> None:
    """Compile a kernel for arguments of these types, unless it is."""
    if not SIMULATED and not kernel.overloads:
        with on_device(queue), captures.allowed():
            kernel.compile(tuple(_type_of(kernel, argument) for argument in arguments))


def _has_context() -> bool:
    """Whether the thread has one, which then is that of the only GPU."""
    return bool(int(driver.cuCtxGetCurrent()[1]))


@contextlib.contextmanager
def _context(queue: Queue) -> Any:
    with on_device(queue):
        cuda.current_context()
        yield


def _load(kernel: Any, key: tuple[int, ...], arguments: tuple[Any, ...], words: int) -> _Loaded:
    """Compile a kernel for arguments of these types, if it isn't, and load it on the current GPU."""
    with captures.allowed():
        compiled = kernel.compile(tuple(_type_of(kernel, argument) for argument in arguments))
        function = driver.CUfunction(int(compiled.library.get_cufunc().handle))
    loaded = _Loaded(function, struct.Struct(f"{words}q").pack_into, kernel)
    return _loaded.setdefault(key, loaded)


def _type_of(kernel: Any, argument: Any) -> Any:
    """Numba's type."""
    return argument.kind.type if type(argument) is View else kernel.typeof_pyval(argument)
