"""The rows of a depthwise layer: C functions that compute a stretch of one, whose taps are fixed when it is compiled.

With one input channel a group there is little to multiply and nothing to pack: a function loads each sample from where
it lies, holds the weights in registers and stores whole vectors. It sums a row's taps in the order of the tiles, so it
gives their bits. Addresses are int64, counts in positions, a multiple of the lanes.
"""

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from ..forks import compiling
from ..geometry import Plan, plan
from . import target
from .emitter import I64, Emitter, c_function
from .moves import SIGNATURE

MOST_TAPS = 32  # one block of terms, so that the order is the tiles'
MOST_PHASES = 12
LONGEST_REACH = 64  # positions; what touches an end is copied with its reach


def fits(layer: Plan) -> bool:
    """Whether the layer's taps and phases are few enough for code of its own."""
    few = layer.kernel_size <= MOST_TAPS and layer.stride <= MOST_PHASES
    return few and layer.shift(layer.kernel_size - 1) <= LONGEST_REACH


@intrinsic(prefer_literal=True)
def forward_row(typingctx, double, lanes, taps, stride, dilation, source, weights, count, target, start):
    """Emit target[q·stride + r] = -start + Σ_k weights[k]·source[q - h_k] over the taps k of phase r and shift h_k."""
    literals = (double, lanes, taps, stride, dilation)

    def codegen(context, builder, signature, args):
        emit, layer = _emitter(builder, *literals)
        source, weights, count, target, start = args[5:]
        weight = _weights(emit, weights, layer.kernel_size)
        less = emit.broadcast_at(start, 0)
        with emit.loop(count, I64(emit.lanes)) as loop:
            q = loop.index
            at = emit.element_at(source, q)
            samples = {}
            streams = []
            for phase in range(layer.stride):
                total = emit.zero()
                for k in layer.taps(phase):
                    h = layer.shift(k)
                    if h not in samples:
                        samples[h] = emit.load(emit.element_at(at, I64(-h)))
                    total = builder.call(emit.fma, [weight(k), samples[h], total])
                streams.append([builder.fsub(total, less)])
            to = emit.element_at(target, builder.mul(q, I64(layer.stride)))
            for k, value in enumerate(emit.interleaved(streams)):
                emit.store(value, emit.element_at(to, I64(k * emit.lanes)))
        return context.get_dummy_value()

    return types.void(*literals, *[types.int64] * 5), codegen


@intrinsic(prefer_literal=True)
def grad_input_row(typingctx, double, lanes, taps, stride, dilation, source, weights, count, target, start):
    """Emit target[t] = -start + Σ_k weights[k]·source[t·stride + k·dilation]."""
    literals = (double, lanes, taps, stride, dilation)

    def codegen(context, builder, signature, args):
        emit, layer = _emitter(builder, *literals)
        source, weights, count, target, start = args[5:]
        weight = _weights(emit, weights, layer.kernel_size)
        less = emit.broadcast_at(start, 0)
        with emit.loop(count, I64(emit.lanes)) as loop:
            sample = _planes(emit, layer, source, loop.index)
            total = emit.zero()
            for k in range(layer.kernel_size):
                total = builder.call(emit.fma, [weight(k), sample(k), total])
            emit.store(builder.fsub(total, less), emit.element_at(target, loop.index))
        return context.get_dummy_value()

    return types.void(*literals, *[types.int64] * 5), codegen


@intrinsic(prefer_literal=True)
def grad_weight_row(typingctx, double, lanes, taps, stride, dilation, input, grad_output, count, sums, nothing):
    """Emit sums[k, lane] += Σ_t input[t]·grad_output[t·stride + k·dilation] over the t of a lane.

    `sums` is lanes wide; as many taps are summed up at once as registers hold.
    """
    literals = (double, lanes, taps, stride, dilation)

    def codegen(context, builder, signature, args):
        emit, layer = _emitter(builder, *literals)
        input, grad_output, count, sums, _ = args[5:]
        together = target.vector_registers() // 2
        for first in range(0, layer.kernel_size, together):
            own = range(first, min(first + together, layer.kernel_size))
            with emit.loop(count, I64(emit.lanes), [emit.zero()] * len(own)) as loop:
                x = emit.load(emit.element_at(input, loop.index))
                sample = _planes(emit, layer, grad_output, loop.index)
                totals = zip(own, loop.values, strict=True)
                loop.keep([builder.call(emit.fma, [x, sample(k), total]) for k, total in totals])
            for k, value in zip(own, loop.values, strict=True):
                place = emit.element_at(sums, I64(k * emit.lanes))
                emit.store(builder.fadd(emit.load(place), value), place)
        return context.get_dummy_value()

    return types.void(*literals, *[types.int64] * 5), codegen


def _emitter(builder: Any, *literals: Any) -> tuple[Emitter, Plan]:
    double, lanes, taps, stride, dilation = (literal.literal_value for literal in literals)
    return Emitter(builder, double, lanes), plan(taps, stride, dilation)


def _weights(emit: Emitter, weights: Any, taps: int) -> Callable[[int], Any]:
    """Weight k in all lanes: in registers before the loop where they are few, else from memory at each use."""
    if taps <= target.vector_registers() // 2:
        kept = [emit.broadcast_at(weights, k) for k in range(taps)]
        return kept.__getitem__
    return lambda k: emit.broadcast_at(weights, k)


def _planes(emit: Emitter, layer: Plan, grad_output: Any, t: Any) -> Callable[[int], Any]:
    """The output gradients that tap k brings to a vector of input samples from t on."""
    loaded: dict[int, Any] = {}

    def sample(k: int) -> Any:
        shift, plane = divmod(k * layer.dilation, layer.stride)
        if shift not in loaded:
            at = emit.element_at(grad_output, emit.builder.mul(emit.builder.add(t, I64(shift)), I64(layer.stride)))
            places = [emit.element_at(at, I64(v * emit.lanes)) for v in range(layer.stride)]
            loaded[shift] = emit.deinterleaved([emit.load(place) for place in places])
        return loaded[shift][plane]

    return sample


class CompiledRows:
    """The C functions of depthwise layers, compiled on first use and kept on disk."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Any] = {}

    def __call__(self, operation: str, layer: Plan, itemsize: int) -> int:
        """The address of the function of "forward", "grad_input" or "grad_weight"."""
        lanes = target.vector_bytes() // itemsize
        key = (operation, int(itemsize == 8), lanes, layer.kernel_size, layer.stride, layer.dilation)
        if key not in self._kept:
            with compiling:
                self._kept[key] = self._kept.get(key) or _compile(*key)
        return int(self._kept[key].address)


rows = CompiledRows()


def _compile(operation: str, double: int, lanes: int, taps: int, stride: int, dilation: int) -> Any:
    row = {"forward": forward_row, "grad_input": grad_input_row, "grad_weight": grad_weight_row}[operation]

    def function(source, weights, count, target, start):
        row(double, lanes, taps, stride, dilation, source, weights, count, target, start)

    return c_function(function, SIGNATURE, f"depthwise_rows.{operation}-{double}-{lanes}-{taps}-{stride}-{dilation}")
