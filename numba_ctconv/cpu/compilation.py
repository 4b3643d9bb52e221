"""How the CPU kernels are compiled, kept on disk and launched.

Kernel files take `kernel`, `helper` and `reduction` as decorators; microkernels keeps its tiles by `keep_on_disk` and
compiles under `compiling`. Each kernel has two forms made of one Python function: one whose prange is shared out among
Numba's threads, and a serial one whose prange is a range, for where threads would be no use or not safe.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import types
from numba.core import caching, serialize
from numba.core.compiler import CompileResult

from ..forks import compiling
from . import target

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

NO_RECORDS: Mapping[str, np.dtype[Any]] = MappingProxyType({})

PREFIX = "ctconv-"  # of the files on disk
UNUSED_AFTER = 7 * 24 * 3600.0  # seconds after which code of other sources that nobody loaded is removed

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

    def signature(self, dtype: np.dtype[Any]) -> Any:
        """The one signature for a dtype."""
        return signature_of(self.arguments, dtype)

    def compile(self, dtype: np.dtype[Any]) -> tuple[Any, Any]:
        """Both forms for a dtype, made together, so that a forked child has the serial one too."""
        with compiling:
            if dtype not in self.compiled:
                signature = self.signature(dtype)
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
        self.compiled: dict[np.dtype[Any], tuple[int, Any]] = {}  # addresses, and what owns the code
        self.__doc__ = function.__doc__

    def address(self, dtype: np.dtype[Any]) -> int:
        """Where the code for a dtype begins; call it by intrinsics.call_task."""
        if dtype not in self.compiled:
            with compiling:
                self.compiled[dtype] = self.compiled.get(dtype) or self._compile(dtype)
        return self.compiled[dtype][0]

    def _compile(self, dtype: np.dtype[Any]) -> tuple[int, Any]:
        function, signature = self.function, signature_of(self.arguments, dtype, self.records)
        compiled = helper(function)
        keep_on_disk(compiled, f"{function.__module__.rpartition('.')[2]}.{function.__name__}-task")
        compiled.compile(signature)
        (result,) = compiled.overloads.values()
        return int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name)), compiled


def signature_of(arguments: list[str], dtype: np.dtype[Any], records: Mapping[str, np.dtype[Any]] = NO_RECORDS) -> Any:
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


def keep_on_disk(compiled: Any, name: str) -> None:
    """Have Numba look for the code on disk before it compiles; `name` tells this code from all other."""
    file = compiled.__wrapped__.__code__.co_filename
    compiled._cache = DiskCache(name, file)  # noqa: SLF001  # Numba has no public way


def cache_folder() -> str | None:
    """Where compiled code is kept; None where no folder can be written."""
    return _folders(numba.config.CACHE_DIR)[0]


class DiskCache:
    """Compiled code on disk, as Numba's dispatchers ask for it, in place of Numba's own.

    A file's name holds everything that its code depends on: what it is, signature, processor, versions, and the sources
    of the whole engine, where Numba's own looks at the file of the kernel alone, not at the helpers in others. It is
    written under another name and moved, so two processes that fill a folder at once write the same file twice, and
    there is no index that they could spoil. A digest of the contents shows damage; what is damaged is made anew.
    """

    def __init__(self, name: str, file: str) -> None:
        self._name = name
        self._file = file

    @property
    def cache_path(self) -> str | None:
        """The folder, for Numba's statistics."""
        return cache_folder()

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """What Numba compiled for this signature before; None where it has to compile."""
        target_context.refresh()
        name = self._file_name(signature, target_context.codegen())
        for folder in _folders(numba.config.CACHE_DIR)[1]:
            payload = _read(pathlib.Path(folder, name))
            if payload is not None:
                try:
                    return CompileResult._rebuild(target_context, *pickle.loads(payload))  # noqa: S301, SLF001  # as Numba does
                except Exception:  # noqa: BLE001, S112  # whatever is wrong with it, compiling anew is right
                    continue
        if cache_folder() is None:  # said before the work, which a warning turned into an error would discard
            _say_that_nothing_is_kept("no folder for compiled code can be written")
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep what Numba compiled, if that can be done."""
        folder = cache_folder()
        if folder is None or compiled.library.has_dynamic_globals:
            return
        payload = serialize.dumps(compiled._reduce())  # noqa: SLF001  # as Numba does
        path = pathlib.Path(folder, self._file_name(signature, compiled.codegen))
        try:
            _write(path, payload)
            _remove_unused(folder, _sources(self._file))
        except OSError as reason:  # the disk is full, say
            if not path.exists():
                _say_that_nothing_is_kept(str(reason))

    def _file_name(self, signature: Any, codegen: Any) -> str:
        key = hashlib.sha256(repr((self._name, str(signature), codegen.magic_tuple())).encode()).hexdigest()[:16]
        return f"{PREFIX}{self._name}-{key}.{_versions()}.{_sources(self._file)}.nbc"

    def enable(self) -> None:
        """Part of Numba's interface; always on."""

    def disable(self) -> None:
        """Part of Numba's interface; always on."""

    def flush(self) -> None:
        """Part of Numba's interface; files of other sources are never read."""


