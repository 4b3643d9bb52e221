"""A block of threads in NumPy, its shared memory and barriers, and Numba's `cuda` for it. Called by emulator.py.

A lane is an element of a vector: what differs from thread to thread is an array of one element a thread, tuples have a
second axis, and what all threads share is a plain integer. So the very code of a kernel runs here, index arithmetic
and all, and is held to what a GPU would let pass now and then: memory that nobody wrote is NaN; reading or writing what
another thread wrote or read since the last barrier is an error, and so is reading a copy that is not waited for, or
reaching beyond an array.
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
