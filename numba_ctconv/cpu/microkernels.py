"""The register tiles, of which the tiled kernels are made. Called by address.

A tile computes rows × (vectors · lanes) outputs of a product with shifted rows,

    sum[m, c] = -start[m] + Σ_r panel[r, m] · slab[offset[r] + c],

with the partial sums of a block of terms in registers, and adds the blocks up in order, in memory that stays in the
first-level cache. So an element is summed in one order that neither the width of a vector nor the place of the tile
changes: lanes run over c, terms over r. Where columns are few, a tile of another kind (column_tiles.py) has its lanes
run over m; it sums in the same order.

It stores with neighbouring rows interleaved: rows m = channel·phases + p, columns c = q, so that the target of a
channel holds q·slots + p in order; where slots are more than phases, the others are left as they were. Everything is
passed as an address or an integer, which keeps one signature.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from ..forks import compiling
from .asking import LINES_ASKED
from .emitter import I64, Emitter, emitted_function, merged
from .target import CACHE_LINE

TILES_AHEAD = 2  # that are computed before what is asked for of the slab is needed
PANEL_AHEAD = 4096  # bytes: time enough for memory, and a fraction of what the first-level cache holds
# panel, slab, offsets, terms, block, start, sums, target, channel stride, ahead: addresses and counts, in elements
SIGNATURE = types.void(*[types.int64] * 10)


@intrinsic(prefer_literal=True)
def tile(
    typingctx, double, lanes, rows, vectors, phases, slots, adds, panel, slab, offsets, terms, block, start, sums, out,
    step, ahead,
):  # fmt: skip
    """Emit a register tile; the first seven arguments are compile-time integers, the others those of SIGNATURE."""
    shape = Shape(*(literal.literal_value for literal in (double, lanes, rows, vectors, phases, slots, adds)))

    def codegen(context, builder, signature, args):
        Tile(builder, shape).write(*args[7:])
        return context.get_dummy_value()

    arguments = (double, lanes, rows, vectors, phases, slots, adds, *[types.int64] * 10)
    return types.void(*arguments), codegen


class Shape(NamedTuple):
    """What is fixed when a tile is compiled."""

    double: int  # whether elements are float64
    lanes: int
    rows: int
    vectors: int
    phases: int  # divides rows
    slots: int  # that a column takes of the target: as many as phases, or room for others after them
    adds: int = 0  # whether the tile adds to its target, which no rows are interleaved for


class Tile(Emitter):
    """Writes the code of a tile."""

    def __init__(self, builder: Any, shape: Shape) -> None:
        super().__init__(builder, shape.double, shape.lanes)
        self.shape = shape

    def write(self, panel, slab, offsets, terms, block, start, sums, out, channel_stride, ahead):
        self.ask_for(out, channel_stride)
        self.keep(self.total(panel, slab, offsets, terms, block, start, sums, ahead), out, channel_stride)

    def ask_for(self, out, channel_stride):
        """Ask for the memory of a tile's target, which it will write."""
        builder, shape = self.builder, self.shape
        for channel in range(shape.rows // shape.phases):
            at = builder.mul(channel_stride, I64(channel))
            for k in range(shape.slots * shape.vectors + 1):
                self.prefetch(self.element_at(out, builder.add(at, I64(k * shape.lanes))), write=True)

    def keep(self, total, out, channel_stride):
        """Store a tile."""
        builder, shape = self.builder, self.shape
        for channel in range(shape.rows // shape.phases):
            streams = total[channel * shape.phases : (channel + 1) * shape.phases]
            at = builder.mul(channel_stride, I64(channel))
            places = [
                self.element_at(out, builder.add(at, I64(k * shape.lanes))) for k in range(shape.slots * shape.vectors)
            ]
            if shape.slots > shape.phases:
                for place, (value, kept) in zip(places, self.spread(streams, shape.slots), strict=True):
                    if any(kept):
                        self.store_some(value, place, self.constant_lanes(kept))
                continue
            for place, value in zip(places, self.interleaved(streams), strict=True):
                self.store(builder.fadd(self.load(place), value) if shape.adds else value, place)

    def total(self, panel, slab, offsets, terms, block, start, sums, ahead):
        """What a tile starts from and the partial sums of its blocks, added up in order.

        It waits in memory while a block is summed up, but neither before the first nor after the last. Each block asks
        for what lies at the next of the addresses that lie at `ahead`, if that is not 0.
        """
        builder, shape = self.builder, self.shape
        names = ("head", "first", "later", "next", "wait", "none", "done")
        head, first, later, following, wait, none, done = (builder.append_basic_block(f"total.{n}") for n in names)
        before = builder.block
        some = builder.icmp_signed(">", terms, I64(0))
        builder.cbranch(some, head, none)

        builder.position_at_end(head)
        begin, listed = builder.phi(I64), builder.phi(I64)
        begin.add_incoming(I64(0), before)
        listed.add_incoming(ahead, before)
        after = builder.add(begin, block)
        end = builder.select(builder.icmp_signed("<", after, terms), after, terms)
        with builder.if_then(builder.icmp_signed("!=", ahead, I64(0))):
            asked = self.index_at(listed, I64(0))
            for k in range(LINES_ASKED):
                self.prefetch(builder.add(asked, I64(k * CACHE_LINE)), write=False)
        partial = self.block(panel, slab, offsets, begin, end)
        builder.cbranch(builder.icmp_signed("==", begin, I64(0)), first, later)

        # a difference here, a sum there: LLVM would merge two sums, and what they add would pass through the stack
        total = self.either(
            following,
            (first, lambda m, v: builder.fsub(partial[m][v], self.broadcast_at(start, m))),
            (later, lambda m, v: builder.fadd(partial[m][v], self.load(self.sum_at(sums, m, v)))),
        )
        builder.cbranch(builder.icmp_signed("<", end, terms), wait, done)

        builder.position_at_end(wait)
        for m in range(shape.rows):
            for v in range(shape.vectors):
                self.store(total[m][v], self.sum_at(sums, m, v))
        begin.add_incoming(end, builder.block)
        listed.add_incoming(builder.add(listed, I64(8)), builder.block)
        builder.branch(head)

        builder.position_at_end(none)
        nothing = [[builder.fneg(self.broadcast_at(start, m))] * shape.vectors for m in range(shape.rows)]
        builder.branch(done)
        builder.position_at_end(done)
        return self.merged_rows((following, total), (none, nothing))

    def either(self, following, *ways):
        """The vectors of a tile as blocks compute them that lead to the same one: (block, what of row and vector)."""
        brought = []
        for where, sum_of in ways:
            self.builder.position_at_end(where)
            brought.append((where, [[sum_of(m, v) for v in range(self.shape.vectors)] for m in range(self.shape.rows)]))
            self.builder.branch(following)
        self.builder.position_at_end(following)
        return self.merged_rows(*brought)

    def merged_rows(self, *ways):
        """The vectors of a tile where ways meet that bring them: (block, vectors) each."""
        rows = range(self.shape.rows)
        return [merged(self.builder, *((where, brought[m]) for where, brought in ways)) for m in rows]

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
        offset = self.index_at(offsets, r)
        x = [self.load(self.element_at(slab, builder.add(offset, I64(v * shape.lanes)))) for v in range(shape.vectors)]
        # what a later tile will load: a row that is read in place is new to the caches at its first tile
        for k in range(0, shape.vectors * shape.lanes, CACHE_LINE // self.size):
            later = builder.add(offset, I64(TILES_AHEAD * shape.vectors * shape.lanes + k))
            self.prefetch(self.element_at(slab, later), write=False)
        total = []
        for m, (weights, place) in enumerate(self.weights(panel, r)):
            w = self.broadcast_at(weights, place)
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

    def weights(self, panel, r):
        """Where the weights of a term's rows lie: (address, element) each. Asks for later ones.

        Weights that come from memory stream past once a block of columns.
        """
        weights = self.element_at(panel, self.builder.mul(r, I64(self.shape.rows)))
        self.prefetch(self.builder.add(weights, I64(PANEL_AHEAD)), write=False)
        return [(weights, m) for m in range(self.shape.rows)]

    def sum_at(self, sums, m, v):
        return self.element_at(sums, I64((m * self.shape.vectors + v) * self.shape.lanes))


class CompiledTiles:
    """The functions of tiles, compiled on first use and kept on disk."""

    def __init__(self) -> None:
        self._kept: dict[Shape, tuple[Any, list[Any]]] = {}

    def __call__(
        self, itemsize: int, lanes: int, rows: int, vectors: int, phases: int, slots: int, *, adds: bool = False
    ) -> Any:
        """Addresses, int64, of the tiles of 1 to `vectors` vectors."""
        shape = Shape(int(itemsize == 8), lanes, rows, vectors, phases, slots, int(adds))
        kept = self._kept.get(shape)
        if kept is None:
            with compiling:
                kept = self._kept.get(shape) or self._compiled(shape)
                self._kept[shape] = kept
        return kept[0]

    def _compiled(self, shape: Shape) -> tuple[Any, list[Any]]:
        """The addresses, and the functions, which have to live as long."""
        functions = [_compile(*shape._replace(vectors=v)) for v in range(1, shape.vectors + 1)]
        return np.array([function.address for function in functions]), functions


tiles = CompiledTiles()


def _compile(double: int, lanes: int, rows: int, vectors: int, phases: int, slots: int, adds: int) -> Any:
    def function(panel, slab, offsets, terms, block, start, sums, out, channel_stride, ahead):
        tile(
            double, lanes, rows, vectors, phases, slots, adds, panel, slab, offsets, terms, block, start, sums, out,
            channel_stride, ahead,
        )  # fmt: skip

    return emitted_function(
        function, SIGNATURE, f"microkernels.tile-{double}-{lanes}-{rows}-{vectors}-{phases}-{slots}-{adds}"
    )
