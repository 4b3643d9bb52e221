"""How the CPU kernels are compiled and launched.

Kernel files take `kernel`, `task`, `helper`, `part` and `reduction` as decorators; disk.py keeps what they compile.
Each kernel has two forms made of one Python function: one whose prange is shared out among Numba's threads, and a
serial one whose prange is a range, for where threads would be no use or not safe.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from ..forks import compiling
from . import target
from .disk import keep_on_disk

# Contraction lets a product and a sum become one FMA; nothing else is relaxed, so order, NaN and Inf hold.
EXACT = {"contract"}
# A reduction over contiguous memory may also be split into one partial sum a vector lane.
REDUCTION = {"contract", "reassoc"}
# What compiled code alone calls does without the wrappers for Python and C, which would take longer than it itself.
INNER = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
# Only prange is shared out. An array expression as a parallel region of its own would cost a third of the compile time.
PRANGE = dict.fromkeys(
    ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False
) | {"prange": True}

# Held by the Python thread that is inside Numba's "workqueue", which aborts the process when a second one enters. A
# child that is forked meanwhile keeps it held, and so never enters.
_workqueue = threading.Lock()


def helper(function: Callable[..., Any]) -> Any:
    """A serial function that kernels of the same file call; compiled into them."""
    return numba.njit(**INNER, fastmath=EXACT)(function)


def part(function: Callable[..., Any]) -> Any:
    """A helper that is short beside the passing of its arguments: its code is put where it is called."""
    return numba.njit(**INNER, fastmath=EXACT, forceinline=True)(function)


def reduction(function: Callable[..., Any]) -> Any:
    """A helper that sums over contiguous memory."""
    return numba.njit(**INNER, fastmath=REDUCTION)(function)


def kernel(arguments: str, *, nogil: bool = True) -> Callable[[Callable[..., Any]], "Kernel"]:
    """Decorate a kernel with what it takes, a letter and a digit each: see :class:`Kernel`."""
    return lambda function: Kernel(function, arguments.split(), nogil=nogil)


class Kernel:
    """A function compiled once for each dtype, on its first call, in both forms, for arrays of any strides.

    `arguments` has a word an argument: "i" an integer; "r3" a three-dimensional array that is read, with any strides,
    read-only or not, aligned or not; "w3" one that is written, with any strides; "c3" contiguous scratch memory, "n1"
    of integers that are read and "o1" of integers that are written. So a new layout of a caller's array costs no
    compilation. The last argument is an array and tells the dtype. An argument `workers` is the number of tasks that
    the prange shares out; their order never matters. The code is kept on disk, or in memory where no folder for it can
    be written. The GIL is released, but for a kernel that sees to it itself: `nogil` False.
    """

    def __init__(self, function: Callable[..., Any], arguments: list[str], *, nogil: bool = True) -> None:
        self.function = function
        self.nogil = nogil
        self.dispatchers: list[Any] = []  # Numba's, which own the compiled code
        self.arguments = arguments
        self.compiled: dict[np.dtype[Any], tuple[Any, Any]] = {}  # the serial and the parallel form
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        self._workers = names.index("workers") if "workers" in names else None
        self.__doc__ = function.__doc__

    def __call__(self, *values: Any) -> None:
        """Run with Numba's number of threads for the calling thread, or serially where one worker has all the work.

        Also serially where Numba's threads can't be used: in a forked child, and while another Python thread is inside
        "workqueue". It never waits.
        """
        dtype = values[-1].dtype
        serial, parallel = self.compiled.get(dtype) or self.compile(dtype)
        if (self._workers is not None and values[self._workers] == 1) or target.threads() == 1:
            serial(*values)
        elif numba.threading_layer() != "workqueue":
            parallel(*values)
        elif _workqueue.acquire(blocking=False):
            try:
                parallel(*values)
            finally:
                _workqueue.release()
        else:
            serial(*values)

    def compile(self, dtype: np.dtype[Any]) -> tuple[Any, Any]:
        """Both forms for a dtype, made together, so that a forked child has the serial one too."""
        with compiling:
            if dtype not in self.compiled:
                signature = signature_of(self.arguments, dtype, {})
                serial = self._form("serial", signature, parallel=False)
                self.compiled[dtype] = serial, self._form("parallel", signature, parallel=PRANGE)
            return self.compiled[dtype]

    def _form(self, form: str, signature: Any, parallel: Any) -> Any:
        function = self.function
        compiled = numba.njit(
            parallel=parallel, nogil=self.nogil, error_model="numpy", fastmath=EXACT, no_cfunc_wrapper=True
        )(function)
        keep_on_disk(compiled, f"{function.__module__.rpartition('.')[2]}.{function.__name__}-{form}")
        self.dispatchers.append(compiled)
        # What a dispatcher calls once it has told the types of its arguments, which takes as long as a tiny layer: here
        # they are always those of the signature.
        return compiled.compile(signature)


class Compiled(NamedTuple):
    """What is called by its address, and what owns the code."""

    address: int
    owner: Any


def compiled(function: Any, signature: Any, name: str) -> Compiled:
    """Compile a function of Numba's, and keep it on disk under its name; call it by intrinsics.call_task.

    A wrapper for C would take a tenth of the time of a short tile.
    """
    keep_on_disk(function, name)
    function.compile(signature)
    (result,) = function.overloads.values()
    return Compiled(int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name)), function)


def task(arguments: str, **records: np.dtype[Any]) -> Callable[[Callable[..., Any]], "Task"]:
    """Decorate what kernels call by its address with what it takes, as a kernel is; or records by their names."""
    return lambda function: Task(function, arguments.split(), records)


class Task:
    """A function that kernels, and other tasks, call by its address, compiled once for each dtype.

    What stands in a kernel is compiled into both of its forms, and thrice into the parallel one; and a helper is
    optimised anew with every helper that calls it, those that call that, and so on.
    """

    def __init__(self, function: Callable[..., Any], arguments: list[str], records: dict[str, np.dtype[Any]]) -> None:
        self.function = function
        self.arguments = arguments
        self.records = records
        self.compiled: dict[np.dtype[Any], Compiled] = {}
        self.__doc__ = function.__doc__

    def address(self, dtype: np.dtype[Any]) -> int:
        """Where the code for a dtype begins; call it by intrinsics.call_task."""
        if dtype not in self.compiled:
            with compiling:
                self.compiled[dtype] = self.compiled.get(dtype) or self._compile(dtype)
        return self.compiled[dtype].address

    def _compile(self, dtype: np.dtype[Any]) -> Compiled:
        function, signature = self.function, signature_of(self.arguments, dtype, self.records)
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}-task"
        return compiled(helper(function), signature, name)


def signature_of(arguments: list[str], dtype: np.dtype[Any], records: dict[str, np.dtype[Any]]) -> Any:
    """The signature of such arguments for a dtype; nothing is returned."""
    element = numba.from_dtype(dtype)
    layouts = {
        "r": lambda dimensions: types.Array(element, dimensions, "A", readonly=True, aligned=False),
        "w": lambda dimensions: types.Array(element, dimensions, "A", aligned=False),
        "c": lambda dimensions: types.Array(element, dimensions, "C"),
        "n": lambda dimensions: types.Array(types.int64, dimensions, "C", readonly=True),
        "o": lambda dimensions: types.Array(types.int64, dimensions, "C"),
    }

    def kind(argument: str) -> Any:
        if argument in records:
            return numba.from_dtype(records[argument])
        return types.int64 if argument == "i" else layouts[argument[0]](int(argument[1]))

    return types.void(*map(kind, arguments))
