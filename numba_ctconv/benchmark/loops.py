"""The loops that ceilings times: multiply-adds in registers, and a plain pass over arrays. Compiled by Numba."""

# ruff: noqa: ANN001, ANN202  # Numba types what it compiles
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import functools
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@functools.cache
def multiply_adds(double: bool, lanes: int, chains: int) -> Any:
    """A parallel function of (workers, rounds, sums)."""
    fma_rounds = _fma_rounds(double, lanes, chains)

    def run(workers, rounds, sums):
        for worker in numba.prange(workers):
            sums[worker] = fma_rounds(rounds)

    return numba.njit(parallel=True, nogil=True)(run)


def _fma_rounds(double: bool, lanes: int, chains: int) -> Any:
    element = ir.DoubleType() if double else ir.FloatType()
    vector, integer = ir.VectorType(element, lanes), ir.IntType(64)
    name = f"v{lanes}f{64 if double else 32}"

    @intrinsic
    def fma_rounds(typingctx, rounds):  # noqa: ARG001  # Numba's protocol
        """Add to each chain once a round; all of them together are returned, so that none is left out."""

        def codegen(context, builder, signature, args):  # noqa: ARG001  # Numba's protocol
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.{name}"
            )
            add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(element, [element, vector]), f"llvm.vector.reduce.fadd.{name}"
            )
            half, one = (ir.Constant(vector, [value] * lanes) for value in (0.5, 1.0))  # x/2 + 1 stays near 2
            before, loop, done = builder.block, builder.append_basic_block("round"), builder.append_basic_block("done")
            builder.branch(loop)
            builder.position_at_end(loop)
            count = builder.phi(integer)
            count.add_incoming(integer(0), before)
            sums = [builder.phi(vector) for _ in range(chains)]
            for chain, value in enumerate(sums):
                # each lane starts elsewhere, or LLVM would compute equal ones once
                value.add_incoming(ir.Constant(vector, [float(chain * lanes + lane) for lane in range(lanes)]), before)
            following = [builder.call(fma, [value, half, one]) for value in sums]
            for value, new in zip(sums, following, strict=True):
                value.add_incoming(new, loop)
            advanced = builder.add(count, integer(1))
            count.add_incoming(advanced, loop)
            builder.cbranch(builder.icmp_signed("<", advanced, args[0]), loop, done)
            builder.position_at_end(done)
            total = following[0]
            for value in following[1:]:
                total = builder.fadd(total, value)
            result = builder.call(add, [ir.Constant(element, 0.0), total])
            return result if double else builder.fpext(result, ir.DoubleType())

        return types.float64(types.int64), codegen

    return fma_rounds


@functools.cache
def sweeps(parallel: bool) -> Any:
    """The plain loop, compiled for one thread or for several."""

    def run(workers, repeats, a, b, c, x, y, z, sums):
        for _ in range(repeats):
            for worker in numba.prange(workers):
                total = _sum(a, worker, workers) + _sum(b, worker, workers) + _sum(c, worker, workers)
                sums[worker] += total  # what is written depends on what was read, so that no round is left out
                _fill(x, worker, workers, sums[worker])
                _fill(y, worker, workers, sums[worker])
                _fill(z, worker, workers, sums[worker])

    return numba.njit(parallel=parallel, nogil=True, error_model="numpy")(run)


@numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _sum(array, worker, workers):
    part = array[array.size * worker // workers : array.size * (worker + 1) // workers]
    total = part.dtype.type(0)
    for j in range(part.size):
        total += part[j]
    return total


@numba.njit(nogil=True, error_model="numpy")
def _fill(array, worker, workers, value):
    part = array[array.size * worker // workers : array.size * (worker + 1) // workers]
    for j in range(part.size):
        part[j] = value
