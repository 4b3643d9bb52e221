"""What the functions of depthwise rows are made of: their ends, where lanes may lie outside, and parted rows."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numba.core import cgutils

from ..geometry import Plan
from . import target
from .emitter import I64, Emitter, Loop

AHEAD = 4096  # bytes: time enough for memory, and a fraction of what the first-level cache holds
STEPS_TOGETHER = 8  # near the ends of a row


def vectors_ahead(layer: Plan, lanes: int) -> int:
    """Vectors of a plane that stay in registers from step to step; 0 where each step loads all that its taps meet."""
    shifts = {layer.shift(k) for k in range(layer.kernel_size)}
    vectors = -(-max(shifts) // lanes)
    return vectors if len(shifts) > 2 and vectors * layer.stride <= target.vector_registers() // 4 else 0


def load(emit: Emitter, row: Any, first: Any, kept: Any) -> Any:
    """A vector of a row's samples from one on; zero in the lanes that are not kept, where not all are."""
    address = emit.element_at(row, first)
    return emit.load(address) if kept is None else emit.load_some(address, kept)


def store(emit: Emitter, value: Any, row: Any, first: Any, kept: Any) -> None:
    """Store a vector of a row's samples from one on: the lanes that are kept, where not all are."""
    address = emit.element_at(row, first)
    if kept is None:
        emit.store(value, address)
    else:
        emit.store_some(value, address, kept)


def prefetch(emit: Emitter, row: Any, firsts: Sequence[Any], *, write: bool) -> None:
    """Ask for what follows vectors of a row some way behind: in it, or in the next, which often lies there."""
    for first in firsts:
        emit.prefetch(emit.builder.add(emit.element_at(row, first), I64(AHEAD)), write=write)


class Ends:
    """The positions that are not in [begin, end), which is a whole number of vectors.

    What comes before it is rounded up to whole vectors, so that some positions may be computed twice. Which lanes of a
    step there lie inside the arrays is the same for all rows: it is found out once, for a few steps at a time, of which
    there are seldom more.
    """

    def __init__(self, emit: Emitter, begin: Any, end: Any, positions: Any, masks: int) -> None:
        self._emit = emit
        self._masks = masks  # of the vectors that a step loads and stores
        room = cgutils.alloca_once(emit.builder, I64, STEPS_TOGETHER * masks)
        self._table = emit.builder.ptrtoint(room, I64)
        self._head = emit.builder.and_(emit.builder.add(begin, I64(emit.lanes - 1)), I64(-emit.lanes))  # a power of two
        self._inside = emit.builder.sub(end, begin)
        self._between = emit.builder.sub(end, self._head)
        self._positions = emit.builder.sub(positions, self._between)

    @contextlib.contextmanager
    def passes(self, kept_at: Callable[[Any], list[Any]]) -> Iterator[Any]:
        """A loop over passes through the rows, which gives the number of positions from `begin` on that are its own."""
        emit, builder = self._emit, self._emit.builder
        most = I64(STEPS_TOGETHER * emit.lanes)
        once = builder.icmp_signed("<", self._positions, I64(1))
        with emit.loop(builder.select(once, I64(1), self._positions), most) as own:
            self._first = own.index
            self._count = builder.sub(builder.select(once, I64(0), own.end), own.index)
            with emit.loop(self._count, I64(emit.lanes)) as loop:
                for k, lanes in enumerate(kept_at(self._position(loop.index))):
                    emit.store_index(emit.pack_lanes(lanes), self._table, self._place(loop.index, k))
            yield builder.select(builder.icmp_signed("==", own.index, I64(0)), self._inside, I64(0))

    @contextlib.contextmanager
    def steps(self, carried: Sequence[Any] = ()) -> Iterator[tuple[Loop, Any, list[Any]]]:
        """A loop over the steps of a pass at one row: its position, and the lanes that are kept of each vector."""
        emit = self._emit
        with emit.loop(self._count, I64(emit.lanes), carried) as loop:
            places = [self._place(loop.index, k) for k in range(self._masks)]
            kept = [emit.unpack_lanes(emit.index_at(self._table, place)) for place in places]
            yield loop, self._position(loop.index), kept

    def _position(self, index: Any) -> Any:
        builder = self._emit.builder
        position = builder.add(self._first, index)
        before = builder.icmp_signed("<", position, self._head)
        return builder.select(before, position, builder.add(position, self._between))

    def _place(self, index: Any, k: int) -> Any:
        builder = self._emit.builder
        return builder.add(builder.mul(builder.udiv(index, I64(self._emit.lanes)), I64(self._masks)), I64(k))


