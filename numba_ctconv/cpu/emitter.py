"""Vector instructions in LLVM code: the one place that writes them, for tiles, moves and rows.

What they make up is compiled to functions that Numba's code calls by their addresses.

Addresses are int64, so that sums with other integers stay integers; indexes count elements.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compilation import INNER, Compiled, compiled
from .target import CACHE_LINE

I32, I64 = ir.IntType(32), ir.IntType(64)
TILE_SIGNATURE = types.void(*[types.int64] * 9)  # of tiles that sum up a block of terms, or few columns
ROWS_SIGNATURE = types.void(types.int64)  # of what takes more arguments than a call passes well: their address


class Emitter:
    """Writes code on vectors of so many lanes."""

    def __init__(self, builder: Any, double: int, lanes: int) -> None:
        self.builder = builder
        self.lanes = lanes
        self.element = ir.DoubleType() if double else ir.FloatType()
        self.size = 8 if double else 4
        self.vector = ir.VectorType(self.element, lanes)
        fma = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, fma, f"llvm.fma.v{lanes}f{8 * self.size}")

    @contextlib.contextmanager
    def loop(self, limit: Any, step: Any, carried: Sequence[Any] = ()) -> Iterator["Loop"]:
        """A loop over [0, limit): what is written in the context is its step."""
        loop = Loop(self.builder, limit, step, carried)
        yield loop
        loop.close()

    def interleaved(self, streams):
        """[[a0, ..], [b0, ..]] to [a0, b0, a1, b1, ..], by two-source permutes.

        An even number of streams takes a round over pairs, an odd one a permute a stream for each vector of the result.
        """
        count, lanes = len(streams), self.lanes
        if count == 1:
            return streams[0]
        if count % 2 == 0:
            pairs = zip(self.interleaved(streams[0::2]), self.interleaved(streams[1::2]), strict=True)
            halves = [[k // 2 + lanes * (k % 2) + h * (lanes // 2) for k in range(lanes)] for h in (0, 1)]
            return [self.permuted(a, b, half) for a, b in pairs for half in halves]
        result = []
        for v in range(len(streams[0])):
            for part in range(count):
                places = [divmod(part * lanes + k, count) for k in range(lanes)]  # (column, stream) of each lane
                value = streams[0][v]
                for s in range(count):
                    mask = [lanes + c if of == s else k for k, (c, of) in enumerate(places)]
                    if s == 0:
                        mask = [c if of == 0 else 0 for c, of in places]
                    value = self.permuted(value, streams[s][v], mask)
                result.append(value)
        return result

    def spread(self, streams, slots):
        """As `interleaved`, with room for more streams after the last: [(vector, which of its lanes hold one)]."""
        lanes, count = self.lanes, len(streams)
        result = []
        for k in range(slots * len(streams[0])):
            places = [divmod(k * lanes + lane, slots) for lane in range(lanes)]  # (column, slot) of each lane
            value = None
            for v in sorted({column // lanes for column, _ in places}):
                for s in range(count):
                    own = [(lane, c % lanes) for lane, (c, slot) in enumerate(places) if (c // lanes, slot) == (v, s)]
                    mask = list(range(lanes))
                    for lane, column in own:
                        mask[lane] = lanes + column
                    if own:
                        value = self.permuted(streams[s][v] if value is None else value, streams[s][v], mask)
            result.append((value, [slot < count for _, slot in places]))
        return result

    def lanes_within(self, first, length):
        """Which lanes, of which the first stands at index `first`, lie in an array of so many elements."""
        builder, narrow = self.builder, ir.VectorType(I32, self.lanes)

        def cut(value):
            value = builder.select(builder.icmp_signed("<", value, I64(0)), I64(0), value)
            value = builder.select(builder.icmp_signed("<", value, I64(self.lanes)), value, I64(self.lanes))
            return self.broadcast(builder.trunc(value, I32), narrow)

        lane = ir.Constant(narrow, list(range(self.lanes)))
        begun = builder.icmp_signed(">=", lane, cut(builder.neg(first)))
        return builder.and_(begun, builder.icmp_signed("<", lane, cut(builder.sub(length, first))))

    def load_some(self, address, kept):
        """The lanes that are kept, and zero in the others, whose memory is not touched."""
        pointer, bits = self.vector.as_pointer(), ir.VectorType(ir.IntType(1), self.lanes)
        function = self._masked("load", ir.FunctionType(self.vector, [pointer, I32, bits, self.vector]))
        return self.builder.call(function, [self.builder.inttoptr(address, pointer), I32(self.size), kept, self.zero()])

    def store_some(self, value, address, kept):
        """Store the lanes that are kept; memory of the others is not touched."""
        pointer, bits = self.vector.as_pointer(), ir.VectorType(ir.IntType(1), self.lanes)
        function = self._masked("store", ir.FunctionType(ir.VoidType(), [self.vector, pointer, I32, bits]))
        self.builder.call(function, [value, self.builder.inttoptr(address, pointer), I32(self.size), kept])

    def added_lanes(self, value):
        """The sum of all lanes in each of them, in a tree."""
        half = self.lanes // 2
        while half:
            turned = self.permuted(value, value, [(k + half) % self.lanes for k in range(self.lanes)])
            value, half = self.builder.fadd(value, turned), half // 2
        return value

    def pack_lanes(self, kept):
        """Which lanes are kept, as the bits of an int64."""
        return self.builder.zext(self.builder.bitcast(kept, ir.IntType(self.lanes)), I64)

    def unpack_lanes(self, bits):
        """The inverse of `pack_lanes`."""
        bits = self.builder.trunc(bits, ir.IntType(self.lanes))
        return self.builder.bitcast(bits, ir.VectorType(ir.IntType(1), self.lanes))

    def constant_lanes(self, kept):
        """Which lanes are kept, known when this is compiled."""
        return ir.Constant(ir.VectorType(ir.IntType(1), self.lanes), kept)

    def _masked(self, action, kind):
        name = f"llvm.masked.{action}.v{self.lanes}f{8 * self.size}.p0"
        return cgutils.get_or_insert_function(self.builder.module, kind, name)

    def deinterleaved(self, vectors, run=1):
        """The inverse of `interleaved`, of elements or of runs of them: as many streams of one vector each."""
        count, lanes = len(vectors), self.lanes
        if count == 1:
            return vectors
        if count % 2 == 0:
            pairs = list(zip(vectors[0::2], vectors[1::2], strict=True))
            halves = [
                [self.permuted(a, b, [(2 * (k // run) + odd) * run + k % run for k in range(lanes)]) for a, b in pairs]
                for odd in (0, 1)
            ]
            streams = zip(*(self.deinterleaved(half, run) for half in halves), strict=True)
            return [stream for pair in streams for stream in pair]
        result = []
        for s in range(count):
            places = [divmod((k // run * count + s) * run + k % run, lanes) for k in range(lanes)]  # (vector, its lane)
            value = vectors[0]
            for v in range(1, count):
                mask = [lanes + lane if of == v else k for k, (of, lane) in enumerate(places)]
                if v == 1:
                    mask = [lanes * (of == 1) + (lane if of <= 1 else 0) for of, lane in places]
                value = self.permuted(value, vectors[v], mask)
            result.append(value)
        return result

    def gathered(self, vectors, places):
        """A vector of the elements at places, each a vector and a lane of it."""
        value = None
        for v in sorted({v for v, _ in places}):
            own = [lane if of == v else None for of, lane in places]
            if value is None:
                value = self.permuted(vectors[v], vectors[v], [lane or 0 for lane in own])
            else:
                mask = [k if lane is None else self.lanes + lane for k, lane in enumerate(own)]
                value = self.permuted(value, vectors[v], mask)
        return value

    def permuted(self, a, b, lanes):
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, self.lanes), lanes))

    def element_at(self, address, index):
        return self.builder.add(address, self.builder.mul(index, I64(self.size)))

    def prefetch(self, address, *, write):
        """Ask for the cache line at an address, which need not exist, to be read or written."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        self.builder.call(function, [self.builder.inttoptr(address, byte), I32(int(write)), I32(3), I32(1)])

    def every_second(self, panels, rows, r):
        """Of which panels a term asks for later weights: of every second one where two terms share a cache line."""
        if 2 * rows * self.size > CACHE_LINE or len(panels) == 1:
            return panels
        odd = self.builder.trunc(r, ir.IntType(1))
        pairs = zip(panels[1::2], panels[0::2], strict=True)
        return [self.builder.select(odd, second, first) for second, first in pairs]

    def given(self, address, count):
        """So many arguments, from their address."""
        return [self.index_at(address, I64(k)) for k in range(count)]

    def index_at(self, address, k):
        """Element k of an array of int64."""
        return self.builder.load(self._index_place(address, k))

    def store_index(self, value, address, k):
        """Element k of an array of int64 from now on."""
        self.builder.store(value, self._index_place(address, k))

    def _index_place(self, address, k):
        place = self.builder.add(address, self.builder.mul(k, I64(8)))
        return self.builder.inttoptr(place, I64.as_pointer())

    def load(self, address):
        return self.builder.load(self.builder.inttoptr(address, self.vector.as_pointer()), align=self.size)

    def store(self, value, address):
        self.builder.store(value, self.builder.inttoptr(address, self.vector.as_pointer()), align=self.size)

    def store_first(self, value, address):
        """Store the first lane."""
        place = self.builder.inttoptr(address, self.element.as_pointer())
        self.builder.store(self.builder.extract_element(value, I32(0)), place, align=self.size)

    def zero(self):
        return ir.Constant(self.vector, [0.0] * self.lanes)

    def broadcast_at(self, address, m):
        """Element m of an array in all lanes."""
        place = self.builder.inttoptr(self.element_at(address, I64(m)), self.element.as_pointer())
        return self.broadcast(self.builder.load(place, align=self.size), self.vector)

    def broadcast(self, scalar, vector):
        """A scalar in all lanes of a type of vector."""
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, I32(0))
        return self.permuted(first, undefined, [0] * self.lanes)

    def barrier(self):
        """An empty convergent call, which LLVM neither duplicates nor merges with another."""
        nothing = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "", side_effect=True)
        self.builder.call(nothing, [], attrs=("convergent",))


