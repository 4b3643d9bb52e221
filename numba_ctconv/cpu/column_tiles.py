"""The tile of few columns, whose lanes run over the rows of panels. Called by address.

Where columns are few, those of microkernels.py would compute a vector of them all the same. This one sums in their
order, so it gives their bits.
"""

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..forks import compiling
from . import target
from .emitter import I64, TILE_SIGNATURE, Emitter, emitted_function
from .microkernels import PANEL_AHEAD
from .target import CACHE_LINE

# Columns that a tile may have: what chunks of 1, 2, 4 and 8 samples reach, and the one that whole vectors leave over.
COLUMNS = (1, 2, 3, 5, 9)
PAIRED_COLUMNS = (3, 5, 9)  # and those in which it takes less time to multiply only what meets a sample
VECTORS = 4  # of a column
NEAR_COLUMNS = 2  # up to which weights are met as fast as they come:
NEAR_AHEAD = 256  # bytes of a panel that are asked for ahead, where prefetchers do more


@intrinsic(prefer_literal=True)
def column_tile(
    typingctx, double, lanes, rows, paired, panels, slab, offsets, terms, block, start, given, out, columns
):  # fmt: skip
    """Emit the tile of few columns, of some panels at once, which lie at the addresses that lie at `panels`.

    It starts from start[tile·width + m], or where `start` is 0 from what is there, and stores
    out[(c·tiles + tile)·width + m], not interleaved, where `width` is that of panel_width and `tiles` are few_tiles.
    So many of these are `given`; what the others store is of no consequence, as is what is read beyond the rows.
    Where terms are `paired` and `columns` below 0, there are as many, in which terms meet what columns_met says.
    """

    def codegen(context, builder, signature, args):
        emit = ColumnTile(builder, double.literal_value, lanes.literal_value, rows.literal_value)
        *operands, columns = args[4:]
        for fewer, count in zip((0, *COLUMNS), COLUMNS, strict=False):
            own = builder.icmp_signed(">", columns, I64(fewer)), builder.icmp_signed("<=", columns, I64(count))
            with builder.if_then(builder.and_(*own)):
                emit.write([range(count)], *operands)
        for count in PAIRED_COLUMNS if paired.literal_value else ():
            with builder.if_then(builder.icmp_signed("==", columns, I64(-count))):
                emit.write(columns_met(count), *operands)
        return context.get_dummy_value()

    return types.void(double, lanes, rows, paired, *[types.int64] * 9), codegen


def columns_met(count: int) -> list[range]:
    """The columns in which terms meet samples, in turn, where they are pairs of taps that meet an item from end to end.

    The first tap meets nothing in the last column, and the second one, which comes later, nothing in the first.
    """
    return [range(count - 1), range(1, count)]


def panel_width(rows: int) -> int:
    """Elements of a vector that holds the rows of a panel."""
    return 1 << (rows - 1).bit_length()


def panels_joined(lanes: int, rows: int) -> int:
    """Panels whose rows a vector holds side by side: two where it has room."""
    return 2 if 2 * panel_width(rows) <= lanes else 1


def few_tiles(lanes: int, rows: int) -> int:
    """Panels that a tile of few columns takes: a few vectors of them."""
    return VECTORS * panels_joined(lanes, rows)


