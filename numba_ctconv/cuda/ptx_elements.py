"""Instructions for single elements: addresses, loads and stores where they are wanted, halves as float32 numbers.

Beside ptx.py, which says what they are for. Halves are converted by their own instructions: Numba's conversions of
bfloat16 are functions that it would link.
"""

import numpy as np
from llvmlite import ir
from numba import cuda
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
NAMES = {types.float16: "f16", types.bfloat16: "bf16"}


def pointer(context, builder, kind, array, *indices):
    """The address of an element, whatever the strides; indices are not negative."""
    struct = context.make_array(kind)(context, builder, value=array)
    return cgutils.get_item_pointer(context, builder, kind, struct, list(indices), wraparound=False)


def bit(builder, truth):
    """One bit of what Numba takes for a truth."""
    return truth if truth.type.width == 1 else builder.icmp_unsigned("!=", truth, truth.type(0))


def assembly(builder, result, code, constraints, operands, **options):
    """Call PTX; options are those of a call, and side_effect."""
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    side_effect = options.pop("side_effect", False)
    return builder.call(ir.InlineAsm(kind, code, constraints, side_effect=side_effect), operands, **options)


def widened(builder, name, bits):
    """The float32 number of the 16 bits of a half.

    In assembly, which LLVM takes for costly: around a shift it would unroll loops until registers run out.
    """
    if name == "bf16":
        return assembly(builder, F32, "{ .reg .b16 z; mov.b16 z, 0; mov.b32 $0, {z, $1}; }", "=f,h", [bits])
    return assembly(builder, F32, "cvt.f32.f16 $0, $1;", "=f,h", [bits])


def _cast(context, builder, kind, indices):
    values = cgutils.unpack_tuple(builder, indices)
    return [context.cast(builder, value, own, types.int64) for value, own in zip(values, kind.types, strict=True)]


@intrinsic
def zero_of(typingctx, array):
    """Zero in the dtype of the array, float32 for halves."""
    result = types.float32 if array.dtype in NAMES else array.dtype

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(result), None)

    return result(array), codegen


@intrinsic
def element(typingctx, array, indices):
    """array[indices], which are not negative; float32 of a half."""
    name = NAMES.get(array.dtype)

    def codegen(context, builder, signature, args):
        at = pointer(context, builder, array, args[0], *_cast(context, builder, indices, args[1]))
        if name is None:
            return builder.load(at)
        return widened(builder, name, builder.load(builder.bitcast(at, I16.as_pointer())))

    return (array.dtype if name is None else types.float32)(array, indices), codegen


@intrinsic
def put(typingctx, array, indices, value):
    """array[indices] = value, rounded to a half where the array holds halves."""
    own = types.float32 if array.dtype in NAMES else array.dtype

    def codegen(context, builder, signature, args):
        at = _cast(context, builder, indices, args[1])
        _put(context, builder, array, args[0], at, context.cast(builder, args[2], value, own))
        return context.get_dummy_value()

    return types.void(array, indices, value), codegen


def _put(context, builder, kind, array, indices, value):
    name = NAMES.get(kind.dtype)
    at = pointer(context, builder, kind, array, *indices)
    if name is not None:
        value = assembly(builder, I16, f"cvt.rn.{name}.f32 $0, $1;", "=h,f", [value])
        at = builder.bitcast(at, I16.as_pointer())
    builder.store(value, at)


@cuda.jit(device=True)
def load_element(array, index, wanted):
    """array[index], or 0 where it is not wanted."""
    value = zero_of(array)
    if wanted:
        value = element(array, (index,))
    return value


@cuda.jit(device=True)
def load_sample(array, n, c, l, wanted):
    """array[n, c, l], or 0 where it is not wanted."""
    value = zero_of(array)
    if wanted:
        value = element(array, (n, c, l))
    return value


