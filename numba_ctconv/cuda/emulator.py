"""The twins of ptx.py and ptx_elements.py in NumPy, for the kernels of simt.py, which run a block at a time.

emulator_block.py has the block, and says what a lane is. Called where Numba simulates CUDA.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .emulator_block import Kernel, RaceError, Shared, cuda

__all__ = ["Kernel", "RaceError", "Shared", "cuda"]


def zero_sums(kind: Any, count: int) -> Callable[[], Any]:
    """As ptx.zero_sums."""
    return lambda: np.zeros((len(cuda.block.lanes), count), kind)


def add(one: Any, other: Any) -> Any:
    """As ptx.add."""
    return one + other


def multiply_add(sums: Any, column: Any, row: Any) -> Any:
    """As ptx.multiply_add; a float32 product is exact in float64."""
    wide = column.astype(np.float64)[:, :, None] * row.astype(np.float64)[:, None, :]
    return (sums + wide.reshape(sums.shape)).astype(sums.dtype)


def multiply_add_inside(sums: Any, column: Any, row: Any, places: Any, start: Any, length: Any) -> Any:
    """As ptx.multiply_add_inside."""
    inside = (places + start >= 0) & (places + start < np.expand_dims(length, -1))
    every = np.repeat(inside[:, None, :], column.shape[1], axis=1).reshape(sums.shape)
    return np.where(every, multiply_add(sums, column, row), sums)


def correlate(sums: Any, terms: Any, window: Any) -> Any:
    """As ptx.correlate."""
    for j in range(terms.shape[1]):
        sums = multiply_add(sums, terms[:, j : j + 1], window[:, j : j + sums.shape[1]][:, ::-1])
    return sums


def multiply_add_where(total: Any, a: Any, b: Any, wanted: Any) -> Any:
    """As ptx.multiply_add_where."""
    return np.where(wanted, (total + np.float64(1) * a * b).astype(total.dtype), total)


def load_run(count: int) -> Callable[[Shared, Any], Any]:
    """As ptx.load_run."""

    def load(array: Shared, index: Any) -> Any:
        lanes = min(count, 16 // array.data.itemsize)
        if np.any(index % lanes):
            raise IndexError("a vector is loaded from where it is not aligned")
        return array.read(index[:, None] + np.arange(count))

    return load


def load_steps(steps: tuple[int, ...]) -> Callable[[Shared, Any], Any]:
    """As ptx.load_steps."""
    return lambda array, index: array.read(index[:, None] + np.array(steps))


def spaced(count: int) -> Callable[[Any, Any], Any]:
    """As ptx.spaced."""
    return lambda index, space: np.broadcast_to(index, cuda.block.lanes.shape)[:, None] + np.arange(count) * space


def load_spaced(count: int) -> Callable[[Shared, Any, Any], Any]:
    """As ptx.load_spaced."""
    return lambda array, index, space: array.read(spaced(count)(index, space))


def load_shared(array: Shared, index: Any) -> Any:
    """As ptx.load_shared."""
    return array.read(np.broadcast_to(index, cuda.block.lanes.shape))


def store_tile(
    row_steps: tuple[int, ...], column_steps: tuple[int, ...], pitch: int
) -> Callable[[Shared, Any, Any], None]:
    """As ptx.store_tile."""
    offsets = (np.array(row_steps)[:, None] * pitch + np.array(column_steps)).ravel()
    return lambda array, index, sums: array.write(index[:, None] + offsets, sums, True)


def copy_sample(shared: Shared, index: Any, array: Any, n: Any, c: Any, l: Any, wanted: Any, inside: Any) -> None:
    """As ptx.copy_sample."""
    if array.itemsize < 4:
        raise RuntimeError("no copy of so few bytes is asynchronous")
    shared.write(index, load_sample(array, n, c, l, wanted & inside), wanted, arrives=False)


def copy_vector(shared: Shared, index: Any, array: Any, position: Any, wanted: Any) -> None:
    """As ptx.copy_vector."""
    lanes = np.arange(16 // array.itemsize)
    if np.any(index % lanes.size) or np.any(position % lanes.size):
        raise IndexError("a vector is copied from or to where it is not aligned")
    wanted = np.broadcast_to(wanted, index.shape)
    source = np.where(wanted, position, 0)[:, None] + lanes
    shared.write(index[:, None] + lanes, array[source], wanted[:, None], arrives=False)


def commit() -> None:
    """As ptx.commit."""
    cuda.block.copies.append([])


def wait(groups: int) -> Callable[[], None]:
    """As ptx.wait."""

    def waiting() -> None:
        copies = cuda.block.copies
        while len(copies) > groups + 1:
            for array, index in copies.pop(0):
                array.arrive(index)

    return waiting


def any_of_block(truth: Any) -> bool:
    """As ptx.any_of_block."""
    cuda.syncthreads()
    return bool(np.any(truth))


def load_element(array: Any, index: Any, wanted: Any) -> Any:
    """As ptx.load_element."""
    return _load(array, (index,), wanted)


def load_sample(array: Any, n: Any, c: Any, l: Any, wanted: Any) -> Any:
    """As ptx.load_sample."""
    return _load(array, (n, c, l), wanted)


def load_row(count: int, checked: bool) -> Callable[..., Any]:
    """As ptx_elements.load_row."""

    def load(array: Any, n: Any, c: Any, l: Any, space: Any) -> Any:
        places = spaced(count)(l, space)
        inside = (places >= 0) & (places < array.shape[2])
        if not checked and not inside.all():
            raise IndexError("a row is read beyond its ends")
        return np.stack(
            [load_sample(array, n, c, p * i, True) for p, i in zip(places.T, inside.T, strict=True)], axis=1
        )

    return load


def load_weight(array: Any, part: Any, i: Any, o: Any, k: Any, wanted: Any) -> Any:
    """As ptx.load_weight."""
    return _load(array, (part, i, o, k), wanted)


def load_parts(count: int) -> Callable[..., Any]:
    """As ptx.load_parts."""

    def load(array: Any, part: Any, i: Any, o: Any, k: Any, wanted: Any) -> Any:
        inside = [wanted & (part + j < array.shape[0]) for j in range(count)]
        return np.stack([load_weight(array, part + j, i, o, k, own) for j, own in enumerate(inside)], axis=1)

    return load


def add_up(total: Any, values: Any) -> Any:
    """As ptx.add_up."""
    for j in range(values.shape[1]):
        total = total + values[:, j]
    return total


def _load(array: Any, indices: tuple[Any, ...], wanted: Any) -> Any:
    shape = cuda.block.lanes.shape
    wanted = np.broadcast_to(wanted, shape)
    if isinstance(array, Shared):
        values = np.zeros(shape, array.data.dtype)
        values[wanted] = _part(array, wanted).read(np.broadcast_to(indices[0], shape)[wanted])
        return values
    places = _places(array, indices, wanted)
    values = np.zeros(shape, np.float32 if array.dtype.itemsize == 2 else array.dtype)
    values[wanted] = array[places]
    return values


def store_element(array: Any, index: Any, value: Any, wanted: Any) -> None:
    """As ptx.store_element."""
    if isinstance(array, Shared):
        array.write(np.broadcast_to(index, cuda.block.lanes.shape), value, wanted)
    else:
        _store(array, (index,), value, wanted)


def store_sample(array: Any, n: Any, c: Any, l: Any, value: Any, wanted: Any) -> None:
    """As ptx.store_sample."""
    _store(array, (n, c, l), value, wanted)


def store_spaced(count: int) -> Callable[..., None]:
    """As ptx.store_spaced."""

    def store(array: Any, n: Any, c: Any, l: Any, space: Any, sums: Any, added: Any, wanted: Any) -> None:
        for j in range(count):
            at = l + j * space
            store_sample(array, n, c, at, sums[:, j] + added, wanted & (at < array.shape[2]))

    return store


def store_weight(array: Any, part: Any, i: Any, o: Any, k: Any, value: Any, wanted: Any) -> None:
    """As ptx.store_weight."""
    _store(array, (part, i, o, k), value, wanted)


def store_part(row_steps: tuple[int, ...], column_steps: tuple[int, ...]) -> Callable[..., None]:
    """As ptx.store_part."""

    def store(
        array: Any, part: Any, row: Any, rows: Any, items: Shared, places: Shared, first: Any, column: Any, sums: Any
    ) -> None:
        steps = [(r, c) for r in row_steps for c in column_steps]
        for value, (r, c) in zip(sums.T, steps, strict=True):
            item, place = items.read(column + c), places.read(column + c) - first
            _store(array, (part, row + r, item, place), value, (r < rows) & (item >= 0))

    return store


def _store(array: Any, indices: tuple[Any, ...], value: Any, wanted: Any) -> None:
    shape = cuda.block.lanes.shape
    wanted = np.broadcast_to(wanted, shape)
    places = _places(array, indices, wanted)
    if len(np.unique(np.stack(places), axis=1).T) != wanted.sum():
        raise RaceError("two threads write the same element of an array")
    array[places] = np.broadcast_to(value, shape)[wanted]


def _places(array: Any, indices: tuple[Any, ...], wanted: Any) -> tuple[Any, ...]:
    """The indices of the lanes that want an element, all within the array."""
    places = tuple(np.broadcast_to(index, wanted.shape)[wanted] for index in indices)
    for place, size in zip(places, array.shape, strict=True):
        if place.size and (place.min() < 0 or place.max() >= size):
            raise IndexError(f"beyond an array of shape {array.shape}")
    return places


class _Part(Shared):
    """Some of the lanes of a block at a shared array."""

    def __init__(self, whole: Shared, wanted: Any) -> None:
        self.__dict__ = whole.__dict__ | {}
        self._wanted = wanted

    def _lanes(self, index: Any) -> Any:  # noqa: ARG002  # of as many elements as lanes want one
        return self.block.lanes[self._wanted]


def _part(array: Shared, wanted: Any) -> Shared:
    return _Part(array, wanted)