class Loop:
    """A loop over [0, limit) in steps, as the context writes it.

    Attributes
    ----------
    index, end : where a step begins and where it ends, cut at the limit
    values : what is carried from step to step; after the loop, what the last step kept
    """

    def __init__(self, builder: Any, limit: Any, step: Any, carried: Sequence[Any]) -> None:
        before = builder.block
        self._builder = builder
        self._head, body, self._done = (builder.append_basic_block(name) for name in ("loop", "step", "after"))
        builder.branch(self._head)
        builder.position_at_end(self._head)
        self.index = builder.phi(I64)
        self.index.add_incoming(I64(0), before)
        self.values = [builder.phi(value.type) for value in carried]
        for phi, value in zip(self.values, carried, strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", self.index, limit), body, self._done)
        builder.position_at_end(body)
        following = builder.add(self.index, step)
        self.end = builder.select(builder.icmp_signed("<", following, limit), following, limit)
        self._kept: Sequence[Any] = ()
        self._left: list[tuple[Any, Sequence[Any]]] = []

    def go_on_if(self, condition: Any, values: Sequence[Any]) -> None:
        """End the loop with such values unless a condition holds; what is written next is the rest of the step."""
        rest = self._builder.append_basic_block("rest")
        self._left.append((self._builder.block, values))
        self._builder.cbranch(condition, rest, self._done)
        self._builder.position_at_end(rest)

    def keep(self, values: Sequence[Any]) -> None:
        """What the next step finds in `values`."""
        self._kept = values

    def close(self) -> None:
        """End the step; what is written next follows the loop."""
        for phi, value in zip((self.index, *self.values), (self.end, *self._kept), strict=True):
            phi.add_incoming(value, self._builder.block)
        self._builder.branch(self._head)
        self._builder.position_at_end(self._done)
        if self._left:
            self.values = merged(self._builder, (self._head, self.values), *self._left)


def merged(builder: Any, *ways: tuple[Any, Sequence[Any]]) -> list[Any]:
    """Values where ways meet that bring them: (block, values) each."""
    values = [builder.phi(value.type) for value in ways[0][1]]
    for where, brought in ways:
        for phi, value in zip(values, brought, strict=True):
            phi.add_incoming(value, where)
    return values


def emitted_function(function: Any, signature: Any, name: str) -> Compiled:
    """Compile what an emitter writes, and keep it on disk under its name."""
    return compiled(numba.njit(**INNER)(function), signature, name)