def load_row(count, checked):
    """A loader of samples one space apart: load_row(array, n, c, l, space) -> tuple of array[n, c, l + j·space].

    Where `checked`, the row's first sample stands in for those beyond its ends, so that nothing branches.
    """

    @intrinsic
    def emit(typingctx, array, n, c, l, space):
        name = NAMES.get(array.dtype)

        def codegen(context, builder, signature, args):
            places = zip(args[1:], signature.args[1:], strict=True)
            n_, c_, l_, space_ = (context.cast(builder, value, own, types.int64) for value, own in places)
            struct = context.make_array(array)(context, builder, value=args[0])
            length, stride = (cgutils.unpack_tuple(builder, each)[2] for each in (struct.shape, struct.strides))
            row = pointer(context, builder, array, args[0], n_, c_, I64(0))
            bytes_ = builder.bitcast(row, ir.IntType(8).as_pointer())
            first, step = builder.mul(l_, stride), builder.mul(space_, stride)
            values = []
            for j in range(count):
                offset = builder.add(first, builder.mul(I64(j), step))
                if checked:
                    inside = builder.icmp_unsigned("<", builder.add(l_, builder.mul(I64(j), space_)), length)
                    offset = builder.select(inside, offset, I64(0))
                at = builder.gep(bytes_, [offset])
                if name is None:
                    values.append(builder.load(builder.bitcast(at, row.type)))
                else:
                    values.append(widened(builder, name, builder.load(builder.bitcast(at, I16.as_pointer()))))
            return cgutils.pack_array(builder, values)

        return types.UniTuple(array.dtype if name is None else types.float32, count)(array, n, c, l, space), codegen

    return emit


@cuda.jit(device=True)
def load_weight(array, part, i, o, k, wanted):
    """array[part, i, o, k], or 0 where it is not wanted."""
    value = zero_of(array)
    if wanted:
        value = element(array, (part, i, o, k))
    return value


def load_parts(count):
    """A loader of an element of several parts: load_parts(array, part, i, o, k, wanted) -> tuple.

    array[part + j, i, o, k], or 0 where that is not wanted or there are no more parts. Nothing branches, so that all
    loads are under way at once.
    """

    @intrinsic
    def emit(typingctx, array, part, i, o, k, wanted):
        zero, kind, register = (
            ("0d0000000000000000", "f64", "d") if array.dtype.bitwidth == 64 else ("0f00000000", "f32", "f")
        )
        code = f"{{ .reg .pred p; setp.ne.b32 p, $2, 0; mov.{kind} $0, {zero}; @p ld.global.{kind} $0, [$1]; }}"

        def codegen(context, builder, signature, args):
            places = zip(args[1:5], signature.args[1:5], strict=True)
            at = [context.cast(builder, value, own, types.int64) for value, own in places]
            struct = context.make_array(array)(context, builder, value=args[0])
            parts, step = (cgutils.unpack_tuple(builder, each)[0] for each in (struct.shape, struct.strides))
            address = builder.ptrtoint(pointer(context, builder, array, args[0], *at), I64)
            values = []
            for j in range(count):
                inside = builder.icmp_signed("<", builder.add(at[0], I64(j)), parts)
                own = builder.zext(builder.and_(bit(builder, args[5]), inside), I32)
                operands = [builder.add(address, builder.mul(step, I64(j))), own]
                values.append(
                    assembly(
                        builder, context.get_value_type(array.dtype), code, f"=&{register},l,r,~{{memory}}", operands
                    )
                )
            return cgutils.pack_array(builder, values)

        return types.UniTuple(array.dtype, count)(array, part, i, o, k, wanted), codegen

    return emit


@intrinsic
def add_up(typingctx, total, values):
    """A number and those of a tuple, added in order."""

    def codegen(context, builder, signature, args):
        total_, values_ = args
        for value in cgutils.unpack_tuple(builder, values_):
            total_ = builder.fadd(total_, value)
        return total_

    return total(total, values), codegen


@cuda.jit(device=True)
def store_element(array, index, value, wanted):
    """array[index] = value where wanted."""
    if wanted:
        put(array, (index,), value)


