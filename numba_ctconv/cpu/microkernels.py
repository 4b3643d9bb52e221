"""The register tile: the one place that knows vector instructions. Compiled to C functions that the tiled kernels call.

A tile computes rows × (vectors · lanes) outputs of a product with shifted rows,

    sum[m, c] = -start[m] + Σ_r panel[r, m] · slab[offset[r] + c],

with the partial sums of a block of terms in registers, and adds the blocks up in order, in memory that stays in the
first-level cache. So an element is summed in one order that neither the width of a vector nor the place of the tile
changes: lanes run over c, terms over r.

It stores with neighbouring rows interleaved: rows m = channel·phases + p, columns c = q, so that the target of a
channel holds q·phases + p in order. Everything is passed as an address or an integer, which keeps one C signature.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from .compilation import compiling, keep_on_disk

I32, I64 = ir.IntType(32), ir.IntType(64)

PANEL_AHEAD = 1024  # bytes: time enough for memory, and a fraction of what the first-level cache holds
# panel, slab, offsets, terms, block, start, sums, target, channel stride: addresses and counts, in elements
SIGNATURE = types.void(*[types.int64] * 9)


@intrinsic(prefer_literal=True)
def tile(
    typingctx, double, lanes, rows, vectors, phases, adds, panel, slab, offsets, terms, block, start, sums, out, step
):  # fmt: skip
    """Emit a register tile; the first six arguments are compile-time integers, the others those of SIGNATURE."""
    shape = Shape(*(literal.literal_value for literal in (double, lanes, rows, vectors, phases, adds)))

    def codegen(context, builder, signature, args):
        Emitter(builder, shape).tile(*args[6:])
        return context.get_dummy_value()

    arguments = (double, lanes, rows, vectors, phases, adds, *[types.int64] * 9)
    return types.void(*arguments), codegen


class Shape(NamedTuple):
    """What is fixed when a tile is compiled."""

    double: int  # whether elements are float64
    lanes: int
    rows: int
    vectors: int
    phases: int  # divides rows
    adds: int = 0  # whether the tile adds to its target, which no rows are interleaved for


class Emitter:
    """Writes the LLVM code of a tile."""

    def __init__(self, builder: Any, shape: Shape) -> None:
        self.builder = builder
        self.shape = shape
        self.element = ir.DoubleType() if shape.double else ir.FloatType()
        self.size = 8 if shape.double else 4
        self.vector = ir.VectorType(self.element, shape.lanes)
        fma = ir.FunctionType(self.vector, [self.vector] * 3)
        name = f"llvm.fma.v{shape.lanes}f{8 * self.size}"
        self.fma = cgutils.get_or_insert_function(builder.module, fma, name)

    def tile(self, panel, slab, offsets, terms, block, start, sums, out, channel_stride):
        builder, shape = self.builder, self.shape
        for channel in range(shape.rows // shape.phases):
            at = builder.mul(channel_stride, I64(channel))
            for k in range(shape.phases * shape.vectors + 1):
                self.prefetch(self.element_at(out, builder.add(at, I64(k * shape.lanes))), write=True)
        total = self.total(panel, slab, offsets, terms, block, start, sums)
        for channel in range(shape.rows // shape.phases):
            streams = total[channel * shape.phases : (channel + 1) * shape.phases]
            at = builder.mul(channel_stride, I64(channel))
            for k, value in enumerate(self.interleaved(streams)):
                place = self.element_at(out, builder.add(at, I64(k * shape.lanes)))
                self.store(builder.fadd(self.load(place), value) if shape.adds else value, place)

    def total(self, panel, slab, offsets, terms, block, start, sums):
        """What a tile starts from and the partial sums of its blocks, added up in order.

        It waits in memory while a block is summed up, but neither before the first nor after the last.
        """
        builder, shape = self.builder, self.shape
        names = ("head", "first", "later", "next", "wait", "none", "done")
        head, first, later, following, wait, none, done = (builder.append_basic_block(f"total.{n}") for n in names)
        before = builder.block
        some = builder.icmp_signed(">", terms, I64(0))
        builder.cbranch(some, head, none)

        builder.position_at_end(head)
        begin = builder.phi(I64)
        begin.add_incoming(I64(0), before)
        after = builder.add(begin, block)
        end = builder.select(builder.icmp_signed("<", after, terms), after, terms)
        partial = self.block(panel, slab, offsets, begin, end)
        builder.cbranch(builder.icmp_signed("==", begin, I64(0)), first, later)

        def at_end_of(where, sum_of):
            builder.position_at_end(where)
            values = [[sum_of(m, v) for v in range(shape.vectors)] for m in range(shape.rows)]
            builder.branch(following)
            return values

        # a difference here, a sum there: LLVM would merge two sums, and what they add would pass through the stack
        at_first = at_end_of(first, lambda m, v: builder.fsub(partial[m][v], self.broadcast_at(start, m)))
        at_later = at_end_of(later, lambda m, v: builder.fadd(partial[m][v], self.load(self.sum_at(sums, m, v))))
        builder.position_at_end(following)
        total = self.merged((first, at_first), (later, at_later))
        builder.cbranch(builder.icmp_signed("<", end, terms), wait, done)

        builder.position_at_end(wait)
        for m in range(shape.rows):
            for v in range(shape.vectors):
                self.store(total[m][v], self.sum_at(sums, m, v))
        begin.add_incoming(end, builder.block)
        builder.branch(head)

        builder.position_at_end(none)
        nothing = [[builder.fneg(self.broadcast_at(start, m))] * shape.vectors for m in range(shape.rows)]
        builder.branch(done)
        builder.position_at_end(done)
        return self.merged((following, total), (none, nothing))

    def barrier(self):
        """An empty convergent call, which LLVM neither duplicates nor merges with another."""
        nothing = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "", side_effect=True)
        self.builder.call(nothing, [], attrs=("convergent",))

    def merged(self, *ways):
        """The vectors of a tile where ways meet that bring them: (block, vectors) each."""
        builder, shape = self.builder, self.shape
        values = [[builder.phi(self.vector) for _ in range(shape.vectors)] for _ in range(shape.rows)]
        for where, brought in ways:
            for m in range(shape.rows):
                for v in range(shape.vectors):
                    values[m][v].add_incoming(brought[m][v], where)
        return values

    def block(self, panel, slab, offsets, first, end):
        """The partial sums of the terms in [first, end), in registers."""
        builder, shape = self.builder, self.shape
        before = builder.block
        loop, done = builder.append_basic_block("terms"), builder.append_basic_block("block")
        builder.branch(loop)

        builder.position_at_end(loop)
        r = builder.phi(I64)
        r.add_incoming(first, before)
        sums = [[builder.phi(self.vector) for _ in range(shape.vectors)] for _ in range(shape.rows)]
        for row in sums:
            for value in row:
                value.add_incoming(self.zero(), before)
        offset = builder.load(builder.inttoptr(builder.add(offsets, builder.mul(r, I64(8))), I64.as_pointer()))
        x = [self.load(self.element_at(slab, builder.add(offset, I64(v * shape.lanes)))) for v in range(shape.vectors)]
        # what the next tile will load: a row that is read in place is new to the caches at its first tile
        for v in range(shape.vectors):
            ahead = builder.add(offset, I64((shape.vectors + v) * shape.lanes))
            self.prefetch(self.element_at(slab, ahead), write=False)
        weights = self.element_at(panel, builder.mul(r, I64(shape.rows)))
        # weights that come from memory stream past once a block of columns
        self.prefetch(builder.add(weights, I64(PANEL_AHEAD)), write=False)
        total = []
        for m in range(shape.rows):
            w = self.broadcast_at(weights, m)
            total.append([builder.call(self.fma, [w, x[v], sums[m][v]]) for v in range(shape.vectors)])
        self.barrier()  # else LLVM unrolls the loop, which would spill registers
        following = builder.add(r, I64(1))
        r.add_incoming(following, builder.block)
        for m in range(shape.rows):
            for v in range(shape.vectors):
                sums[m][v].add_incoming(total[m][v], builder.block)
        builder.cbranch(builder.icmp_signed("<", following, end), loop, done)
        builder.position_at_end(done)
        return total

    def interleaved(self, streams):
        """[[a0, ..], [b0, ..]] to [a0, b0, a1, b1, ..], by two-source permutes.

        An even number of streams takes a round over pairs, an odd one a permute a stream for each vector of the result.
        """
        count, lanes = len(streams), self.shape.lanes
        if count == 1:
            return streams[0]
        if count % 2 == 0:
            pairs = zip(self.interleaved(streams[0::2]), self.interleaved(streams[1::2]), strict=True)
            halves = [[k // 2 + lanes * (k % 2) + h * (lanes // 2) for k in range(lanes)] for h in (0, 1)]
            return [self.permuted(a, b, half) for a, b in pairs for half in halves]
        result = []
        for v in range(self.shape.vectors):
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

    def deinterleaved(self, vectors):
        """The inverse of `interleaved`: as many streams of one vector each."""
        count, lanes = len(vectors), self.shape.lanes
        if count == 1:
            return vectors
        if count % 2 == 0:
            pairs = list(zip(vectors[0::2], vectors[1::2], strict=True))
            halves = [[self.permuted(a, b, [2 * k + odd for k in range(lanes)]) for a, b in pairs] for odd in (0, 1)]
            streams = zip(*(self.deinterleaved(half) for half in halves), strict=True)
            return [stream for pair in streams for stream in pair]
        result = []
        for s in range(count):
            places = [divmod(k * count + s, lanes) for k in range(lanes)]  # (vector, its lane) of each lane
            value = vectors[0]
            for v in range(1, count):
                mask = [lanes + lane if of == v else k for k, (of, lane) in enumerate(places)]
                if v == 1:
                    mask = [lanes * (of == 1) + (lane if of <= 1 else 0) for of, lane in places]
                value = self.permuted(value, vectors[v], mask)
            result.append(value)
        return result

    def permuted(self, a, b, lanes):
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, self.shape.lanes), lanes))

    def sum_at(self, sums, m, v):
        return self.element_at(sums, I64((m * self.shape.vectors + v) * self.shape.lanes))

    def element_at(self, address, index):
        return self.builder.add(address, self.builder.mul(index, I64(self.size)))

    def prefetch(self, address, *, write):
        """Ask for the cache line at an address, which need not exist, to be read or written."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        self.builder.call(function, [self.builder.inttoptr(address, byte), I32(int(write)), I32(3), I32(1)])

    def load(self, address):
        return self.builder.load(self.builder.inttoptr(address, self.vector.as_pointer()), align=self.size)

    def store(self, value, address):
        self.builder.store(value, self.builder.inttoptr(address, self.vector.as_pointer()), align=self.size)

    def zero(self):
        return ir.Constant(self.vector, [0.0] * self.shape.lanes)

    def broadcast_at(self, address, m):
        """Element m of an array in all lanes."""
        place = self.builder.inttoptr(self.element_at(address, I64(m)), self.element.as_pointer())
        scalar = self.builder.load(place, align=self.size)
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, I32(0))
        return self.permuted(first, undefined, [0] * self.shape.lanes)


