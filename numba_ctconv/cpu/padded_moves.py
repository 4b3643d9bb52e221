"""Vector code that moves rows with zeros around them. Called by address, as those of moves.py.

Addresses and steps are in bytes, and what is no element of a row is not touched. A function takes the address of its
arguments, int64 each.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic

from .emitter import I64, ROWS_SIGNATURE, Emitter, emitted_function


@intrinsic(prefer_literal=True)
def part_rows(typingctx, double, lanes, planes, values):
    """Emit target[m·target_step + p·plane_step + t] = source[m·source_step + t·planes + p], p < planes, t < count.

    0 where that is not one of the elements from `first` to `stop` of a row of the source. `values` is the address of:
    source, its step, first, stop, the number of rows m, target, its step, that of its planes, count. The steps are in
    bytes.
    """

    def codegen(context, builder, signature, args):
        emit = Emitter(builder, double.literal_value, lanes.literal_value)
        streams = range(planes.literal_value)
        source, source_step, first, stop, rows, target, target_step, plane_step, count = emit.given(args[3], 9)
        with emit.loop(count, I64(emit.lanes)) as vector:
            t = vector.index
            start = builder.mul(t, I64(len(streams)))
            begins = [builder.add(start, I64(v * emit.lanes)) for v in streams]
            there = [emit.lanes_within(builder.sub(begin, first), builder.sub(stop, first)) for begin in begins]
            kept = emit.lanes_within(t, count)
            at = [emit.element_at(source, begin) for begin in begins]
            to = [builder.add(emit.element_at(target, t), builder.mul(plane_step, I64(p))) for p in streams]
            # the samples after these: a strip of a slab is followed by the next one, when many rows have been met
            ahead = builder.mul(count, I64(len(streams) * emit.size))
            with emit.loop(rows, I64(1)) as row:
                own, own_to = (builder.mul(row.index, step) for step in (source_step, target_step))
                for a in at:
                    emit.prefetch(builder.add(builder.add(a, own), ahead), write=False)
                vectors = [emit.load_some(builder.add(a, own), some) for a, some in zip(at, there, strict=True)]
                for place, value in zip(to, emit.deinterleaved(vectors), strict=True):
                    emit.store_some(value, builder.add(place, own_to), kept)
        return context.get_dummy_value()

    return types.void(double, lanes, planes, types.int64), codegen


@intrinsic(prefer_literal=True)
def lay_rows(typingctx, double, run, values):
    """Emit target[m·target_step + t·run_step + p] = source[m·source_step + t·period + p], p < run, t < count.

    0 where that is not one of the elements from `first` to `stop` of a row of the source, which can be so where t is
    not from `begin` to `end`. `values` is the address of: source, its step, its period, first, stop, the number of rows
    m, target, its step, that of its runs, begin, end, count. `first` and `stop` count elements.
    """

    def codegen(context, builder, signature, args):
        emit = Emitter(builder, double.literal_value, run.literal_value)
        source, source_step, period, first, stop, rows, target, target_step, run_step, begin, end, count = emit.given(
            args[2], 12
        )
        elements = builder.sdiv(period, I64(emit.size))
        with emit.loop(rows, I64(1)) as row:
            own = builder.add(source, builder.mul(row.index, source_step))
            own_to = builder.add(target, builder.mul(row.index, target_step))

            def place(t):
                return builder.add(own, builder.mul(t, period)), builder.add(own_to, builder.mul(t, run_step))

            for start, stretch_end in ((I64(0), begin), (end, count)):
                with emit.loop(builder.sub(stretch_end, start), I64(1)) as loop:
                    t = builder.add(start, loop.index)
                    at, to = place(t)
                    element = builder.mul(t, elements)
                    there = emit.lanes_within(builder.sub(element, first), builder.sub(stop, first))
                    emit.store(emit.load_some(at, there), to)
            with emit.loop(builder.sub(end, begin), I64(1)) as loop:
                at, to = place(builder.add(begin, loop.index))
                emit.store(emit.load(at), to)
        return context.get_dummy_value()

    return types.void(double, run, types.int64), codegen


def compile_part_rows(double: int, lanes: int, planes: int) -> Any:
    """The move that parts rows into planes."""

    def function(values):
        part_rows(double, lanes, planes, values)

    return emitted_function(function, ROWS_SIGNATURE, f"padded_moves.part_rows-{double}-{lanes}-{planes}")


def compile_lay_rows(double: int, run: int) -> Any:
    """The move that lays runs of rows at another distance."""

    def function(values):
        lay_rows(double, run, values)

    return emitted_function(function, ROWS_SIGNATURE, f"padded_moves.lay_rows-{double}-{run}")