@cuda.jit(device=True)
def store_sample(array, n, c, l, value, wanted):
    """array[n, c, l] = value where wanted."""
    if wanted:
        put(array, (n, c, l), value)


def store_spaced(count):
    """A store of results one space apart: store_spaced(array, n, c, l, space, sums, added, wanted).

    array[n, c, l + j·space] = sums[j] + added where that is wanted, and for as many j as the array is long.
    """

    @intrinsic
    def emit(typingctx, array, n, c, l, space, sums, added, wanted):
        def codegen(context, builder, signature, args):
            places = zip(args[1:5], signature.args[1:5], strict=True)
            n_, c_, l_, space_ = (context.cast(builder, value, own, types.int64) for value, own in places)
            length = cgutils.unpack_tuple(builder, context.make_array(array)(context, builder, value=args[0]).shape)[2]
            for j, value in enumerate(cgutils.unpack_tuple(builder, args[5])):
                at = builder.add(l_, builder.mul(I64(j), space_))
                inside = builder.and_(bit(builder, args[7]), builder.icmp_signed("<", at, length))
                with builder.if_then(inside):
                    _put(context, builder, array, args[0], [n_, c_, at], builder.fadd(value, args[6]))
            return context.get_dummy_value()

        return types.void(array, n, c, l, space, sums, added, wanted), codegen

    return emit


def store_part(row_steps, column_steps):
    """A store of a tile's partial sums: store_part(array, part, row, rows, items, places, first, column, sums).

    array[part, row + r, items[column + c], places[column + c] - first] = sum for the steps r of the tile's rows below
    `rows` and the steps c of its columns, but for those whose item is negative. Columns are looked up where they are
    stored, so that no register holds any before.
    """

    @intrinsic
    def emit(typingctx, array, part, row, rows, items, places, first, column, sums):
        def codegen(context, builder, signature, args):
            indices = [(args[n], signature.args[n]) for n in (1, 2, 3, 6, 7)]
            part_, row_, rows_, first_, column_ = (
                context.cast(builder, value, own, types.int64) for value, own in indices
            )
            step = cgutils.unpack_tuple(builder, context.make_array(array)(context, builder, value=args[0]).strides)[1]
            values = cgutils.unpack_tuple(builder, args[8])
            for n, c in enumerate(column_steps):
                own = builder.add(column_, I64(c))
                item = builder.load(pointer(context, builder, items, args[4], own))
                with builder.if_then(builder.icmp_signed(">=", item, I64(0))):
                    place = builder.sub(builder.load(pointer(context, builder, places, args[5], own)), first_)
                    top = pointer(context, builder, array, args[0], part_, row_, item, place)
                    bytes_ = builder.bitcast(top, ir.IntType(8).as_pointer())
                    for m, r in enumerate(row_steps):
                        with builder.if_then(builder.icmp_signed("<", I64(r), rows_)):
                            at = builder.gep(bytes_, [builder.mul(step, I64(r))])
                            builder.store(values[m * len(column_steps) + n], builder.bitcast(at, top.type))
            return context.get_dummy_value()

        return types.void(array, part, row, rows, items, places, first, column, sums), codegen

    return emit


@cuda.jit(device=True)
def store_weight(array, part, i, o, k, value, wanted):
    """array[part, i, o, k] = value where wanted."""
    if wanted:
        put(array, (part, i, o, k), value)


@cuda.jit(device=True)
def any_of_block(truth):
    """A barrier, and whether something holds for any thread."""
    return cuda.syncthreads_or(np.int32(1) if truth else np.int32(0)) != 0


@intrinsic
def multiply_add_where(typingctx, total, a, b, wanted):
    """A sum with a product added, rounded once, where that is wanted; else as it was."""

    def codegen(context, builder, signature, args):
        total_, a_, b_, wanted_ = args
        return builder.select(bit(builder, wanted_), builder.fma(a_, b_, total_), total_)

    return total(total, a, b, wanted), codegen
