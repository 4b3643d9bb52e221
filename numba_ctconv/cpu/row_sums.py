"""Vector code that adds up: rows into a sum a lane, and those lanes. Called by address.

Which lane a sample joins depends on its place in its row alone. A function takes the address of its arguments, int64
each, in the order of the classes here: addresses and distances in bytes, everything else in elements.
"""

import functools
from typing import Any, NamedTuple

from numba import types
from numba.extending import intrinsic

from ..forks import compiling
from . import target
from .emitter import I64, ROWS_SIGNATURE, Emitter, emitted_function

CHAINS = 4  # sums of a lane, none of which waits for another
STRETCH = 512 * CHAINS  # samples after which they join the others
AHEAD = 4096  # bytes: time enough for memory


class Rows(NamedTuple):
    """What the addition of rows takes."""

    source: Any
    channel: Any  # distance of two rows
    channels: Any
    length: Any
    sums: Any  # (channels, lanes)


class Lanes(NamedTuple):
    """What the addition of lanes takes."""

    sums: Any  # (count, lanes)
    count: Any
    totals: Any


@intrinsic(prefer_literal=True)
def add_rows(typingctx, double, lanes, given):
    """Emit sums[channel, lane] += Σ_l source[channel, l] over the l of a lane."""

    def codegen(context, builder, signature, args):
        emit = Emitter(builder, double.literal_value, lanes.literal_value)
        given = Rows._make(emit.given(args[2], len(Rows._fields)))
        step = CHAINS * emit.lanes
        whole = builder.and_(given.length, I64(-step))  # a power of two
        with emit.loop(given.channels, I64(1)) as channel:
            row = builder.add(given.source, builder.mul(channel.index, given.channel))
            place = emit.element_at(given.sums, builder.mul(channel.index, I64(emit.lanes)))
            with emit.loop(whole, I64(STRETCH), [emit.load(place)]) as stretch:
                start = emit.element_at(row, stretch.index)
                count = builder.sub(stretch.end, stretch.index)
                with emit.loop(count, I64(step), [emit.zero()] * CHAINS) as loop:
                    at = emit.element_at(start, loop.index)
                    places = [emit.element_at(at, I64(k * emit.lanes)) for k in range(CHAINS)]
                    for address in places:
                        emit.prefetch(builder.add(address, I64(AHEAD)), write=False)
                    pairs = zip(loop.values, places, strict=True)
                    loop.keep([builder.fadd(total, emit.load(address)) for total, address in pairs])
                stretch.keep([functools.reduce(builder.fadd, loop.values, stretch.values[0])])
            with emit.loop(builder.sub(given.length, whole), I64(emit.lanes), stretch.values) as loop:
                first = builder.add(whole, loop.index)
                rest = emit.load_some(emit.element_at(row, first), emit.lanes_within(first, given.length))
                loop.keep([builder.fadd(loop.values[0], rest)])
            emit.store(loop.values[0], place)
        return context.get_dummy_value()

    return types.void(double, lanes, types.int64), codegen


@intrinsic(prefer_literal=True)
def add_lanes(typingctx, double, lanes, given):
    """Emit totals[j] = Σ_lane sums[j, lane]."""

    def codegen(context, builder, signature, args):
        emit = Emitter(builder, double.literal_value, lanes.literal_value)
        given = Lanes._make(emit.given(args[2], len(Lanes._fields)))
        with emit.loop(given.count, I64(1)) as loop:
            value = emit.load(emit.element_at(given.sums, builder.mul(loop.index, I64(emit.lanes))))
            emit.store_first(emit.added_lanes(value), emit.element_at(given.totals, loop.index))
        return context.get_dummy_value()

    return types.void(double, lanes, types.int64), codegen


def rows(itemsize: int) -> int:
    """The address of the addition of rows."""
    return int(_compile("rows", int(itemsize == 8), target.vector_bytes() // itemsize).address)


def lanes(itemsize: int) -> int:
    """The address of the addition of lanes."""
    return int(_compile("lanes", int(itemsize == 8), target.vector_bytes() // itemsize).address)


@functools.cache
def _compile(what: str, double: int, width: int) -> Any:
    emit = {"rows": add_rows, "lanes": add_lanes}[what]

    def function(given):
        emit(double, width, given)

    with compiling:
        return emitted_function(function, ROWS_SIGNATURE, f"row_sums.{what}-{double}-{width}")