class CompiledTiles:
    """The C functions of the tiles of 1, 2, .. vectors of a shape, compiled on first use and kept on disk."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], tuple[Any, list[Any]]] = {}

    def __call__(self, itemsize: int, lanes: int, rows: int, vectors: int, phases: int, adds: int = 0) -> Any:
        """Addresses, int64, of the tiles of 1 to `vectors` vectors."""
        key = (itemsize, lanes, rows, vectors, phases, adds)
        kept = self._kept.get(key)
        if kept is None:
            with compiling:
                kept = self._kept.get(key) or self._compiled(*key)
                self._kept[key] = kept
        return kept[0]

    def _compiled(
        self, itemsize: int, lanes: int, rows: int, vectors: int, phases: int, adds: int
    ) -> tuple[Any, list[Any]]:
        """The addresses, and the functions, which have to live as long."""
        shapes = [Shape(int(itemsize == 8), lanes, rows, v, phases, adds) for v in range(1, vectors + 1)]
        functions = [_compile(*shape) for shape in shapes]
        return np.array([function.address for function in functions]), functions


tiles = CompiledTiles()


def _compile(double: int, lanes: int, rows: int, vectors: int, phases: int, adds: int) -> Any:
    def function(panel, slab, offsets, terms, block, start, sums, out, channel_stride):
        tile(
            double, lanes, rows, vectors, phases, adds, panel, slab, offsets, terms, block, start, sums, out,
            channel_stride,
        )  # fmt: skip

    return c_function(function, SIGNATURE, f"microkernels.tile-{double}-{lanes}-{rows}-{vectors}-{phases}-{adds}")


def c_function(function: Any, signature: Any, name: str) -> Any:
    """Compile a C function and keep it on disk under its name."""
    compiled = CFunc(function, (signature.args, signature.return_type), locals={}, options={})
    keep_on_disk(compiled, name)
    compiled.compile()
    return compiled
