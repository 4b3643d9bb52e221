"""Addresses in Numba code: where an array lies, copying bytes, calling a compiled tile. Used by the tiled kernels.

An address is an int64, so that sums with other integers stay integers.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_BYTES = ir.IntType(8).as_pointer()


@intrinsic
def address_of(typingctx, array):
    """Address of the first element."""

    def codegen(context, builder, signature, args):
        view = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.ptrtoint(view.data, ir.IntType(64))

    return types.int64(array), codegen


@intrinsic
def borrowed(typingctx, array):
    """The same array, of which a caller keeps the owner: slices of it count no references, which would be atomic."""

    def codegen(context, builder, signature, args):
        view = context.make_array(signature.args[0])(context, builder, args[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()  # noqa: SLF001  # as Numba itself returns a structure

    return array(array), codegen


@intrinsic
def record_of(typingctx, numbers, kind):
    """What begins at the first element of an array, by the names of its fields: passed on as one address."""
    record = kind.dtype

    def codegen(context, builder, signature, args):
        view = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.bitcast(view.data, context.get_value_type(record))

    return record(numbers, kind), codegen


@intrinsic
def store_integer(typingctx, address, value):
    """Store an int64 at an address."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def release_gil(typingctx, wanted):
    """Let other Python threads run where `wanted` is not 0; what `take_gil` needs to end it."""

    def codegen(context, builder, signature, args):
        function = ir.FunctionType(_BYTES, [])
        save = cgutils.get_or_insert_function(builder.module, function, "PyEval_SaveThread")
        state = cgutils.alloca_once_value(builder, ir.Constant(_BYTES, None))
        with builder.if_then(builder.icmp_signed("!=", args[0], ir.IntType(64)(0))):
            builder.store(builder.call(save, []), state)
        return builder.ptrtoint(builder.load(state), ir.IntType(64))

    return types.int64(types.int64), codegen


@intrinsic
def take_gil(typingctx, state):
    """End what `release_gil` began."""

    def codegen(context, builder, signature, args):
        function = ir.FunctionType(ir.VoidType(), [_BYTES])
        restore = cgutils.get_or_insert_function(builder.module, function, "PyEval_RestoreThread")
        with builder.if_then(builder.icmp_signed("!=", args[0], ir.IntType(64)(0))):
            builder.call(restore, [builder.inttoptr(args[0], _BYTES)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def copy_bytes(typingctx, target, source, count):
    """Copy `count` bytes between addresses of memory that does not overlap."""

    def codegen(context, builder, signature, args):
        to, start, size = args
        to, start = builder.inttoptr(to, _BYTES), builder.inttoptr(start, _BYTES)
        cgutils.raw_memcpy(builder, to, start, size, 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def call_rows(typingctx, function, values):
    """Call what `call_task` does with the address of so many integers."""

    def codegen(context, builder, signature, args):
        integer, count = ir.IntType(64), len(signature.args[1])
        room = cgutils.alloca_once(builder, ir.ArrayType(integer, count))
        for k, value in enumerate(cgutils.unpack_tuple(builder, args[1], count)):
            builder.store(value, builder.gep(room, [ir.IntType(32)(0), ir.IntType(32)(k)]))
        _call(context, builder, args[0], [types.int64], [builder.ptrtoint(room, integer)])
        return context.get_dummy_value()

    return types.void(types.int64, values), codegen


@intrinsic
def call_task(typingctx, address, values):
    """Call what a compilation.Task, or an emitter, compiled with a tuple of what it takes."""
    kinds = [types.int64 if isinstance(kind, types.Integer) else kind for kind in values]  # a literal is an int64 too

    def codegen(context, builder, signature, args):
        unpacked = zip(cgutils.unpack_tuple(builder, args[1]), values, kinds, strict=True)
        given = [context.cast(builder, value, own, kind) for value, own, kind in unpacked]
        _call(context, builder, args[0], kinds, given)
        return context.get_dummy_value()

    return types.void(types.int64, values), codegen


def _call(context, builder, address, kinds, values):
    """Write a call as Numba's own convention has it; it can't fail: an error has no code path."""
    convention = context.call_conv
    function = convention.get_function_type(types.none, kinds)
    given = [cgutils.alloca_once_value(builder, ir.Constant(kind.pointee, None)) for kind in function.args[:2]]
    given += convention._get_arg_packer(kinds).as_arguments(builder, values)  # noqa: SLF001  # there is no public way
    builder.call(builder.inttoptr(address, function.as_pointer()), given)
