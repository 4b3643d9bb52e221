"""The tiles of few columns whose weights are read where they are, all along their rows. Compiled to C functions.

A weight that a call meets once or twice would take longer to pack than to read. Where the taps of a tile's channels lie
side by side, so do the tiles: vectors of weights are loaded as they lie, and elements change places in registers. Terms
are summed in the order of the other tiles, so they give their bits.
"""

import functools
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..forks import compiling
from . import target
from .column_tiles import COLUMNS, panel_width, panels_joined
from .emitter import I64, ROWS_SIGNATURE, Emitter, c_function
from .target import CACHE_LINE

MOST_COLUMNS = 5  # beyond which multiplying takes longer than reading
MOST_CHANNELS = 8  # whose rows are read side by side, which prefetchers follow
OTHERS = 12  # registers beside the samples that a group of channels meets: sums, weights, and where those go
AHEAD = 1024  # bytes of a row that are asked for ahead


class Given(NamedTuple):
    """What the function takes: addresses and, in elements, everything else. `channels` are all of a group's input."""

    weight: Any
    channel_step: Any  # from a channel's row to the next one's
    channels: Any
    vectors: Any  # of tiles
    slab: Any
    offsets: Any  # of terms, in the slab
    sums: Any  # (columns, vectors), of a block of terms
    totals: Any  # likewise, from what they start to what they are in the end
    columns: Any


def vector_lanes(lanes: int, rows: int) -> int:
    """Lanes of a vector of tiles: of one panel or of two side by side, as column_tiles has them."""
    return panels_joined(lanes, rows) * panel_width(rows)


