"""Where problems run: host memory, or a GPU. Moves operands there and results back, for ours and for verification.

The CUDA engine is imported when a GPU is asked for, never before; a simulated GPU does not count.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numba
import numpy as np

from .formats import Format
from .graphs import Backend, flushed_bytes
from .timing import Call
from .workloads import Operands

Device = Literal["cpu", "cuda"]


class Gpu(NamedTuple):
    """The current CUDA device."""

    name: str
    compute_capability: str
    driver: str


class Memory(Protocol):
    """Where a contestant's arrays are, and of which library they are."""

    device: Device
    precision: str | None  # of this package's calls

    def put(self, array: Any) -> Any:
        """A host array there; None stays None."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array for a result, full of NaN, beside host arrays of that dtype."""

    def take(self, value: Any) -> Any:
        """A result as checking looks at it; None stays None."""


class Place(Memory, Protocol):
    """A memory, and the clocks of the calls on it."""

    keywords: dict[str, Any]  # of every call of this package: on which stream it is queued

    def call(self, run: Callable[[], Any], set_up: Callable[[], None]) -> Call:
        """The call to time."""


class Host:
    """Host memory, as it is, on the host's clock."""

    device: Device = "cpu"
    precision: str | None = None

    def __init__(self) -> None:
        self.keywords: dict[str, Any] = {}

    def put(self, array: Any) -> Any:
        """The array itself."""
        return array

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new array, every page of which has been written."""
        return np.full(shape, np.nan, np.dtype(dtype))

    def take(self, value: Any) -> Any:
        """The array itself."""
        return value

    def call(self, run: Callable[[], Any], set_up: Callable[[], None]) -> Call:
        """On the host's clock."""
        return Call(run, set_up=set_up)


class DeviceArrays:
    """Numba's arrays on the current GPU."""

    device: Device = "cuda"
    library = "numba"

    def __init__(self, kind: Format) -> None:
        self.precision: str | None = kind.precision
        self._host = kind.host
        self._engine = _cuda("").ENGINE
        self._dtype = np.dtype(kind.name)  # bfloat16 is NumPy's once ml_dtypes is imported, which numba.cuda does

    def put(self, array: Any) -> Any:
        """A copy, in the format."""
        return None if array is None else self._engine.upload(array.astype(self._dtype))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:  # noqa: ARG002  # the format says it
        """A new array of the format."""
        return self._engine.upload(np.full(shape, np.nan, self._dtype))

    def take(self, value: Any) -> Any:
        """A copy in host memory; of the format's host dtype, if it has the format."""
        if value is None:
            return None
        array = self._engine.download(value)
        return array.astype(self._host) if array.dtype == self._dtype else array


def find_gpu() -> Gpu | str:
    """The current CUDA device, or why there is none that can be used."""
    if numba.config.ENABLE_CUDASIM:
        return "the CUDA simulator is on"
    try:
        return Gpu(**_cuda("").ENGINE.describe())
    except ImportError as reason:
        return str(reason)
    except Exception as reason:  # noqa: BLE001  # whatever a missing or broken driver raises means: no GPU
        lines = (line.strip() for line in str(reason).splitlines())
        return next((line for line in lines if line and not line.endswith(":")), type(reason).__name__)


def memory_of(device: Device, kind: Format) -> Memory:
    """The memory of a device, for arrays of this package's own libraries."""
    return Host() if device == "cpu" else DeviceArrays(kind)


def host_has(kind: Format) -> bool:
    """Whether NumPy has the format, so that arrays of it can be made of NumPy's."""
    return kind.name != "bfloat16" or importlib.util.find_spec("ml_dtypes") is not None


def operands_in(memory: Memory, operands: Operands) -> Operands:
    """All operands in a memory."""
    return Operands(*(memory.put(array) for array in operands))


def graphs() -> Backend:
    """The GPU's stream, graphs and events that the benchmark times with."""
    backend: Backend = _cuda(".graphs").Graphs(flushed_bytes)
    return backend


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Numba's thread count set to `count`, or left alone; as it was afterwards."""
    before = numba.get_num_threads()
    try:
        if count is not None:
            numba.set_num_threads(count)
        yield numba.get_num_threads()
    finally:
        numba.set_num_threads(before)


def _cuda(module: str) -> Any:
    return importlib.import_module(f"..cuda{module}", __package__)
