"""The rows of a depthwise layer: functions that compute many of them, whose taps are fixed when they are compiled.

With one input channel a group there is little to multiply and nothing to pack: a function loads each sample from where
it lies, holds the weights in registers and stores whole vectors. It sums a row's taps in the order of the tiles, so it
gives their bits. What lies outside an array counts as zero; a step that touches an end of one loads and stores only
the lanes that are inside.

A function takes the address of its arguments, int64 each, in the order of the classes here: addresses and distances in
bytes, everything else in elements.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from numba import types
from numba.extending import intrinsic

from ..forks import compiling
from ..geometry import Geometry, Plan, plan
from . import target
from .emitter import I64, ROWS_SIGNATURE, Emitter, emitted_function
from .row_parts import Ends, Planes, load, prefetch, store, vectors_ahead

MOST_TAPS = 32  # one block of terms, so that the order is the tiles'
MOST_PHASES = 12
LONGEST_REACH = 64  # positions; what touches an end is computed with its reach
STRETCH = 512  # positions whose products a lane of a gradient's sums adds up before they join the others


class Rows(NamedTuple):
    """What forward and grad_input take: neighbouring rows of a source and of a target, positions of a row."""

    source: Any  # the first row
    source_channel: Any  # distance of two rows
    source_length: Any
    source_first: Any  # the sample that position 0 takes first: may be outside
    target: Any
    target_channel: Any
    target_length: Any
    target_first: Any  # the sample that position 0 gives first: may be outside
    weights: Any  # (rows, taps)
    bias: Any
    bias_step: Any
    multiplier: Any  # rows of the target to one of the source,
    part: Any  # and of those, how many come before the first one
    rows: Any
    begin: Any  # the positions in [begin, end) are far from either end of both arrays
    end: Any
    positions: Any


class Call(NamedTuple):
    """What the rows of a call have in common: a function of Rows, and which samples its positions take and give."""

    function: int
    step_in: int
    lead: int  # positions before and after its own whose samples a position takes
    tail: int
    crop_in: int
    step_out: int
    crop_out: int
    position: int  # the first one, and how many there are
    positions: int


class Sums(NamedTuple):
    """What grad_weight takes: an item's rows of the input and of the output gradient."""

    input: Any
    input_channel: Any
    input_length: Any
    grad_output: Any
    grad_output_channel: Any
    grad_output_length: Any
    grad_output_first: Any  # the sample that input 0 meets first: may be outside
    sums: Any  # (channels, taps, lanes)
    channels: Any
    begin: Any
    end: Any


def fits(layer: Plan) -> bool:
    """Whether the layer's taps and phases are few enough for code of its own."""
    few = layer.kernel_size <= MOST_TAPS and layer.stride <= MOST_PHASES
    return few and layer.shift(layer.kernel_size - 1) <= LONGEST_REACH


def ahead(layer: Plan, itemsize: int) -> int:
    """Positions after its own whose output gradients a step far from the ends loads."""
    lanes = target.vector_bytes() // itemsize
    return vectors_ahead(layer, lanes) * lanes or layer.shift(layer.kernel_size - 1)