def most_columns(lanes: int, rows: int, taps: int) -> int:
    """Columns up to which the samples of a channel fit the registers beside sums and weights; 0 where none do."""
    registers = -(-vector_lanes(lanes, rows) // lanes)  # of a vector
    return max(
        (
            n
            for n in COLUMNS
            if n <= MOST_COLUMNS and registers * (taps * n + n + taps) + 2 <= target.vector_registers()
        ),
        default=0,
    )


@intrinsic(prefer_literal=True)
def unpacked_tile(typingctx, double, lanes, rows, run, taps, block, given):
    """Emit totals[c, tile·width + row] += Σ_block (Σ_term w[term, tile, row]·x[term, c]), a block of terms at a time.

    A term is a channel and a tap, and its weight is weight[channel·channel_step + ((tile·channels_of_tile + own channel
    of the row)·taps + tap)·run + phase]. What rows a vector has beyond a tile's own sum up what is of no consequence.
    """
    values = [literal.literal_value for literal in (double, lanes, rows, run, taps, block)]

    def codegen(context, builder, signature, args):
        double, lanes, rows, run, taps, block = values
        tile = UnpackedTile(builder, double, lanes, rows, run, taps, block)
        own = Given._make(tile.given(args[6], len(Given._fields)))
        most = most_columns(lanes, rows, taps)
        for fewer, count in zip((0, *COLUMNS), COLUMNS, strict=False):
            if count <= most:
                fits = builder.icmp_signed(">", own.columns, I64(fewer))
                with builder.if_then(builder.and_(fits, builder.icmp_signed("<=", own.columns, I64(count)))):
                    tile.write(count, own)
        return context.get_dummy_value()

    return types.void(double, lanes, rows, run, taps, block, types.int64), codegen


class UnpackedTile(Emitter):
    """Writes the code of tiles whose weights are read where they are."""

    def __init__(self, builder: Any, double: int, lanes: int, rows: int, run: int, taps: int, block: int) -> None:
        super().__init__(builder, double, vector_lanes(lanes, rows))
        self.registers = -(-self.lanes // lanes)
        self.rows, self.run, self.taps, self.block = rows, run, taps, block
        self.each, self.width = panels_joined(lanes, rows), panel_width(rows)
        self.weights = self.each * rows * taps  # of a vector of tiles, and channel
        zero = -0.0  # which added to any sum leaves it as it is, where 0.0 would lose the sign of -0.0
        self.nothing, self.neutral = (
            cgutils.alloca_once(builder, self.vector),
            cgutils.alloca_once(builder, self.vector),
        )
        builder.store(self.zero(), self.nothing)
        builder.store(ir.Constant(self.vector, [zero] * self.lanes), self.neutral)

    def write(self, count, given):
        """The columns of all vectors of tiles, whatever their channels."""
        builder = self.builder
        room = max(1, (target.vector_registers() - OTHERS) // (self.registers * self.taps * count))
        together = 1
        while 2 * together <= min(room, MOST_CHANNELS, self.block // self.taps):
            together *= 2
        with self.loop(given.channels, I64(self.block // self.taps)) as block:
            channels = builder.sub(block.end, block.index)
            whole = builder.and_(channels, I64(-together))
            with self.loop(whole, I64(together)) as group:
                self.add(count, together, given, builder.add(block.index, group.index), block)
            if together > 1:
                with self.loop(builder.sub(channels, whole), I64(1)) as rest:
                    first = builder.add(block.index, builder.add(whole, rest.index))
                    self.add(count, 1, given, first, block)

    def add(self, count, together, given, first, block):
        """Add what some channels contribute to the sums of their block of terms, and with the last these to totals."""
        builder = self.builder
        begins = builder.icmp_signed("==", first, block.index)
        ends = builder.icmp_signed("==", builder.add(first, I64(together)), block.end)
        nothing, neutral = (builder.ptrtoint(place, I64) for place in (self.nothing, self.neutral))
        step = I64(self.lanes * self.size)
        before = builder.select(begins, nothing, given.sums), builder.select(begins, I64(0), step)
        beside = builder.select(ends, given.totals, neutral), builder.select(ends, step, I64(0))
        after = builder.select(ends, given.totals, given.sums), step
        term = builder.mul(first, I64(self.taps))
        samples = {}
        for r in range(together * self.taps):
            offset = self.index_at(given.offsets, builder.add(term, I64(r)))
            at = self.element_at(given.slab, offset)
            for c in range(count):
                samples[r, c] = self.broadcast_at(at, c)
        rows = [
            self.element_at(given.weight, builder.mul(builder.add(first, I64(g)), given.channel_step))
            for g in range(together)
        ]
        with self.loop(given.vectors, I64(1)) as vector:

            def place(array, c):
                start, step = array
                return builder.add(
                    start, builder.mul(builder.add(vector.index, builder.mul(given.vectors, I64(c))), step)
                )

            sums = [self.load(place(before, c)) for c in range(count)]
            for g, row in enumerate(rows):
                at = self.element_at(row, builder.mul(vector.index, I64(self.weights)))
                for tap, weights in enumerate(self.weights_of_taps(at)):
                    for c in range(count):
                        sums[c] = builder.call(self.fma, [weights, samples[g * self.taps + tap, c], sums[c]])
            for c, value in enumerate(sums):
                self.store(builder.fadd(self.load(place(beside, c)), value), place(after, c))

    def weights_of_taps(self, address):
        """The weights of a channel: for each tap a vector of tiles."""
        for line in range(0, self.weights * self.size, CACHE_LINE):
            self.prefetch(self.builder.add(address, I64(AHEAD + line)), write=False)
        vectors = []
        for first in range(0, self.weights, self.lanes):
            at = self.element_at(address, I64(first))
            kept = [first + k < self.weights for k in range(self.lanes)]
            vectors.append(self.load(at) if all(kept) else self.load_some(at, self.constant_lanes(kept)))
        if self.rows == self.width:
            return self.deinterleaved(vectors, self.run)
        return [
            self.gathered(vectors, [self.place_of(tap, lane) for lane in range(self.lanes)]) for tap in range(self.taps)
        ]

    def place_of(self, tap, lane):
        """The vector and its lane where the weight of a lane lies; that of a tile's last row for lanes beyond it."""
        tile, row = lane // self.width, min(lane % self.width, self.rows - 1)
        channel, phase = divmod(row, self.run)
        return divmod((tile * self.rows + channel * self.run) * self.taps + tap * self.run + phase, self.lanes)


@functools.cache
def _compile(double: int, lanes: int, rows: int, run: int, taps: int, block: int) -> Any:
    def function(given):
        unpacked_tile(double, lanes, rows, run, taps, block, given)

    with compiling:
        return c_function(
            function, ROWS_SIGNATURE, f"unpacked_tiles.unpacked_tile-{double}-{lanes}-{rows}-{run}-{taps}-{block}"
        )


def unpacked_tiles(itemsize: int, lanes: int, rows: int, run: int, taps: int, block: int) -> int:
    """Address of the function that computes tiles of few columns whose weights are read where they are."""
    return int(_compile(int(itemsize == 8), lanes, rows, run, taps, block).address)
