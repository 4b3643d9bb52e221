"""Tiles that sum up one block of terms: rows of them, and several above each other. Called by address.

Where many rows are read in place, a tile by itself would read a little of each, one after the other, which no
prefetcher follows; a row of tiles reads few of them, far. It sums in the order of the tiles, so it gives their bits.
"""

import functools
from typing import Any

from numba import types
from numba.extending import intrinsic

from ..forks import compiling
from .emitter import I64, TILE_SIGNATURE, emitted_function
from .microkernels import PANEL_AHEAD, Shape, Tile


@intrinsic(prefer_literal=True)
def tile_row(
    typingctx, double, lanes, rows, vectors, phases, slots, panel, slab, offsets, terms, count, start, sums, out, step
):
    """Emit one block of terms of a row of so many tiles; the first six arguments are compile-time integers.

    Each tile has sums of its own, one after the other. They begin with this block where `start` is an address, and
    are stored in `out` with it where that is one; else both are 0.
    """
    shape = Shape(*(literal.literal_value for literal in (double, lanes, rows, vectors, phases, slots)))

    def codegen(context, builder, signature, args):
        TileRow(builder, shape).write(*args[6:])
        return context.get_dummy_value()

    return types.void(double, lanes, rows, vectors, phases, slots, *[types.int64] * 9), codegen


class TileRow(Tile):
    """Writes the code of one block of terms of a row of tiles."""

    def write(self, panel, slab, offsets, terms, count, start, sums, out, channel_stride):
        builder, shape = self.builder, self.shape
        columns = shape.vectors * shape.lanes
        with self.loop(count, I64(1)) as loop:
            column = builder.mul(loop.index, I64(columns))
            own_sums = self.element_at(sums, builder.mul(loop.index, I64(columns * shape.rows)))
            own_out = builder.mul(column, I64(shape.slots))
            self.add_block(
                panel, self.element_at(slab, column), offsets, terms, start, own_sums, out, own_out, channel_stride
            )

    def add_block(self, panel, slab, offsets, terms, start, sums, out, place, channel_stride):
        """One block of terms of one tile, which is stored from element `place` of `out` on."""
        builder, shape = self.builder, self.shape
        begins, ends = (builder.icmp_signed("!=", address, I64(0)) for address in (start, out))
        with builder.if_then(builder.and_(ends, builder.not_(begins))):  # a tile of one block soon stores: in vain
            self.ask_for(self.element_at(out, place), channel_stride)
        partial = self.block(panel, slab, offsets, I64(0), terms)
        first, later, following = (builder.append_basic_block(f"row.{name}") for name in ("first", "later", "next"))
        builder.cbranch(begins, first, later)
        total = self.either(
            following,
            (first, lambda m, v: builder.fsub(partial[m][v], self.broadcast_at(start, m))),
            (later, lambda m, v: builder.fadd(partial[m][v], self.load(self.sum_at(sums, m, v)))),
        )
        with builder.if_else(ends) as (last, wait):
            with last:
                self.keep(total, self.element_at(out, place), channel_stride)
            with wait:
                for m in range(shape.rows):
                    for v in range(shape.vectors):
                        self.store(total[m][v], self.sum_at(sums, m, v))


@intrinsic(prefer_literal=True)
def tall_tile(
    typingctx, double, lanes, rows, tiles, phases, slots, panels, slab, offsets, terms, begin, start, sums, out, step
):
    """Emit one block of terms of so many tiles of one vector at once; the first six arguments are known by then.

    Their panels lie at the addresses that lie at `panels`, and the block's terms in them from `begin` on. Start, sums
    and out are as those of a tile_row of one tile that has the rows of all.
    """
    values = [literal.literal_value for literal in (double, lanes, rows, phases, slots)]

    def codegen(context, builder, signature, args):
        double, lanes, rows, phases, slots = values
        shape = Shape(double, lanes, rows * tiles.literal_value, 1, phases, slots)
        TallTile(builder, shape, rows).write(*args[6:])
        return context.get_dummy_value()

    return types.void(double, lanes, rows, tiles, phases, slots, *[types.int64] * 9), codegen


class TallTile(TileRow):
    """Writes the code of one block of terms of tiles of one vector, whose sums alone would wait for each other."""

    def __init__(self, builder: Any, shape: Shape, panel_rows: int) -> None:
        super().__init__(builder, shape)
        self.panel_rows = panel_rows

    def write(self, panels, slab, offsets, terms, begin, start, sums, out, channel_stride):
        first = self.builder.mul(begin, I64(self.panel_rows))
        own = [self.element_at(panel, first) for panel in self.given(panels, self.shape.rows // self.panel_rows)]
        self.add_block(own, slab, offsets, terms, start, sums, out, I64(0), channel_stride)

    def weights(self, panel, r):
        own = [self.element_at(address, self.builder.mul(r, I64(self.panel_rows))) for address in panel]
        for weights in self.every_second(own, self.panel_rows, r):
            self.prefetch(self.builder.add(weights, I64(PANEL_AHEAD)), write=False)
        return [(weights, m) for weights in own for m in range(self.panel_rows)]


@functools.cache
def _compile_tall(double: int, lanes: int, rows: int, tiles: int, phases: int, slots: int) -> Any:
    def function(panels, slab, offsets, terms, begin, start, sums, out, channel_stride):
        tall_tile(
            double, lanes, rows, tiles, phases, slots, panels, slab, offsets, terms, begin, start, sums, out,
            channel_stride,
        )  # fmt: skip

    with compiling:
        return emitted_function(
            function, TILE_SIGNATURE, f"tile_rows.tall_tile-{double}-{lanes}-{rows}-{tiles}-{phases}-{slots}"
        )


def tall_tiles(itemsize: int, lanes: int, rows: int, tiles: int, phases: int, slots: int) -> int:
    """Address of the tile of one vector and so many panels; 0 where it would be of one."""
    if tiles == 1:
        return 0
    return int(_compile_tall(int(itemsize == 8), lanes, rows, tiles, phases, slots).address)


@functools.cache
def _compile_row(double: int, lanes: int, rows: int, vectors: int, phases: int, slots: int) -> Any:
    def function(panel, slab, offsets, terms, count, start, sums, out, channel_stride):
        tile_row(
            double, lanes, rows, vectors, phases, slots, panel, slab, offsets, terms, count, start, sums, out,
            channel_stride,
        )  # fmt: skip

    with compiling:
        return emitted_function(
            function, TILE_SIGNATURE, f"tile_rows.tile_row-{double}-{lanes}-{rows}-{vectors}-{phases}-{slots}"
        )


def rows_of_tiles(itemsize: int, lanes: int, rows: int, vectors: int, phases: int, slots: int) -> int:
    """Address of the rows of full tiles."""
    return int(_compile_row(int(itemsize == 8), lanes, rows, vectors, phases, slots).address)
