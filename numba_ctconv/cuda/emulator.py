"""The twins of ptx.py, ptx_elements.py and Numba's `cuda` in NumPy, which run a kernel of simt.py a block at a time.

A lane is an element of a vector: what differs from thread to thread is an array of one element a thread, tuples have a
second axis, and what all threads share is a plain integer. So the very code of a kernel runs here, index arithmetic
and all, and is held to what a GPU would let pass now and then: memory that nobody wrote is NaN; reading or writing what
another thread wrote or read since the last barrier is an error, and so is reading a copy that is not waited for, or
reaching beyond an array. Called where Numba simulates CUDA.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

NOBODY, SEVERAL = -1, -2


class RaceError(RuntimeError):
    """Threads of a block meet in shared memory without a barrier between them."""


class Shared:
    """A shared array that knows who touched each element since the last barrier."""

    def __init__(self, block: "Block", size: int, dtype: Any) -> None:
        self.block = block
        self.data = np.zeros(size, dtype)
        self.written = np.zeros(size, bool)
        self.pending = np.zeros(size, bool)  # copies on their way
        self.writer = np.full(size, NOBODY)
        self.reader = np.full(size, NOBODY)

    def barrier(self) -> None:
        """Everybody may read what was written, and write what was read."""
        self.writer[:] = NOBODY
        self.reader[:] = NOBODY

    def read(self, index: Any) -> Any:
        """Elements by lane, shape (threads, ...)."""
        lane = self._lanes(index)
        self._within(index)
        if self.pending[index].any():
            raise RaceError("a copy is read before it is waited for")
        if not self.written[index].all():
            raise RaceError("shared memory is read that nobody wrote")
        writer = self.writer[index]
        if ((writer != NOBODY) & (writer != lane)).any():
            raise RaceError("one thread reads what another wrote, without a barrier between")
        before = self.reader[index]
        self.reader[index] = lane
        others = (self.reader[index] != lane) | ((before != NOBODY) & (before != lane))
        self.reader[index[others]] = SEVERAL
        return self.data[index]

    def write(self, index: Any, value: Any, wanted: Any, *, arrives: bool = True) -> None:
        """Elements by lane, where they are wanted; a copy only begins."""
        lane = self._lanes(index)
        wanted = np.broadcast_to(wanted, index.shape)
        value = np.broadcast_to(value, index.shape)
        if not wanted.all():
            index, lane, value = index[wanted], lane[wanted], value[wanted]
        self._within(index)
        for other in (self.writer[index], self.reader[index]):
            if ((other != NOBODY) & (other != lane)).any():
                raise RaceError("one thread writes what another wrote or read, without a barrier between")
        if self.pending[index].any():
            raise RaceError("an element is written that a copy is on its way to")
        each = np.arange(index.size).reshape(index.shape)
        self.writer[index] = each
        if (self.writer[index] != each).any():
            raise RaceError("two threads write the same element")
        self.data[index] = value
        self.writer[index] = lane
        self.written[index] = True
        if not arrives:
            self.pending[index] = True
            self.block.copies[-1].append((self, index))

    def arrive(self, index: Any) -> None:
        """A copy is there."""
        self.pending[index] = False

    def _lanes(self, index: Any) -> Any:
        lanes = self.block.lanes
        return np.broadcast_to(lanes.reshape(-1, *[1] * (index.ndim - 1)), index.shape)

    def _within(self, index: Any) -> None:
        if index.size and (index.min() < 0 or index.max() >= self.data.size):
            raise IndexError(f"beyond a shared array of {self.data.size}: {index.min()} to {index.max()}")


class Block:
    """The block that is being run."""

    def __init__(self, threads: int, number: int) -> None:
        self.lanes = np.arange(threads)
        self.number = number
        self.shared: list[Shared] = []
        self.copies: list[list[tuple[Shared, Any]]] = [[]]  # by group, the last one open

    def sync(self) -> None:
        """A barrier."""
        for array in self.shared:
            array.barrier()


class _Axis:
    """threadIdx, blockIdx."""

    def __init__(self, of: Callable[[Block], Any]) -> None:
        self._of = of

    @property
    def x(self) -> Any:
        """The one axis that is used."""
        return self._of(cuda.block)


class _SharedMaker:
    """cuda.shared."""

    def array(self, size: int, dtype: Any, alignment: int = 0) -> Shared:  # noqa: ARG002  # Numba's name
        """A new array of the block."""
        made = Shared(cuda.block, size, dtype)
        cuda.block.shared.append(made)
        return made


class Cuda:
    """What the kernels use of numba.cuda."""

    block: Block
    threadIdx = _Axis(lambda block: block.lanes)  # noqa: N815  # Numba's names
    blockIdx = _Axis(lambda block: block.number)  # noqa: N815
    shared = _SharedMaker()

    def syncthreads(self) -> None:
        """A barrier."""
        self.block.sync()


cuda = Cuda()


class Kernel:
    """A kernel, launched as Numba's are: kernel[blocks, threads, stream](*arguments)."""

    def __init__(self, function: Callable[..., None], threads: int) -> None:
        self.function = function
        self.threads = threads

    def __getitem__(self, configuration: tuple[int, int, Any]) -> Callable[..., None]:
        blocks, threads, _ = configuration
        if threads != self.threads:
            raise RuntimeError(f"the kernel is made for {self.threads} threads, not {threads}")

        def launch(*arguments: Any) -> None:
            plain = [getattr(argument, "_ary", argument) for argument in arguments]
            for number in range(blocks):
                cuda.block = Block(threads, number)
                with np.errstate(all="ignore"):
                    self.function(*plain)
                if any(array.pending.any() for array in cuda.block.shared):
                    raise RaceError("a block ends while copies are on their way")

        return launch


# --- the twins of ptx.py ----------------------------------------------------------------------------------------------


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
    inside = (places + start >= 0) & (places + start < length)
    every = np.repeat(inside[:, None, :], column.shape[1], axis=1).reshape(sums.shape)
    return np.where(every, multiply_add(sums, column, row), sums)


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


def load_weight(array: Any, part: Any, i: Any, o: Any, k: Any, wanted: Any) -> Any:
    """As ptx.load_weight."""
    return _load(array, (part, i, o, k), wanted)


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


def store_weight(array: Any, part: Any, i: Any, o: Any, k: Any, value: Any, wanted: Any) -> None:
    """As ptx.store_weight."""
    _store(array, (part, i, o, k), value, wanted)


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
