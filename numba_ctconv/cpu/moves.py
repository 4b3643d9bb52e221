"""Vector code that only moves: rows interleaved, and runs laid out at another distance. Compiled to C functions.

The packing and storing of the tiled kernels call them where the memory is contiguous in time; the loops of those
kernels do the same for any memory. Addresses are int64, counts and distances are in elements.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic

from .compilation import compiling
from .microkernels import I64, Emitter, Shape, c_function

# source, its step, count, target, its step
LONGEST_RUN = 16
SIGNATURE = types.void(*[types.int64] * 5)


@intrinsic(prefer_literal=True)
def interleave(typingctx, double, lanes, rows, source, source_step, count, target, target_step):
    """Emit target[t·rows + m] = source[m·source_step + t] for t below count, a multiple of the lanes.

    The step of the target is the number of rows, whatever is passed.
    """
    shape = Shape(*(literal.literal_value for literal in (double, lanes, rows)), vectors=1, phases=1)

    def codegen(context, builder, signature, args):
        source, source_step, count, target, _ = args[3:]
        emit = Emitter(builder, shape)
        with counted(builder, count, shape.lanes) as t:
            rows = range(shape.rows)
            at = [emit.element_at(source, builder.add(t, builder.mul(source_step, I64(m)))) for m in rows]
            to = emit.element_at(target, builder.mul(t, I64(shape.rows)))
            for k, value in enumerate(emit.interleaved([[emit.load(address)] for address in at])):
                emit.store(value, emit.element_at(to, I64(k * shape.lanes)))
        return context.get_dummy_value()

    return types.void(double, lanes, rows, *[types.int64] * 5), codegen


@intrinsic(prefer_literal=True)
def lay_out(typingctx, double, run, source, source_step, count, target, target_step):
    """Emit target[j·target_step + p] = source[j·source_step + p] for j below count and p below run."""
    shape = Shape(double.literal_value, run.literal_value, rows=1, vectors=1, phases=1)

    def codegen(context, builder, signature, args):
        source, source_step, count, target, target_step = args[2:]
        emit = Emitter(builder, shape)
        with counted(builder, count, 1) as j:
            value = emit.load(emit.element_at(source, builder.mul(j, source_step)))
            emit.store(value, emit.element_at(target, builder.mul(j, target_step)))
        return context.get_dummy_value()

    return types.void(double, run, *[types.int64] * 5), codegen


class counted:  # noqa: N801  # reads as what it is: with counted(...)
    """A loop over [0, count) in LLVM code, as a context that yields the counter; skipped where count is 0."""

    def __init__(self, builder: Any, count: Any, step: int) -> None:
        self.builder, self.count, self.step = builder, count, step

    def __enter__(self) -> Any:
        builder = self.builder
        before = builder.block
        self.head, self.done = builder.append_basic_block("moves"), builder.append_basic_block("moved")
        builder.cbranch(builder.icmp_signed(">", self.count, I64(0)), self.head, self.done)
        builder.position_at_end(self.head)
        self.counter = builder.phi(I64)
        self.counter.add_incoming(I64(0), before)
        return self.counter

    def __exit__(self, *_: object) -> None:
        builder = self.builder
        following = builder.add(self.counter, I64(self.step))
        self.counter.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, self.count), self.head, self.done)
        builder.position_at_end(self.done)


class CompiledMoves:
    """The C functions of moves, compiled on first use and kept on disk."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Any] = {}

    def interleave(self, itemsize: int, lanes: int, rows: int) -> int:
        """The address of the move that interleaves so many rows."""
        return self._address(_compile_interleave, int(itemsize == 8), lanes, rows)

    def lay_out(self, itemsize: int, run: int) -> int:
        """The address of the move of runs of such a length; 0 where they are too long for registers."""
        return self._address(_compile_lay_out, int(itemsize == 8), run) if run <= LONGEST_RUN else 0

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

    return c_function(function, SIGNATURE, f"moves.interleave-{double}-{lanes}-{rows}")


def _compile_lay_out(double: int, run: int) -> Any:
    def function(source, source_step, count, target, target_step):
        lay_out(double, run, source, source_step, count, target, target_step)

    return c_function(function, SIGNATURE, f"moves.lay_out-{double}-{run}")