def forward_taps(layer: Plan, skipped: int) -> list[list[tuple[int, int]]]:
    """The taps, and the shift of each, of the outputs of a position, where so many phases lie before the first one."""
    return [
        [(k, layer.shift(k) - phase // layer.stride) for k in layer.taps(phase % layer.stride)]
        for phase in range(skipped, skipped + layer.stride)
    ]


@intrinsic(prefer_literal=True)
def forward_rows(typingctx, double, lanes, taps, stride, dilation, skipped, given):
    """Emit target[q·stride + r] = bias + Σ weights[k]·source[q - h] over the k and h of forward_taps for r."""
    literals = (double, lanes, taps, stride, dilation)

    def codegen(context, builder, signature, args):
        emit, layer = _emitter(builder, *literals)
        given = Rows._make(emit.given(args[6], len(Rows._fields)))
        streams_taps = forward_taps(layer, skipped.literal_value)
        shifts = sorted({shift for own in streams_taps for _, shift in own})
        ends = Ends(emit, given.begin, given.end, given.positions, len(shifts) + layer.stride)

        def firsts(position):
            """The first samples of the vectors that a step loads and stores."""
            at = builder.add(given.source_first, position)
            to = builder.add(given.target_first, builder.mul(position, I64(layer.stride)))
            loads = [builder.sub(at, I64(h)) for h in shifts]
            return loads, [builder.add(to, I64(k * emit.lanes)) for k in range(layer.stride)]

        def step(row, position, kept):
            loads, stores = firsts(position)
            if kept is None:
                kept = [None] * (len(loads) + len(stores))
                if not target.follows_streams():
                    prefetch(emit, row.source, loads[:1], write=False)
                    prefetch(emit, row.target, stores, write=True)
            vectors = zip(shifts, loads, kept[: len(loads)], strict=True)
            samples = {h: load(emit, row.source, first, within) for h, first, within in vectors}
            streams = []
            for own in streams_taps:
                total = emit.zero()
                for k, shift in own:
                    total = builder.call(emit.fma, [row.weight(k), samples[shift], total])
                streams.append([builder.fsub(total, row.less)])
            for value, first, within in zip(emit.interleaved(streams), stores, kept[len(loads) :], strict=True):
                store(emit, value, row.target, first, within)

        def kept_at(position):
            loads, stores = firsts(position)
            return [
                *(emit.lanes_within(first, given.source_length) for first in loads),
                *(emit.lanes_within(first, given.target_length) for first in stores),
            ]

        with ends.passes(kept_at) as inside, rows_of(emit, given, layer.kernel_size) as row:
            with ends.steps() as (_, position, kept):
                step(row, position, kept)
            with emit.loop(inside, I64(emit.lanes)) as loop:
                step(row, builder.add(given.begin, loop.index), None)
        return context.get_dummy_value()

    return types.void(*literals, skipped, types.int64), codegen


@intrinsic(prefer_literal=True)
def grad_input_rows(typingctx, double, lanes, taps, stride, dilation, given):
    """Emit target[t] = Σ_k weights[k]·source[t·stride + k·dilation]."""
    literals = (double, lanes, taps, stride, dilation)

    def codegen(context, builder, signature, args):
        emit, layer = _emitter(builder, *literals)
        given = Rows._make(emit.given(args[5], len(Rows._fields)))
        planes = Planes(emit, layer, given.source_first)
        ends = Ends(emit, given.begin, given.end, given.positions, 1 + planes.loads)

        def step(row, position, sample, kept):
            total = emit.zero()
            for k in range(layer.kernel_size):
                total = builder.call(emit.fma, [row.weight(k), sample(k), total])
            to = builder.add(given.target_first, position)
            store(emit, builder.fsub(total, row.less), row.target, to, kept)

        def kept_at(position):
            to = builder.add(given.target_first, position)
            return [emit.lanes_within(to, given.target_length), *planes.kept_at(position, given.source_length)]

        with ends.passes(kept_at) as inside, rows_of(emit, given, layer.kernel_size) as row:
            with ends.steps() as (_, position, kept):
                step(row, position, planes.near_an_end(row.source, position, kept[1:]), kept[0])
            with planes.inside(row.source, given.begin, inside, []) as (_, position, sample):
                step(row, position, sample, None)
        return context.get_dummy_value()

    return types.void(*literals, types.int64), codegen


@intrinsic(prefer_literal=True)
def grad_weight_rows(typingctx, double, lanes, taps, stride, dilation, given):
    """Emit sums[channel, k, lane] += Σ_t input[t]·grad_output[t·stride + k·dilation] over the t of a lane.

    As many taps are summed up at once as registers hold.
    """
    literals = (double, lanes, taps, stride, dilation)

    def codegen(context, builder, signature, args):
        emit, layer = _emitter(builder, *literals)
        given = Sums._make(emit.given(args[5], len(Sums._fields)))
        planes = Planes(emit, layer, given.grad_output_first)
        ends = Ends(emit, given.begin, given.end, given.input_length, 1 + planes.loads)
        together = target.vector_registers() // 2

        def step(loop, own, x, sample):
            totals = zip(own, loop.values, strict=True)
            loop.keep([builder.call(emit.fma, [x, sample(k), total]) for k, total in totals])

        def add(sums, own, totals):
            for k, total in zip(own, totals, strict=True):
                place = emit.element_at(sums, I64(k * emit.lanes))
                emit.store(builder.fadd(emit.load(place), total), place)

        def kept_at(t):
            return [emit.lanes_within(t, given.input_length), *planes.kept_at(t, given.grad_output_length)]

        with ends.passes(kept_at) as inside, emit.loop(given.channels, I64(1)) as channel:
            input = builder.add(given.input, builder.mul(channel.index, given.input_channel))
            grad_output = builder.add(given.grad_output, builder.mul(channel.index, given.grad_output_channel))
            sums = emit.element_at(given.sums, builder.mul(channel.index, I64(layer.kernel_size * emit.lanes)))
            for first in range(0, layer.kernel_size, together):
                own = range(first, min(first + together, layer.kernel_size))
                with ends.steps([emit.zero()] * len(own)) as (loop, t, kept):
                    x = load(emit, input, t, kept[0])
                    step(loop, own, x, planes.near_an_end(grad_output, t, kept[1:]))
                with emit.loop(inside, I64(STRETCH), loop.values) as stretch:
                    begin = builder.add(given.begin, stretch.index)
                    count = builder.sub(stretch.end, stretch.index)
                    with planes.inside(grad_output, begin, count, stretch.values) as (loop, t, sample):
                        step(loop, own, load(emit, input, t, None), sample)
                    more = builder.icmp_signed("<", stretch.end, inside)
                    with builder.if_then(more):
                        add(sums, own, loop.values)
                    stretch.keep([builder.select(more, emit.zero(), total) for total in loop.values])
                add(sums, own, stretch.values)
        return context.get_dummy_value()

    return types.void(*literals, types.int64), codegen


def _emitter(builder: Any, *literals: Any) -> tuple[Emitter, Plan]:
    double, lanes, taps, stride, dilation = (literal.literal_value for literal in literals)
    return Emitter(builder, double, lanes), plan(taps, stride, dilation)


@contextlib.contextmanager
def rows_of(emit: Emitter, given: Rows, taps: int) -> Iterator["Row"]:
    """A loop over the rows of a call: what is written in the context is one's."""
    builder = emit.builder
    carried = [given.source, given.target, given.weights, given.bias, given.part]
    with emit.loop(given.rows, I64(1), carried) as loop:
        source, target, weights, bias, part = loop.values
        yield Row(emit, source, target, weights, bias, taps)
        part = builder.add(part, I64(1))
        last = builder.icmp_signed("==", part, given.multiplier)
        loop.keep([
            builder.select(last, builder.add(source, given.source_channel), source),
            builder.add(target, given.target_channel),
            emit.element_at(weights, I64(taps)),
            builder.add(bias, given.bias_step),
            builder.select(last, I64(0), part),
        ])  # fmt: skip


class Row:
    """Where a row lies, and what is the same for all its positions."""

    def __init__(self, emit: Emitter, source: Any, target: Any, weights: Any, bias: Any, taps: int) -> None:
        self.source = source
        self.target = target
        self.less = emit.builder.fneg(emit.broadcast_at(bias, 0))  # a difference with -bias, as the tiles have it
        self.weight = _weights(emit, weights, taps)


def _weights(emit: Emitter, weights: Any, taps: int) -> Callable[[int], Any]:
    """Weight k in all lanes: in registers before the loops where they are few, else from memory at each use."""
    if taps <= target.vector_registers() // 2:
        kept = [emit.broadcast_at(weights, k) for k in range(taps)]
        return kept.__getitem__
    return lambda k: emit.broadcast_at(weights, k)


class CompiledRows:
    """The functions of depthwise layers, compiled on first use and kept on disk."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Any] = {}

    def __call__(self, operation: str, layer: Plan, itemsize: int, *skipped: int) -> int:
        """The address of the function of "forward", with what forward_taps takes, "grad_input" or "grad_weight"."""
        lanes = target.vector_bytes() // itemsize
        key = operation, int(itemsize == 8), lanes, layer.kernel_size, layer.stride, layer.dilation, *skipped
        if key not in self._kept:
            with compiling:
                self._kept[key] = self._kept.get(key) or _compile(*key)
        return int(self._kept[key].address)


rows = CompiledRows()


@functools.lru_cache(maxsize=128)
def forward_call(geometry: Geometry, itemsize: int) -> Call:
    """A forward pass, whose first position is made to begin with the first output: else its vectors would be cut."""
    plan, crop = geometry.plan, geometry.crops.left
    skipped = crop % plan.stride
    shifts = [shift for own in forward_taps(plan, skipped) for _, shift in own]
    return Call(
        rows("forward", plan, itemsize, skipped), 1, max(0, *shifts), max(0, -min(shifts)), 0, plan.stride,
        crop - skipped, crop // plan.stride, -(-geometry.output_length // plan.stride),
    )  # fmt: skip


@functools.lru_cache(maxsize=128)
def grad_input_call(geometry: Geometry, itemsize: int) -> Call:
    """The input gradient."""
    plan = geometry.plan
    return Call(
        rows("grad_input", plan, itemsize), plan.stride, 0, ahead(plan, itemsize), geometry.crops.left, 1, 0, 0,
        geometry.input_length,
    )  # fmt: skip


def _compile(operation: Any, *shape: Any) -> Any:
    row = {"forward": forward_rows, "grad_input": grad_input_rows, "grad_weight": grad_weight_rows}[operation]
    if operation == "forward":
        double, lanes, taps, stride, dilation, skipped = shape

        def function(given):
            row(double, lanes, taps, stride, dilation, skipped, given)
    else:
        double, lanes, taps, stride, dilation = shape

        def function(given):
            row(double, lanes, taps, stride, dilation, given)

    return emitted_function(function, ROWS_SIGNATURE, f"depthwise_rows.{operation}-{'-'.join(map(str, shape))}")
