"""The tiles of few columns whose weights are read where they are, all along their rows. Called by address.

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
from .emitter import I32, I64, ROWS_SIGNATURE, Emitter, emitted_function
from .target import CACHE_LINE

# That channels have together whose rows are read side by side: twice as many where the samples that they meet still fit
# the registers. With fewer, sums come and go more often.
TERMS = 8
MOST_CHANNELS = 8  # more rows would take each other's place in the first-level cache
AHEAD = 512  # bytes of a row that are asked for ahead


class Given(NamedTuple):
    """What the function takes: addresses, and distances and counts in elements."""

    weight: Any
    channel_step: Any  # from a channel's row to the next one's
    channels: Any  # of the group's input
    vectors: Any  # of tiles
    slab: Any
    offsets: Any  # of terms, in the slab
    columns: Any  # one of COLUMNS
    own_columns: Any  # of those, from the first on, that are samples: the others may be anything
    bias: Any  # of the first channel, or 0
    bias_step: Any  # from a channel's to the next one's, in bytes
    totals: Any  # (columns, vectors); and likewise, after these,
    sums: Any  # of a block of terms
    check: Any  # gets 0, or NaN where a total of those is not finite


def vector_lanes(lanes: int, rows: int) -> int:
    """Lanes of a vector of tiles: of one panel or of two side by side, as column_tiles has them."""
    return panels_joined(lanes, rows) * panel_width(rows)


def most_columns(lanes: int, rows: int, taps: int) -> int:
    """Columns up to which the samples of a channel fit the registers beside sums and weights; 0 where none do."""
    registers = -(-vector_lanes(lanes, rows) // lanes)  # of a vector
    return max(
        (n for n in COLUMNS if registers * (taps * n + n + taps) + 2 <= target.vector_registers()),
        default=0,
    )


@intrinsic(prefer_literal=True)
def unpacked_tile(typingctx, double, lanes, rows, run, taps, block, given):
    """Emit totals[c, tile·width + row] = bias[row] + Σ_block (Σ_term w[term, tile, row]·x[term, c]), of so many terms.

    A term is a channel and a tap, and its weight is weight[channel·channel_step + ((tile·channels_of_tile + own channel
    of the row)·taps + tap)·run + phase]. What rows a vector has beyond a tile's own get what is of no consequence.
    """
    values = [literal.literal_value for literal in (double, lanes, rows, run, taps, block)]

    def codegen(context, builder, signature, args):
        tile = UnpackedTile(builder, *values)
        tile.write(Given._make(tile.given(args[6], len(Given._fields))))
        return context.get_dummy_value()

    return types.void(double, lanes, rows, run, taps, block, types.int64), codegen


class UnpackedTile(Emitter):
    """Writes the code of tiles whose weights are read where they are."""

    def __init__(self, builder: Any, double: int, lanes: int, rows: int, run: int, taps: int, block: int) -> None:
        super().__init__(builder, double, vector_lanes(lanes, rows))
        self.rows, self.run, self.taps, self.width = rows, run, taps, panel_width(rows)
        self.registers = -(-self.lanes // lanes)  # of a vector
        self.weights = panels_joined(lanes, rows) * rows * taps  # of a vector of tiles, and channel
        self.channels = block // taps  # of a block of terms
        self.counts = [count for count in COLUMNS if count <= most_columns(lanes, rows, taps)]
        self.places = []  # of zero, and of what leaves any sum as it is, where 0.0 would lose the sign of -0.0
        for value in (self.zero(), ir.Constant(self.vector, [-0.0] * self.lanes)):
            place = cgutils.alloca_once(builder, self.vector)
            builder.store(value, place)
            self.places.append(builder.ptrtoint(place, I64))

    def write(self, given):
        builder = self.builder
        self.start(given)
        with self.loop(given.channels, I64(self.channels)) as block:
            channels, together = builder.sub(block.end, block.index), I64(1)
            for count in self.counts:
                own = builder.icmp_signed("==", given.columns, I64(count))
                together = builder.select(own, I64(self.channels_together(count)), together)
            whole = builder.and_(channels, builder.neg(together))  # a power of two
            with self.loop(whole, together) as group:
                first = builder.add(block.index, group.index)
                for count in self.counts:
                    with builder.if_then(builder.icmp_signed("==", given.columns, I64(count))):
                        self.add([I64(c) for c in range(count)], self.channels_together(count), given, first, block)
            with self.loop(builder.sub(channels, whole), I64(1)) as rest, self.loop(given.columns, I64(1)) as column:
                first = builder.add(block.index, builder.add(whole, rest.index))
                self.add([column.index], 1, given, first, block)
        with self.loop(builder.mul(given.vectors, given.own_columns), I64(1), [self.zero()]) as loop:
            total = self.load(self.element_at(given.totals, builder.mul(loop.index, I64(self.lanes))))
            loop.keep([builder.fadd(loop.values[0], builder.fmul(total, self.zero()))])
        self.store_first(self.added_lanes(loop.values[0]), given.check)

    def channels_together(self, count):
        """Whose rows are read side by side for so many columns."""
        fits = 2 * TERMS * count * self.registers <= target.vector_registers()
        return min((2 * TERMS if fits else TERMS) // self.taps, MOST_CHANNELS)

    def start(self, given):
        """Begin all totals with the bias, or with 0, but never with -0."""
        builder = self.builder
        channels = [self.channel_of(lane) for lane in range(self.lanes)]
        none = builder.icmp_signed("==", given.bias, I64(0))
        bias, step = (builder.select(none, *pair) for pair in ((self.places[0], given.bias), (I64(0), given.bias_step)))
        with self.loop(given.vectors, I64(1)) as vector:
            first = builder.mul(vector.index, I64(channels[-1] + 1))
            value = ir.Constant(self.vector, ir.Undefined)
            for c in range(channels[-1] + 1):
                at = builder.add(bias, builder.mul(builder.add(first, I64(c)), step))
                scalar = builder.load(builder.inttoptr(at, self.element.as_pointer()), align=self.size)
                value = builder.insert_element(value, scalar, I32(c))
            value = builder.fadd(self.permuted(value, value, channels), self.zero())
            with self.loop(given.columns, I64(1)) as column:
                place = builder.add(vector.index, builder.mul(column.index, given.vectors))
                self.store(value, self.element_at(given.totals, builder.mul(place, I64(self.lanes))))

    def add(self, columns, together, given, first, block):
        """Add what some channels contribute to the sums of their block of terms, and with the last these to totals."""
        builder = self.builder
        begins = builder.icmp_signed("==", first, block.index)
        ends = builder.icmp_signed("==", builder.add(first, I64(together)), block.end)
        none, step = I64(0), I64(self.lanes * self.size)
        before = builder.select(begins, self.places[0], given.sums), builder.select(begins, none, step)
        beside = builder.select(ends, given.totals, self.places[1]), builder.select(ends, step, none)
        after = builder.select(ends, given.totals, given.sums), step
        samples = []
        for r in range(together * self.taps):
            term = builder.add(builder.mul(first, I64(self.taps)), I64(r))
            at = self.element_at(given.slab, self.index_at(given.offsets, term))
            samples.append([self.broadcast_at(self.element_at(at, c), 0) for c in columns])
        rows = [
            self.element_at(given.weight, builder.mul(builder.add(first, I64(g)), given.channel_step))
            for g in range(together)
        ]
        starts = [builder.mul(given.vectors, c) for c in columns]
        with self.loop(given.vectors, I64(1)) as vector:

            def places(array):
                address, step = array
                return [builder.add(address, builder.mul(builder.add(start, vector.index), step)) for start in starts]

            self.barrier()  # else LLVM writes the loop several times, which takes long
            sums = [self.load(place) for place in places(before)]
            for g, row in enumerate(rows):
                at = self.element_at(row, builder.mul(vector.index, I64(self.weights)))
                for weights, own in zip(self.weights_of_taps(at), samples[g * self.taps :], strict=False):
                    pairs = zip(own, sums, strict=True)
                    sums = [builder.call(self.fma, [weights, sample, value]) for sample, value in pairs]
            for value, other, place in zip(sums, places(beside), places(after), strict=True):
                self.store(builder.fadd(self.load(other), value), place)

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
        """The vector and its lane where a lane's weight lies."""
        phase = min(lane % self.width, self.rows - 1) % self.run
        return divmod((self.channel_of(lane) * self.taps + tap) * self.run + phase, self.lanes)

    def channel_of(self, lane):
        """The channel of a lane, counted from its vector's first; for lanes beyond a tile's rows, its last one's."""
        tile, row = lane // self.width, min(lane % self.width, self.rows - 1)
        return (tile * self.rows + row) // self.run


@functools.cache
def _compile(double: int, lanes: int, rows: int, run: int, taps: int, block: int) -> Any:
    def function(given):
        unpacked_tile(double, lanes, rows, run, taps, block, given)

    with compiling:
        return emitted_function(
            function, ROWS_SIGNATURE, f"unpacked_tiles.unpacked_tile-{double}-{lanes}-{rows}-{run}-{taps}-{block}"
        )


def unpacked_tiles(itemsize: int, lanes: int, rows: int, run: int, taps: int, block: int) -> int:
    """Address of the function that computes tiles of few columns whose weights are read where they are."""
    return int(_compile(int(itemsize == 8), lanes, rows, run, taps, block).address)