def fit_together(lanes: int, rows: int, count: int) -> bool:
    """Whether the sums of two vectors of so many columns fit the registers, beside those and a sample."""
    registers = -(-panels_joined(lanes, rows) * panel_width(rows) // lanes)  # of one vector
    return 2 * registers * (count + 1) + 1 <= target.vector_registers()


def few_columns(lanes: int, rows: int) -> int:
    """Columns up to which lanes over the rows of a tile are better filled than lanes over time."""
    fitting = [count for count in COLUMNS if fit_together(lanes, rows, count)]
    return min(rows + 1, max(fitting, default=COLUMNS[0]))


class ColumnTile(Emitter):
    """Writes the code of a tile of few columns.

    Its sums are so few that they would wait for each other, and each sample is loaded for all of them: so it takes two
    vectors side by side. Where a vector has room for a column of two panels, it holds both.
    """

    def __init__(self, builder: Any, double: int, lanes: int, rows: int) -> None:
        self.rows, self.width, self.each = rows, panel_width(rows), panels_joined(lanes, rows)
        self.together = [count for count in COLUMNS if fit_together(lanes, rows, count)]
        super().__init__(builder, double, self.each * self.width)

    def write(self, met, panels, slab, offsets, terms, block, start, given, out):
        """Write the tile of some columns, of which the terms meet, in turn, those in `met`."""
        builder, count = self.builder, met[-1].stop
        together = 2 if count in self.together else 1  # of the vectors
        own_panels = together * self.each
        with self.loop(given, I64(own_panels)) as loop:
            own = [self.index_at(panels, builder.add(loop.index, I64(k))) for k in range(own_panels)]
            first = builder.mul(loop.index, I64(self.width))
            places = {
                (t, c): self.element_at(out, builder.add(first, I64((c * VECTORS + t) * self.lanes)))
                for t in range(together)
                for c in range(count)
            }
            with builder.if_then(builder.icmp_signed("!=", start, I64(0))):
                for (t, _), place in places.items():
                    less = self.load(self.element_at(start, builder.add(first, I64(t * self.lanes))))
                    self.store(builder.fneg(less), place)
            self.add(met, own, slab, offsets, terms, block, places)

    def add(self, met, panels, slab, offsets, terms, block, places):
        """Add what some panels contribute, a block of terms after the other, to what lies at places: of (t, c)."""
        builder = self.builder
        ahead = NEAR_AHEAD if target.follows_streams() and len(met[0]) <= NEAR_COLUMNS else PANEL_AHEAD
        with self.loop(terms, block) as blocks:
            own_terms = builder.sub(blocks.end, blocks.index)
            with self.loop(own_terms, I64(len(met)), [self.zero()] * len(places)) as own:
                r = builder.add(blocks.index, own.index)
                weights = [self.element_at(address, builder.mul(r, I64(self.rows))) for address in panels]
                self.ask_ahead(weights, r, len(met), ahead)
                sums = self.add_term(met[0], weights, self.index_at(offsets, r), own.values, slab, places)
                for k, columns in enumerate(met[1:], 1):
                    following = builder.add(own.index, I64(k))  # is there: else LLVM would load its weights too soon
                    own.go_on_if(builder.icmp_signed("<", following, own_terms), sums)
                    weights = [self.element_at(address, I64(self.rows)) for address in weights]
                    offset = self.index_at(offsets, builder.add(r, I64(k)))
                    sums = self.add_term(columns, weights, offset, sums, slab, places)
                own.keep(sums)
            for place, partial in zip(places.values(), own.values, strict=True):
                self.store(builder.fadd(self.load(place), partial), place)

    def ask_ahead(self, weights, r, count, ahead):
        """Ask for later weights of as many terms as lie there from term r on, whose addresses in panels are given."""
        lines = range(0, count * self.rows * self.size, CACHE_LINE)
        if count == 1:
            weights, lines = self.every_second(weights, self.rows, r), lines[:1]
        for line in lines:
            for address in weights:
                self.prefetch(self.builder.add(address, I64(ahead + line)), write=False)

    def add_term(self, columns, weights, offset, sums, slab, places):
        """The sums, of those at places, with a term's products in some columns."""
        builder = self.builder
        sums = dict(zip(places, sums, strict=True))
        w = [self.joined(*weights[t : t + self.each]) for t in range(0, len(weights), self.each)]
        at = self.element_at(slab, offset)
        for c in columns:  # in turn, else LLVM would hold all of a term's samples and spill a sum
            sample = self.broadcast_at(at, c)
            for weight, cell in zip(w, [cell for cell in places if cell[1] == c], strict=True):
                sums[cell] = builder.call(self.fma, [weight, sample, sums[cell]])
        return list(sums.values())

    def joined(self, *addresses):
        """What lies at an address or, in the halves of a vector, at two."""
        if len(addresses) == 1:
            return self.load(*addresses)
        kind = ir.VectorType(self.element, self.width).as_pointer()
        halves = [self.builder.load(self.builder.inttoptr(at, kind), align=self.size) for at in addresses]
        return self.permuted(*halves, list(range(self.lanes)))


@functools.cache
def _compile(double: int, lanes: int, rows: int, paired: int) -> Any:
    def function(panels, slab, offsets, terms, block, start, given, out, columns):
        column_tile(double, lanes, rows, paired, panels, slab, offsets, terms, block, start, given, out, columns)

    with compiling:
        return emitted_function(function, TILE_SIGNATURE, f"column_tiles.column_tile-{double}-{lanes}-{rows}-{paired}")


def column_tiles(itemsize: int, lanes: int, rows: int, *, paired: bool) -> int:
    """Address of the tile of few columns, `paired` where a channel's terms are two taps."""
    return int(_compile(int(itemsize == 8), lanes, rows, int(paired)).address)