class Planes:
    """The output gradients that each tap brings to a vector of input samples: rows of them, parted into phases."""

    def __init__(self, emit: Emitter, layer: Plan, first: Any) -> None:
        self.emit = emit
        self.layer = layer
        self.first = first
        self.shifts = sorted({layer.shift(k) for k in range(layer.kernel_size)})
        self.loads = len(self.shifts) * layer.stride  # of a step near an end

    def kept_at(self, t: Any, length: Any) -> list[Any]:
        """The lanes that lie inside a row, of all vectors that a step near an end loads."""
        return [self.emit.lanes_within(first, length) for shift in self.shifts for first in self._firsts(t, shift)]

    def near_an_end(self, row: Any, t: Any, kept: Sequence[Any]) -> Callable[[int], Any]:
        """What tap k brings to the samples from t on, where only lanes that are kept lie inside."""
        stride = self.layer.stride
        own = {shift: kept[j * stride : (j + 1) * stride] for j, shift in enumerate(self.shifts)}
        return self._each_shift(lambda shift: self._at(row, t, shift, own[shift]))

    @contextlib.contextmanager
    def inside(
        self, row: Any, begin: Any, count: Any, carried: Sequence[Any]
    ) -> Iterator[tuple[Any, Any, Callable[[int], Any]]]:
        """A loop over so many positions far from the ends, and what tap k brings to a step of it.

        Where taps reach far, a step loads and parts only what no step before it did, and finds the rest in registers.
        """
        emit, builder = self.emit, self.emit.builder
        vectors, stride = vectors_ahead(self.layer, emit.lanes), self.layer.stride
        some = emit.constant_lanes([True] * emit.lanes)
        kept = builder.select(builder.icmp_signed(">", count, I64(0)), some, emit.constant_lanes([False] * emit.lanes))
        before = []
        for v in range(vectors):
            before += self._at(row, begin, v * emit.lanes, [kept] * stride)
        with emit.loop(count, I64(emit.lanes), [*before, *carried]) as loop:
            t = builder.add(begin, loop.index)
            prefetch(emit, row, self._firsts(t, 0), write=False)
            if not vectors:
                yield loop, t, self._each_shift(lambda shift: self._at(row, t, shift, [None] * stride))
                return
            new = self._at(row, t, vectors * emit.lanes, [None] * stride)
            known = [*loop.values[: len(before)], *new]

            def shifted(shift: int) -> list[Any]:
                vector, lane = divmod(shift, emit.lanes)
                now, then = (known[(vector + later) * stride :][:stride] for later in (0, 1))
                if lane == 0:
                    return now
                lanes = [lane + k for k in range(emit.lanes)]
                return [emit.permuted(a, b, lanes) for a, b in zip(now, then, strict=True)]

            yield _LaterValues(loop, known[stride:]), t, self._each_shift(shifted)

    def _each_shift(self, planes: Callable[[int], list[Any]]) -> Callable[[int], Any]:
        known: dict[int, list[Any]] = {}

        def sample(k: int) -> Any:
            shift, plane = divmod(k * self.layer.dilation, self.layer.stride)
            if shift not in known:
                known[shift] = planes(shift)
            return known[shift][plane]

        return sample

    def _firsts(self, t: Any, shift: int) -> list[Any]:
        """The first samples of the vectors from a position on."""
        builder, stride = self.emit.builder, self.layer.stride
        first = builder.add(self.first, builder.mul(builder.add(t, I64(shift)), I64(stride)))
        return [builder.add(first, I64(v * self.emit.lanes)) for v in range(stride)]

    def _at(self, row: Any, t: Any, shift: int, kept: Sequence[Any]) -> list[Any]:
        """A vector of each plane, from a position on."""
        vectors = zip(self._firsts(t, shift), kept, strict=True)
        planes: list[Any] = self.emit.deinterleaved([load(self.emit, row, first, within) for first, within in vectors])
        return planes


class _LaterValues:
    """What a loop carries beside its first values, which are `following` in the next step."""

    def __init__(self, loop: Loop, following: Sequence[Any]) -> None:
        self._loop = loop
        self._following = following
        self.values = loop.values[len(following) :]
        self.keep([])

    def keep(self, values: Sequence[Any]) -> None:
        """As Loop.keep."""
        self._loop.keep([*self._following, *values])
