"""How compiled code is kept on disk, in a file for each function and everything that its code depends on.

Asked by compilation and emitter, which compile; Numba calls a DiskCache in place of its own cache.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import sys
import time
import uuid
import warnings
from typing import Any

import llvmlite
import numba
from numba.core import caching, serialize
from numba.core.compiler import CompileResult

PREFIX = "ctconv-"  # of the files
UNUSED_AFTER = 7 * 24 * 3600.0  # seconds after which code of other sources that nobody loaded is removed


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
        kept = caching.CompileResultCacheImpl(keep_on_disk).locator.get_cache_path()
    except RuntimeError:  # no folder that can be written
        kept = None
    locator = caching.UserProvidedCacheLocator if given else caching.InTreeCacheLocator
    first = locator(keep_on_disk, __file__).get_cache_path()
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
