"""NumPy or device array? Picks the engine for the arrays of a call. Imports no framework, and an engine when needed."""

import functools
import sys
from collections.abc import Collection
from typing import Any, Protocol

import numpy as np

from . import checks
from .checks import Algorithm, Precision
from .forks import compiling
from .geometry import Geometry

CUDA = f"{__package__}.cuda"
PLAIN = (np.ndarray, type(None))
DLPACK_CUDA = (2, 13)  # memory of a GPU, and memory that host and GPU share


class Engine(Protocol):
    """What functional asks of an engine: arrays in and out, and the three operations (bias apart) on batched arrays.

    A *value* is what the caller passed, an *array* the engine's own view of it, with NumPy's shape, strides and dtype.
    `stream` is what `launch_stream` returned: None on the CPU. `kept` is a dict in which the engine may keep what it
    makes of the weight; a layer gives the same one until its weight changes, a function None. `precision` "tf32" allows
    an operation to round float32 factors, and obliges it to nothing. An operation overwrites its last arguments.
    """

    algorithms: tuple[Algorithm, ...]
    precisions: tuple[Precision, ...]
    dtypes: tuple[np.dtype[Any], ...]

    def __hash__(self) -> int:
        """Of an engine, of which there is one."""

    def operands(self, values: dict[str, Any]) -> dict[str, Any]:
        """Views of all arrays of a call, of dtypes that the kernels take, on one device; None stays None."""

    def described(self, array: Any) -> Any:
        """What arrays of one dtype, shape and strides have in common: hashable, with all three."""

    def batched(self, array: Any) -> Any:
        """A view with a leading dimension of one."""

    def writeable(self, array: Any) -> bool:
        """Whether the array may be written."""

    def overlapped(self, array: Any, others: dict[str, Any]) -> str | None:
        """The first of `others`, some of which may be None, that shares memory with the array."""

    def launch_stream(self, stream: Any, arrays: dict[str, Any]) -> Any:
        """Where the work of a call is queued: `stream`, or that of the first of `arrays`; it waits for the others'."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: Any, stream: Any) -> Any:
        """A new value from the library that `like` comes from."""

    def forward(
        self,
        input: Any,
        weight: Any,
        bias: Any,
        geometry: Geometry,
        groups: int,
        algorithm: Algorithm,
        precision: Precision,
        stream: Any,
        kept: dict[Any, Any] | None,
        output: Any,
    ) -> None:
        """Overwrite output (N, C_out, L_out) from input (N, C_in, L_in), weight and bias (C_out) or None."""

    def grad_input(
        self,
        grad_output: Any,
        weight: Any,
        geometry: Geometry,
        groups: int,
        algorithm: Algorithm,
        precision: Precision,
        stream: Any,
        kept: dict[Any, Any] | None,
        grad_input: Any,
    ) -> None:
        """Overwrite grad_input (N, C_in, L_in) from grad_output (N, C_out, L_out) and weight."""

    def grad_weight(
        self,
        grad_output: Any,
        input: Any,
        geometry: Geometry,
        groups: int,
        algorithm: Algorithm,
        precision: Precision,
        stream: Any,
        grad_weight: Any,
        grad_bias: Any | None,
    ) -> None:
        """Overwrite grad_weight (C_in, C_out/groups, K), and grad_bias (C_out) or None, from grad_output and input."""

    def grad_bias(self, grad_output: Any, algorithm: Algorithm, stream: Any, grad_bias: Any) -> None:
        """Overwrite grad_bias (C_out) from grad_output alone, with the bits that grad_weight gives it."""

    def upload(self, array: Any) -> Any:
        """A copy of a host array where this engine computes."""

    def download(self, array: Any) -> Any:
        """A copy of an array of this engine in host memory."""

    def copy(self, array: Any) -> Any:
        """A contiguous copy of an array of this engine."""


def engine_of(values: dict[str, Any], optional: Collection[str] = ()) -> Engine:
    """The engine of the memory that all values live in; of those that are optional, None is passed over."""
    host = device = None
    for name, value in values.items():
        kind: Any = type(value)
        if value is None and name in optional:
            continue
        if isinstance(value, np.ndarray):
            host = host or name
        elif _of_a_device(kind) or _on_device(value, name):
            device = device or name
        else:
            checks.not_an_array(name, value)
    if host and device:
        checks.mixed_memory(host, device)
    return cuda_engine(device) if device else cpu_engine()


def are_plain(one: Any, other: Any, third: Any, fourth: Any) -> bool:
    """Whether all are NumPy's own arrays, no subclass's; the last two may be None."""
    return type(one) is type(other) is np.ndarray and type(third) in PLAIN and type(fourth) in PLAIN


@functools.cache
def cpu_engine() -> Engine:
    """The CPU engine, imported at its first use, which defines its kernels."""
    with compiling:
        from . import cpu  # noqa: PLC0415  # takes longer to import than all the rest
    return cpu.ENGINE


def cuda_engine(name: str) -> Engine:
    """The CUDA engine, imported at its first use, which the argument `name` asks for."""
    engine: Engine | None = getattr(sys.modules.get(CUDA), "ENGINE", None)  # the import statement takes longer
    if engine is not None:
        return engine
    try:
        from . import cuda  # noqa: PLC0415  # numba.cuda takes long to import and may be missing
    except ImportError as reason:
        checks.no_cuda(name, reason)
    return cuda.ENGINE


@functools.lru_cache(maxsize=64)
def _of_a_device(kind: Any) -> bool:
    """Whether all arrays of a type are in CUDA's memory: Numba's own by their mark, and CuPy's, slow to describe."""
    cupy = getattr(sys.modules.get("cupy"), "ndarray", None)
    return hasattr(kind, "__cuda_ndarray__") or (cupy is not None and issubclass(kind, cupy))


def _on_device(value: Any, name: str) -> bool:
    """Whether it is an array in CUDA's memory: torch's, Numba's own, or one with either protocol."""
    if getattr(value, "is_cuda", False):  # torch, whose interface takes long to ask for
        if value.requires_grad:
            checks.requires_grad(name)
        return True
    try:
        # Numba's arrays by their own mark: in its simulator they have no interface
        if hasattr(value, "__cuda_ndarray__") or hasattr(value, "__cuda_array_interface__"):
            return True
    except RuntimeError:  # what torch's interface says for a tensor that requires grad
        checks.requires_grad(name)
    where = getattr(value, "__dlpack_device__", None)
    return where is not None and hasattr(value, "__dlpack__") and where()[0] in DLPACK_CUDA
