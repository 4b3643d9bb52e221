"""Rows of register tiles, which sum up a block of terms before any of them sums up the next. Compiled to C functions.

Where many rows are read in place, a tile by itself would read a little of each, one after the other, which no
prefetcher follows; a row of tiles reads few of them, far. It sums in the order of the tiles, so it gives their bits.
"""

import functools
from typing import Any

from numba import types
from numba.extending import intrinsic

from ..forks import compiling
from .emitter import I64, c_function
from .microkernels import SIGNATURE, Shape, Tile


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

    tiles_ahead = 2  # each takes but as long as one block

    def write(self, panel, slab, offsets, terms, count, start, sums, out, channel_stride):
        builder, shape = self.builder, self.shape
        begins, ends = (builder.icmp_signed("!=", address, I64(0)) for address in (start, out))
        columns = shape.vectors * shape.lanes
        with self.loop(count, I64(1)) as loop:
            column = builder.mul(loop.index, I64(columns))
            own_sums = self.element_at(sums, builder.mul(loop.index, I64(columns * shape.rows)))
            partial = self.block(panel, self.element_at(slab, column), offsets, I64(0), terms)
            first, later, following = (builder.append_basic_block(f"row.{name}") for name in ("first", "later", "next"))
            builder.cbranch(begins, first, later)
            total = self.either(
                following,
                (first, lambda m, v: builder.fsub(partial[m][v], self.broadcast_at(start, m))),
                (later, lambda m, v: builder.fadd(partial[m][v], self.load(self.sum_at(own_sums, m, v)))),
            )
            with builder.if_else(ends) as (last, wait):
                with last:
                    self.keep(total, self.element_at(out, builder.mul(column, I64(shape.slots))), channel_stride)
                with wait:
                    for m in range(shape.rows):
                        for v in range(shape.vectors):
                            self.store(total[m][v], self.sum_at(own_sums, m, v))


@functools.cache
def _compile_row(double: int, lanes: int, rows: int, vectors: int, phases: int, slots: int) -> Any:
    def function(panel, slab, offsets, terms, count, start, sums, out, channel_stride):
        tile_row(
            double, lanes, rows, vectors, phases, slots, panel, slab, offsets, terms, count, start, sums, out,
            channel_stride,
        )  # fmt: skip

    with compiling:
        return c_function(function, SIGNATURE, f"tile_rows.tile_row-{double}-{lanes}-{rows}-{vectors}-{phases}-{slots}")


def rows_of_tiles(itemsize: int, lanes: int, rows: int, vectors: int, phases: int, slots: int) -> int:
    """Address of the rows of full tiles."""
    return int(_compile_row(int(itemsize == 8), lanes, rows, vectors, phases, slots).address)
