"""Where problems run: host memory, or a GPU. Moves operands there and results back, for peers and verification.

The CUDA engine is imported when a GPU is asked for, never before; a simulated GPU does not count.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numba
import numpy as np

from .workloads import Operands

Device = Literal["cpu", "cuda"]


class Gpu(NamedTuple):
    """The current CUDA device."""

    name: str
    compute_capability: str
    driver: str


def find_gpu() -> Gpu | str:
    """The current CUDA device, or why there is none that can be used."""
    if numba.config.ENABLE_CUDASIM:
        return "the CUDA simulator is on"
    try:
        return Gpu(**_engine().describe())
    except ImportError as reason:
        return str(reason)
    except Exception as reason:  # noqa: BLE001  # whatever a missing or broken driver raises means: no GPU
        lines = (line.strip() for line in str(reason).splitlines())
        return next((line for line in lines if line and not line.endswith(":")), type(reason).__name__)


def to_device(array: Any, device: Device) -> Any:
    """The array in the memory of `device`; None stays None."""
    if array is None or device == "cpu":
        return array
    return _engine().upload(array)


def to_host(array: Any) -> Any:
    """The array as NumPy's; None stays None."""
    if array is None or isinstance(array, np.ndarray):
        return array
    return _engine().download(array)


def operands_on(operands: Operands, device: Device) -> Operands:
    """All operands in the memory of `device`."""
    return Operands(*(to_device(array, device) for array in operands))


def synchronizer(device: Device) -> Callable[[], None]:
    """What waits until all work queued on `device` is done."""
    if device == "cpu":
        return _nothing
    return _engine().synchronize  # type: ignore[no-any-return]  # the engine is imported by name


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


def _engine() -> Any:
    return importlib.import_module("..cuda", __package__).ENGINE


def _nothing() -> None:
    pass