@functools.cache
def _folders(given: str) -> tuple[str | None, tuple[str, ...]]:  # `given` is NUMBA_CACHE_DIR: Numba lets it be changed
    """Where compiled code is kept, and all folders where it is looked for.

    The first is Numba's choice. Code that was made with a container image is found, too, where the image is read-only.
    """
    if not _engine_files():  # packed into one executable, say: nothing tells when the sources change
        return None, ()
    try:
        kept = caching.CompileResultCacheImpl(kernel).locator.get_cache_path()
    except RuntimeError:  # no folder that can be written
        kept = None
    locator = caching.UserProvidedCacheLocator if given else caching.InTreeCacheLocator
    first = locator(kernel, __file__).get_cache_path()
    return kept, (first,) if kept in {None, first} else (first, kept)


@functools.cache
def _sources(file: str) -> str:
    """A digest of every file that writes code, and of the one that a function stands in where that is another."""
    digest = hashlib.sha256()
    for path in _engine_files():
        digest.update(path.read_bytes())
    if pathlib.Path(file).parent != pathlib.Path(__file__).parent:
        digest.update(pathlib.Path(file).read_bytes())
    return digest.hexdigest()[:16]


def _engine_files() -> list[pathlib.Path]:
    """Those of this engine, and the geometry: which taps meet in a phase is written into the code of depthwise rows."""
    engine = pathlib.Path(__file__).parent
    return [*sorted(engine.glob("*.py")), *engine.parent.glob("geometry.py")]


@functools.cache
def _versions() -> str:
    """What else the code depends on."""
    python = f"py{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
    return f"{python}-numba{numba.__version__}-llvmlite{llvmlite.__version__}"


def _read(path: pathlib.Path) -> bytes | None:
    """The contents of a file that is whole, and None of any other."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # in use, which a folder that can't be written won't note
        os.utime(path)
    digest, payload = content[:32], content[32:]
    return payload if hashlib.sha256(payload).digest() == digest else None


def _write(path: pathlib.Path, payload: bytes) -> None:
    """Write a file that is whole whenever another process looks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.write_bytes(hashlib.sha256(payload).digest() + payload)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@functools.cache
def _remove_unused(folder: str, sources: str) -> None:
    """Remove what nobody has loaded for long and other sources left behind; once a process."""
    for path in pathlib.Path(folder).glob(f"{PREFIX}*.nbc*"):
        if sources not in path.name and time.time() - path.stat().st_mtime > UNUSED_AFTER:
            path.unlink(missing_ok=True)


_said: list[str] = []


def _say_that_nothing_is_kept(reason: str) -> None:
    """Warn, once a process."""
    if _said:
        return
    _said.append(reason)  # before the warning, which may be turned into an error
    warnings.warn(
        f"numba_ctconv compiles in memory, anew in each process: {reason}. "
        "Set NUMBA_CACHE_DIR to a folder that can be written.",
        RuntimeWarning,
        stacklevel=2,
    )
