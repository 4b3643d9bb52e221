"""Vector code that only moves: rows interleaved, and runs laid out at another distance. Called by address.

The packing and storing of the tiled kernels call them where the memory is contiguous in time; the loops of those
kernels do the same for any memory. Addresses are int64, counts and distances are in elements.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic

from ..forks import compiling
from . import target
from .emitter import I64, ROWS_SIGNATURE, Emitter, emitted_function
from .padded_moves import compile_lay_rows, compile_part_rows

MOST_ROWS = 12
ROWS_AHEAD = 2  # of a weight, that are asked for while one is packed
MOST_GATHERED = 4  # vectors, of any of which an element of another may come
LONGEST_RUN = 32
AHEAD = 1024  # bytes that are asked for ahead
LEAST_PARTED = 32  # bytes of a vector, of which x86 loads and stores some lanes alone
# source, its step, count, target, its step
SIGNATURE = types.void(*[types.int64] * 5)
# source, step and count of term channels, step and count of tiles, step of panels, target
PACK_SIGNATURE = types.void(*[types.int64] * 7)


@intrinsic(prefer_literal=True)
def interleave(typingctx, double, lanes, rows, source, source_step, count, target, target_step):
    """Emit target[t·rows + m] = source[m·source_step + t] for t below count.

    The step of the target is the number of rows, whatever is passed. Where the count is no multiple of the lanes, what
    would be stored for those up to one is stored, too, as zero.
    """

    def codegen(context, builder, signature, args):
        source, source_step, count, target, _ = args[3:]
        emit = Emitter(builder, double.literal_value, lanes.literal_value)
        streams = range(rows.literal_value)

        def write(t, load):
            at = [emit.element_at(source, builder.add(t, builder.mul(source_step, I64(m)))) for m in streams]
            to = emit.element_at(target, builder.mul(t, I64(len(streams))))
            for k, value in enumerate(emit.interleaved([[load(address)] for address in at])):
                emit.store(value, emit.element_at(to, I64(k * emit.lanes)))

        whole = builder.and_(count, I64(-emit.lanes))
        with emit.loop(whole, I64(emit.lanes)) as loop:
            write(loop.index, emit.load)
        with builder.if_then(builder.icmp_signed("<", whole, count)):
            there = emit.lanes_within(whole, count)
            write(whole, lambda address: emit.load_some(address, there))
        return context.get_dummy_value()

    return types.void(double, lanes, rows, *[types.int64] * 5), codegen


@intrinsic(prefer_literal=True)
def part_strips(typingctx, double, lanes, planes, values):
    """Emit target[m·target_step + p·plane_step + s·target_strip + t] = source[m·source_step + s·strip + t·planes + p].

    For p < planes, t < count, which is a vector's lanes or more, and all strips s of all rows m. `values` is the
    address of: source, its step, the number of rows m, the number of strips, the distance of theirs in the source,
    target, its step, that of its planes, that of its strips, count. All steps and distances are in bytes. A row of the
    source is read on through all strips.
    """

    def codegen(context, builder, signature, args):
        emit = Emitter(builder, double.literal_value, lanes.literal_value)
        streams = range(planes.literal_value)
        (
            source, source_step, rows, strips, source_strip, target, target_step, plane_step, target_strip, count,
        ) = emit.given(args[3], 10)  # fmt: skip
        last = builder.sub(count, I64(emit.lanes))
        with emit.loop(rows, I64(1)) as row, emit.loop(strips, I64(1)) as strip:
            start = builder.add(
                builder.add(source, builder.mul(row.index, source_step)), builder.mul(strip.index, source_strip)
            )
            own_target = builder.add(
                builder.add(target, builder.mul(row.index, target_step)), builder.mul(strip.index, target_strip)
            )
            with emit.loop(count, I64(emit.lanes)) as loop:
                # the last vector ends with the strip, and stores again what the one before it has stored
                t = builder.select(builder.icmp_signed("<", loop.index, last), loop.index, last)
                first = emit.element_at(start, builder.mul(t, I64(len(streams))))
                at = [emit.element_at(first, I64(v * emit.lanes)) for v in streams]
                for address in at:
                    emit.prefetch(builder.add(address, source_step), write=False)
                for p, value in enumerate(emit.deinterleaved([emit.load(address) for address in at])):
                    to = emit.element_at(own_target, t)
                    emit.store(value, builder.add(to, builder.mul(plane_step, I64(p))))
        return context.get_dummy_value()

    return types.void(double, lanes, planes, types.int64), codegen


@intrinsic(prefer_literal=True)
def transpose(typingctx, double, lanes, source, source_step, count, target, target_step):
    """Emit target[t, m] = source[m, t] for m below lanes and t below count, a multiple of the lanes.

    The steps of rows are in bytes: what is one element here may be two of an array, and rows begin at any of those.
    """

    def codegen(context, builder, signature, args):
        source, source_step, count, target, target_step = args[2:]
        emit = Emitter(builder, double.literal_value, lanes.literal_value)
        with emit.loop(count, I64(emit.lanes)) as loop:
            start = emit.element_at(source, loop.index)
            rows = [builder.add(start, builder.mul(source_step, I64(m))) for m in range(emit.lanes)]
            for k, value in enumerate(emit.interleaved([[emit.load(row)] for row in rows])):
                t = builder.add(loop.index, I64(k))
                emit.store(value, builder.add(target, builder.mul(t, target_step)))
        return context.get_dummy_value()

    return types.void(double, lanes, *[types.int64] * 5), codegen


@intrinsic(prefer_literal=True)
def lay_out(typingctx, double, run, asks, source, source_step, count, target, target_step):
    """Emit target[j·target_step + p] = source[j·source_step + p] for j below count and p below run.

    Where it `asks`, it asks for what it will write, which then is new to the caches.
    """

    def codegen(context, builder, signature, args):
        source, source_step, count, target, target_step = args[3:]
        emit = Emitter(builder, double.literal_value, run.literal_value)
        with emit.loop(count, I64(1)) as loop:
            j = loop.index
            value = emit.load(emit.element_at(source, builder.mul(j, source_step)))
            to = emit.element_at(target, builder.mul(j, target_step))
            if asks.literal_value:
                emit.prefetch(builder.add(to, I64(AHEAD)), write=True)
            emit.store(value, to)
        return context.get_dummy_value()

    return types.void(double, run, asks, *[types.int64] * 5), codegen


@intrinsic(prefer_literal=True)
def pack_runs(typingctx, double, run, channels, values):
    """Emit target[tile·panel_step + ((i·taps + m)·channels + c)·run + p], p < run, c < channels, m < taps.

    What goes there is source[i·inner_step + tile·tile_step + c·channel_step + m·tap_step + p]. `values` is the address
    of: source, inner_step, how many i there are, tile_step, tiles, panel_step, channel_step, tap_step, taps, target. A
    row of the source is read on through all tiles.
    """

    def codegen(context, builder, signature, args):
        emit = Emitter(builder, double.literal_value, run.literal_value)
        (
            source, inner_step, inner, tile_step, tiles, panel_step, channel_step, tap_step, taps, target,
        ) = emit.given(args[3], 10)  # fmt: skip
        rows = range(channels.literal_value)
        ahead = builder.mul(inner_step, I64(ROWS_AHEAD))
        with emit.loop(inner, I64(1)) as i, emit.loop(taps, I64(1)) as m:
            term = builder.add(builder.mul(i.index, taps), m.index)
            panel = emit.element_at(target, builder.mul(term, I64(len(rows) * emit.lanes)))
            offset = builder.add(builder.mul(i.index, inner_step), builder.mul(m.index, tap_step))
            row = emit.element_at(source, offset)
            with emit.loop(tiles, I64(1)) as tile:
                start = emit.element_at(row, builder.mul(tile.index, tile_step))
                to = emit.element_at(panel, builder.mul(tile.index, panel_step))
                at = [emit.element_at(start, builder.mul(channel_step, I64(c))) for c in rows]
                for address in at:
                    emit.prefetch(emit.element_at(address, ahead), write=False)
                values = [emit.load(address) for address in at]
                for c, value in enumerate(values):
                    emit.store(value, emit.element_at(to, I64(c * emit.lanes)))
        return context.get_dummy_value()

    return types.void(double, run, channels, types.int64), codegen


@intrinsic(prefer_literal=True)
def pack_whole(
    typingctx, double, lanes, run, channels, taps, source, inner_step, inner, tile_step, tiles, panel_step, target
):
    """Emit target[tile·panel_step + (i·taps + m)·rows + c·run + p] of so many tiles, of rows = channels·run each.

    What goes there is source[i·inner_step + tile·tile_step + (c·taps + m)·run + p], p < run, c < channels, m < taps:
    what `pack_runs` does where the runs of all taps lie side by side. Vectors are moved, whose elements change places,
    and a row of the source is read on through all tiles.
    """

    def codegen(context, builder, signature, args):
        emit = Emitter(builder, *(value.literal_value for value in (double, lanes)))
        own_run, own_channels, own_taps = (value.literal_value for value in (run, channels, taps))
        source, inner_step, inner, tile_step, tiles, panel_step, target = args[5:]
        rows = own_run * own_channels
        size = rows * own_taps
        there = [[v * emit.lanes + k < size for k in range(emit.lanes)] for v in range(-(-size // emit.lanes))]
        ahead = builder.mul(inner_step, I64(ROWS_AHEAD))
        beyond = len(there) * emit.lanes - size  # what the last vector of a channel stores of those after it
        early = builder.sub(inner, I64(-(-beyond // size)))
        early = builder.select(builder.icmp_signed(">", early, I64(0)), early, I64(0))

        def write(i, *, last):
            row = emit.element_at(source, builder.mul(i, inner_step))
            panel = emit.element_at(target, builder.mul(i, I64(size)))
            with emit.loop(tiles, I64(1)) as tile:
                start = emit.element_at(row, builder.mul(tile.index, tile_step))
                to = emit.element_at(panel, builder.mul(tile.index, panel_step))
                at = [emit.element_at(start, I64(v * emit.lanes)) for v in range(len(there))]
                for address in at:
                    emit.prefetch(emit.element_at(address, ahead), write=False)
                vectors = [
                    emit.load(address) if all(kept) else emit.load_some(address, emit.constant_lanes(kept))
                    for address, kept in zip(at, there, strict=True)
                ]
                for v, kept in enumerate(there):
                    places = []
                    for t in range(v * emit.lanes, (v + 1) * emit.lanes):
                        (tap, m), p = divmod(min(t, size - 1), rows), min(t, size - 1) % own_run
                        places.append(divmod((m // own_run * own_taps + tap) * own_run + p, emit.lanes))
                    value, address = emit.gathered(vectors, places), emit.element_at(to, I64(v * emit.lanes))
                    if last and not all(kept):
                        emit.store_some(value, address, emit.constant_lanes(kept))
                    else:  # what is beyond is stored with a later channel
                        emit.store(value, address)

        with emit.loop(early, I64(1)) as loop:
            write(loop.index, last=False)
        with emit.loop(builder.sub(inner, early), I64(1)) as loop:
            write(builder.add(early, loop.index), last=True)
        return context.get_dummy_value()

    return types.void(double, lanes, run, channels, taps, *[types.int64] * 7), codegen


class CompiledMoves:
    """The functions of moves, compiled on first use and kept on disk."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Any] = {}

    def interleave(self, itemsize: int, lanes: int, rows: int) -> int:
        """The address of the move that interleaves so many rows."""
        return self._address(_compile_interleave, int(itemsize == 8), lanes, rows)

    def part_strips(self, itemsize: int, lanes: int, planes: int) -> int:
        """The address of the move that parts rows into planes, strip by strip; 0 where registers hold too few."""
        return self._address(_compile_part_strips, int(itemsize == 8), lanes, planes) if planes <= MOST_ROWS else 0

    def part_rows(self, itemsize: int, planes: int) -> int:
        """The address of the move that parts short rows, with zeros around, into so many planes.

        0 where they are too many for registers, or where vectors can't be loaded in part.
        """
        if itemsize not in (4, 8) or target.vector_bytes() < LEAST_PARTED or planes > MOST_ROWS:
            return 0
        return self._address(compile_part_rows, int(itemsize == 8), target.vector_bytes() // itemsize, planes)

    def copy_rows(self, itemsize: int) -> int:
        """The address of the same that copies rows as they are."""
        return self.part_rows(itemsize, 1)

    def lay_rows(self, itemsize: int, run: int) -> int:
        """The address of the move of the runs of rows, with zeros around; 0 where they are too long for registers."""
        return self._address(compile_lay_rows, int(itemsize == 8), run) if run <= LONGEST_RUN else 0

    def transpose(self, itemsize: int) -> int:
        """The address of the move that transposes squares of a vector a side; 0 where elements have no such size."""
        if itemsize not in (4, 8):
            return 0
        return self._address(_compile_transpose, int(itemsize == 8), target.vector_bytes() // itemsize)

    def pack_runs(self, itemsize: int, run: int, channels: int) -> int:
        """The address of the packing of panels whose rows are runs of so many channels."""
        return self._address(_compile_pack_runs, int(itemsize == 8), run, channels)

    def pack_whole(self, itemsize: int, run: int, channels: int, taps: int) -> int:
        """The address of the same where so many taps of a channel are all it has; 0 where they are too many."""
        lanes = target.vector_bytes() // itemsize
        if itemsize not in (4, 8) or not 0 < run * channels * taps <= lanes * MOST_GATHERED:
            return 0
        return self._address(_compile_pack_whole, int(itemsize == 8), lanes, run, channels, taps)

    def lay_out(self, itemsize: int, run: int, *, asks: bool = False) -> int:
        """The address of the move of runs of such a length; 0 where they are too long for registers."""
        return self._address(_compile_lay_out, int(itemsize == 8), run, int(asks)) if run <= LONGEST_RUN else 0

    def _address(self, compiled: Any, *shape: int) -> int:
        key = (compiled, *shape)
        if key not in self._kept:
            with compiling:
                self._kept[key] = self._kept.get(key) or compiled(*shape)
        return int(self._kept[key].address)


moves = CompiledMoves()


def _compile_interleave(double: int, lanes: int, rows: int) -> Any:
    def function(source, source_step, count, target, target_step):
        interleave(double, lanes, rows, source, source_step, count, target, target_step)

    return emitted_function(function, SIGNATURE, f"moves.interleave-{double}-{lanes}-{rows}")


def _compile_part_strips(double: int, lanes: int, planes: int) -> Any:
    def function(values):
        part_strips(double, lanes, planes, values)

    return emitted_function(function, ROWS_SIGNATURE, f"moves.part_strips-{double}-{lanes}-{planes}")


def _compile_transpose(double: int, lanes: int) -> Any:
    def function(source, source_step, count, target, target_step):
        transpose(double, lanes, source, source_step, count, target, target_step)

    return emitted_function(function, SIGNATURE, f"moves.transpose-{double}-{lanes}")


def _compile_lay_out(double: int, run: int, asks: int) -> Any:
    def function(source, source_step, count, target, target_step):
        lay_out(double, run, asks, source, source_step, count, target, target_step)

    return emitted_function(function, SIGNATURE, f"moves.lay_out-{double}-{run}-{asks}")


def _compile_pack_runs(double: int, run: int, channels: int) -> Any:
    def function(values):
        pack_runs(double, run, channels, values)

    return emitted_function(function, ROWS_SIGNATURE, f"moves.pack_runs-{double}-{run}-{channels}")


def _compile_pack_whole(double: int, lanes: int, run: int, channels: int, taps: int) -> Any:
    def function(source, inner_step, inner, tile_step, tiles, panel_step, target):
        pack_whole(double, lanes, run, channels, taps, source, inner_step, inner, tile_step, tiles, panel_step, target)

    return emitted_function(function, PACK_SIGNATURE, f"moves.pack_whole-{double}-{lanes}-{run}-{channels}-{taps}")
